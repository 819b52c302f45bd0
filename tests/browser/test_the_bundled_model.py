"""The whole way with the model that comes with the package: what is typed is what is seen, in the saved file's pixels.

A saved file also names itself, its time and its timings (people want those inside), so two files of one request are
never alike byte for byte. "The same file" therefore means: the same bytes but for the text that describes it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect

from training.world.vocabulary import COLOURS
from zimage_ui.generator.sources import BUNDLED_FOLDER
from zimage_ui.jobs.records import JobPhase
from zimage_ui.storage.encoders import read_metadata

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visit, Visiting
    from tests.web.conftest import Studio

pytestmark = pytest.mark.model

PROMPTS = ("a red circle on a blue background", "蓝色背景上的红色圆形")
SEED = "7"
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, run_studio: StudioMaker) -> Iterator[Studio]:
    """A service that is ready, with the bundled model, for all tests of this module."""
    from zimage_ui.generator.zimage import ZImageGenerator

    folder = tmp_path_factory.mktemp("bundled")
    generator = ZImageGenerator(str(BUNDLED_FOLDER), embedding_cache_bytes=2**20)
    with run_studio(folder, generator=generator) as studio:
        yield studio


@pytest.fixture
def person(studio: Studio, visit: Visiting) -> Visit:
    return visit(studio).open()


def saved_files(studio: Studio) -> set[Path]:
    """All pictures on the disk."""
    return set(studio.services.settings.output_dir.glob("*/*.png"))


def make(person: Visit, studio: Studio, prompt: str, seed: str) -> Path:
    """Type, press, wait until the picture is saved and shown: its file."""
    before = saved_files(studio)
    last = [record.job_id for record in studio.board.recent(1)]
    person.page.locator("#zi-seed input").fill(seed)
    person.prompt.fill(prompt)
    person.generate.click()
    studio.wait_for(
        lambda: any(each.job_id not in last and each.phase is JobPhase.DONE for each in studio.board.recent(1))
    )
    (record,) = studio.board.recent(1)
    (picture,) = record.pictures
    expect(person.picture).to_have_attribute("src", f"/pictures/{picture.picture_id}")
    file = studio.services.settings.output_dir / picture.path
    assert saved_files(studio) - before == {file}
    return file


def colour_names(pixels: np.ndarray) -> np.ndarray:
    """For each pixel (last axis: RGB) the name of the nearest of the twelve colours."""
    palette = np.array(list(COLOURS.values()), np.float32)
    distances = np.linalg.norm(pixels[..., None, :].astype(np.float32) - palette, axis=-1)
    return np.array(list(COLOURS))[distances.argmin(-1)]


def shares(names: np.ndarray) -> dict[str, float]:
    """Colour name -> which part of the pixels has it."""
    found, counts = np.unique(names, return_counts=True)
    return {str(name): float(count) / names.size for name, count in zip(found, counts, strict=True)}


def content_hash(file: Path) -> str:
    """SHA-256 of a PNG's bytes without its text chunks."""
    data, digest, start = file.read_bytes(), hashlib.sha256(), len(PNG_SIGNATURE)
    assert data.startswith(PNG_SIGNATURE)
    while start < len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + length + 12
        if kind not in (b"iTXt", b"tEXt", b"zTXt"):
            digest.update(data[start:end])
        start = end
    return digest.hexdigest()


def assert_red_on_blue(file: Path) -> None:
    names = colour_names(np.asarray(Image.open(file).convert("RGB")))
    height, width = names.shape
    middle = names[height * 9 // 20 : height * 11 // 20, width * 9 // 20 : width * 11 // 20]
    assert shares(middle).get("red", 0) >= 0.99, shares(middle)
    rim = np.ones_like(names, bool)
    rim[height // 16 : -height // 16, width // 16 : -width // 16] = False
    assert shares(names[rim]).get("blue", 0) >= 0.99, shares(names[rim])
    whole = shares(names)
    assert whole.get("red", 0) + whole.get("blue", 0) >= 0.95, whole  # and nothing else but the edge between them


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_red_circle_on_a_blue_background_is_what_it_says(person: Visit, studio: Studio, prompt: str) -> None:
    expect(person.page.locator("zi-header, header").first).to_contain_text("Z-Image mini")
    file = make(person, studio, prompt, SEED)
    person.shot(f"bundled-{PROMPTS.index(prompt)}")
    assert_red_on_blue(file)
    assert person.page.get_by_text("untrained").count() == 0


@pytest.mark.parametrize(
    ("locale", "more", "prompt"), [("en-US", "More ideas", PROMPTS[0]), ("zh-CN", "换一批", PROMPTS[1])]
)
def test_an_example_is_drawn_as_it_says(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting, locale: str, more: str, prompt: str
) -> None:
    from zimage_ui.generator.zimage import ZImageGenerator

    with run_studio(tmp_path, generator=ZImageGenerator(str(BUNDLED_FOLDER), embedding_cache_bytes=2**20)) as studio:
        person = visit(studio, locale=locale).open()
        person.page.locator("#zi-seed input").fill(SEED)
        person.page.get_by_role("button", name=more).click()
        person.page.get_by_role("button", name=prompt).click()
        expect(person.picture).to_be_visible()
        expect(person.account.locator(".zi-total")).to_be_visible()
        (file,) = saved_files(studio)
        metadata = read_metadata(file)
        assert metadata is not None
        assert metadata.request.prompt == prompt
        assert_red_on_blue(file)


def test_the_same_seed_makes_the_same_file_but_for_what_describes_it(person: Visit, studio: Studio) -> None:
    first, second, other = (make(person, studio, PROMPTS[0], seed) for seed in ("11", "11", "12"))
    assert content_hash(first) == content_hash(second) != content_hash(other)
    described: list[Any] = [read_metadata(file) for file in (first, second)]
    one, two = (replace(each, picture_id="", created_at=described[0].created_at, timings_ms={}) for each in described)
    assert one == two


def test_a_running_job_is_cancelled_and_leaves_no_file(person: Visit, studio: Studio) -> None:
    before = saved_files(studio)
    person.page.get_by_role("radio", name="512 × 512").check(force=True)
    person.page.locator("#zi-steps input").fill("50")
    person.prompt.fill("a boat that never arrives")
    person.generate.click()
    expect(person.account).to_contain_text("of 50")
    person.cancel.click()
    expect(person.generate).to_be_visible()
    (record,) = studio.board.recent(1)
    assert record.request.prompt == "a boat that never arrives"
    assert record.phase is JobPhase.CANCELLED
    assert 0 < record.step < 50
    assert saved_files(studio) == before
