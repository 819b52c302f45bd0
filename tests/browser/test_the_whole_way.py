"""The main job, as a stranger does it: type, generate, watch it grow, have it saved, see where the time went."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import StepGate
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.storage.encoders import read_metadata

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visiting
    from tests.web.conftest import Studio

PROMPT = "A paper lantern over a quiet river, 夜色"
# Records what the person would see change, without asking again and again.
WATCH = """() => {
  window.seen = {previews: [], readings: []};
  const canvas = document.querySelector("zi-canvas");
  new MutationObserver(() => {
    const source = canvas.querySelector("img.zi-preview")?.src;
    if (source && source !== window.seen.previews.at(-1)) window.seen.previews.push(source);
  }).observe(canvas, {subtree: true, childList: true, attributes: true, attributeFilter: ["src"]});
  const machine = document.querySelector("zi-machine");
  new MutationObserver(() => window.seen.readings.push(machine.querySelector("[data-meter=temperature]").innerText))
    .observe(machine, {subtree: true, childList: true, characterData: true});
}"""


@pytest.fixture
def gate() -> StepGate:
    return StepGate()


@pytest.fixture
def studio(tmp_path: Path, run_studio: StudioMaker, gate: StepGate) -> Iterator[Studio]:
    with run_studio(tmp_path, generator=FakeGenerator(gate=gate)) as studio:
        yield studio


def test_a_prompt_becomes_a_saved_picture(studio: Studio, gate: StepGate, visit: Visiting) -> None:
    person = visit(studio).open()
    person.read(WATCH)

    person.prompt.fill(PROMPT)
    person.prompt.press("Enter")
    expect(person.cancel).to_be_visible()
    expect(person.generate).to_be_hidden()
    for step in (1, 2, 3):
        gate.allow(1)
        expect(person.account).to_contain_text(f"Step {step} of 8")
        expect(person.account).to_contain_text("so far")
        expect(person.preview).to_be_visible()
    gate.set()
    expect(person.picture).to_be_visible()
    expect(person.generate).to_be_visible()

    previews = person.read("window.seen.previews")
    assert len(previews) >= 3
    assert all(source.startswith("data:image/jpeg;base64,") for source in previews)

    # Where the time went, stage by stage, and how it was taken.
    expect(person.account.locator(".zi-total")).to_be_visible()
    stages = person.account.locator(".zi-legend li[data-stage]")
    assert [item.split()[0] for item in stages.all_inner_texts()] == [
        "queue",
        "encode",
        "sample",
        "decode",
        "save",
        "other",
    ]
    for title in (stage.get_attribute("title") for stage in stages.all()):
        assert title == "monotonic clock"
    expect(person.account).to_contain_text("8 forwards")
    expect(person.account).to_contain_text("prompt encoded")
    expect(person.page.locator("zi-canvas .zi-untrained")).to_have_text("untrained")

    # What is shown is what lies on disk, and the file carries the prompt.
    (picture,) = studio.client.get("/api/pictures").json()["pictures"]
    assert person.picture.get_attribute("src") == picture["url"]
    metadata = read_metadata(studio.services.settings.output_dir / picture["path"])
    assert metadata is not None
    assert metadata.request.prompt == PROMPT
    expect(person.account).to_contain_text(f"seed {metadata.request.seed}")
    expect(person.thumbs).to_have_count(1)

    # The panel moves.
    person.page.wait_for_function("new Set(window.seen.readings).size >= 2")
    expect(person.page.locator("zi-machine .zi-age")).to_have_text("live")

    # One chart, drawn by the script of the installed Plotly.
    expect(person.page.locator("zi-chart .barlayer .bars")).to_have_count(6)
    assert any("/assets/plotly.min.js" in url for url in person.requests)

    # One stream, and none of Gradio's: a browser gives an origin six connections, for all tabs together.
    assert sum(url.endswith("/telemetry") for url in person.requests) == 1
    assert not [url for url in person.requests if "heartbeat" in url or "/queue/" in url]

    # Another language, and nothing is lost by it.
    person.page.get_by_role("button", name="中文").click()
    expect(person.generate).to_have_text("生成")
    expect(person.page.locator("html")).to_have_attribute("lang", "zh-Hans")
    expect(person.account).to_contain_text("采样")
    expect(person.page.locator("zi-machine")).to_contain_text("温度")
    expect(person.prompt).to_have_value(PROMPT)
    expect(person.picture).to_have_attribute("src", picture["url"])


def test_several_pictures_share_one_job(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    for _ in range(3):
        person.page.get_by_role("button", name="More pictures").click()
    person.page.locator("#zi-seed input").fill("41")
    person.make("four small boats")
    expect(person.picture).to_have_count(4)
    expect(person.account).to_contain_text("seeds 41 to 44")

    person.page.get_by_role("button", name="Look at this one").nth(2).click()
    expect(person.picture).to_have_count(1)
    expect(person.account).to_contain_text("seed 43")
    person.page.get_by_role("button", name="Back to the latest").click()
    expect(person.picture).to_have_count(4)


def test_a_size_chosen_by_the_keys_is_made(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.page.get_by_role("radio", name="512 × 512").focus()
    person.page.keyboard.press("ArrowDown")
    expect(person.page.get_by_role("radio", name="320 × 192")).to_be_checked()
    person.make("a wide field")
    expect(person.account).to_contain_text("320 × 192")
    box = person.picture.bounding_box()
    assert box is not None
    assert abs(box["width"] / box["height"] - 320 / 192) < 0.02


def test_seeds_are_drawn_kept_and_used_again(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    seed = person.page.locator("#zi-seed input")
    person.make("one die")
    expect(seed).to_have_value("")
    shown = person.account.locator("button.zi-chip").inner_text().removeprefix("seed ")

    person.page.get_by_role("button", name="Last seed").click()
    expect(seed).to_have_value(shown)
    person.page.get_by_role("button", name="Random seed").click()
    expect(seed).to_have_value("")
    person.account.locator("button.zi-chip").click()
    expect(seed).to_have_value(shown)

    person.make("one die again")
    expect(person.account).to_contain_text(f"seed {shown}")
    person.make("and again")
    expect(person.account).to_contain_text(f"seed {shown}")


def test_an_older_picture_can_be_looked_at(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    person.make("the first of two")
    expect(person.account).to_contain_text("prompt encoded")
    person.make("the second of two")
    person.make("the first of two")
    expect(person.account).to_contain_text("prompt cached")
    person.make("the second of two")
    thumbs = person.page.locator("zi-strip")
    older = thumbs.get_by_role("button", name="the first of two").first
    older.click()
    expect(person.account.locator(".zi-prompt-line")).to_have_text("the first of two")
    expect(older).to_have_attribute("aria-current", "true")
    person.make("a third comes to the front by itself")
    expect(person.page.get_by_role("button", name="Back to the latest")).to_have_count(0)


def test_the_picture_can_be_enlarged_opened_downloaded_and_its_prompt_copied(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    # A LAN page over plain http has no clipboard API.
    person.read("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    person.make("a copied prompt")

    person.page.get_by_role("button", name="Enlarge").click()
    expect(person.page.locator("dialog.zi-lightbox img")).to_be_visible()
    person.page.keyboard.press("Escape")
    expect(person.page.locator("dialog")).to_have_count(0)

    person.page.get_by_role("button", name="Copy the prompt").click()
    expect(person.toasts).to_contain_text("Copied.")
    person.page.locator("#zi-seed input").focus()
    person.page.keyboard.press("Control+v")
    expect(person.page.locator("#zi-seed input")).to_have_value("a copied prompt")

    with person.page.expect_download() as download:
        person.page.get_by_role("link", name="Download").click()
    assert re.fullmatch(r"[0-9A-Z]{26}\.png", download.value.suggested_filename)
    assert person.page.get_by_role("link", name="Open in a new tab").get_attribute("target") == "_blank"
