import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from zimage_ui import __version__
from zimage_ui.cli import main
from zimage_ui.errand import Errand
from zimage_ui.errors import (
    DeviceMemoryError,
    InvalidRequestError,
    ModelNotFoundError,
    OutputFolderError,
    SettingsError,
    StorageError,
)
from zimage_ui.generator.base import ModelInfo, ProgressListener
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.settings import Settings
from zimage_ui.storage.encoders import read_metadata


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZIMAGE_MODEL", "fake")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_version_is_told(capsys):
    assert run(capsys, "--version") == (0, f"zimage-ui {__version__}\n", "")


def test_every_setting_is_an_option_of_serve(capsys):
    code, out, _ = run(capsys, "serve", "--help")
    assert code == 0
    assert set(re.findall(r"^  --([a-z-]+)", out, re.M)) - {"help"} == {
        name.replace("_", "-") for name in Settings.model_fields
    }


def test_generate_writes_the_file_and_prints_its_name(capsys, tmp_path):
    code, out, err = run(capsys, "generate", "a red boat", "--seed", "7", "--output", "boat.png")
    assert code == 0
    assert out == f"{tmp_path / 'boat.png'}\n"
    assert "sample 8 of 8" in err
    with Image.open(tmp_path / "boat.png") as picture:
        picture.load()
        assert picture.size == (384, 384)
    kept = read_metadata(tmp_path / "boat.png")
    assert kept is not None
    assert (kept.request.prompt, kept.request.seed, kept.nfe) == ("a red boat", 7, 8)


def test_generate_tells_timings_seed_and_nfe_as_json(capsys):
    code, out, _ = run(
        capsys, "generate", "一条船", "--width", "320", "--height", "192", "--steps", "4", "--seed", "5", "--json",
        "--output", "p.webp",
    )  # fmt: skip
    told = json.loads(out)
    assert code == 0
    assert (told["seed"], told["nfe"], told["width"], told["height"]) == (5, 4, 320, 192)
    assert told["prompt"] == "一条船"
    timings = told["timings_ms"]
    assert set(timings) == {"queue", "encode", "sample", "decode", "save", "other", "total"}
    assert sum(timings.values()) - timings["total"] == pytest.approx(timings["total"], abs=0.01)
    assert timings["other"] < 0.01 * timings["total"]
    assert told["model"]["trained"] is False


def test_several_pictures_are_numbered_and_have_seeds_in_a_row(capsys, tmp_path):
    code, out, _ = run(capsys, "generate", "boats", "--count", "3", "--seed", "10", "--output", "b.jpg")
    files = [Path(line) for line in out.split()]
    assert code == 0
    assert files == [tmp_path / f"b-{number}.jpg" for number in (1, 2, 3)]
    assert [read_metadata(file).request.seed for file in files] == [10, 11, 12]  # type: ignore[union-attr]


def test_without_a_file_the_picture_goes_to_the_output_folder_and_its_index(capsys, tmp_path):
    from zimage_ui.storage.files import OutputFolder
    from zimage_ui.storage.library import Library

    code, out, _ = run(capsys, "generate", "a boat", "--output-dir", "pictures", "--image-format", "jpeg")
    file = Path(out.strip())
    assert code == 0
    assert file.parent.parent == tmp_path / "pictures"
    library = Library(OutputFolder(tmp_path / "pictures"))
    try:
        (row,) = library.newest(10)
    finally:
        library.close()
    assert (tmp_path / "pictures" / row.path) == file


def test_an_existing_file_is_replaced_whole_and_nothing_is_left_beside_it(capsys, tmp_path):
    (tmp_path / "p.png").write_bytes(b"old")
    assert run(capsys, "generate", "a boat", "--output", "p.png")[0] == 0
    Image.open(io.BytesIO((tmp_path / "p.png").read_bytes())).verify()
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["generate", "  "], 2, "The prompt is empty"),
        (["generate", "x", "--width", "1000"], 2, "multiple of 16"),
        (["generate", "x", "--steps", "0"], 2, "num_inference_steps is 0"),
        (["generate", "x", "--seed", "-7"], 2, "seed is -7"),
        (["generate", "x", "--output", "x.gif"], 2, "names no picture format"),
        (["generate", "x", "--width", "wide"], 2, "--width"),
        (["generate"], 2, "prompt"),
        (["serve", "--host", "0.0.0.0"], 78, "'0.0.0.0'"),
        (["serve", "--port", "99999"], 78, "99999"),
        (["dance"], 2, "dance"),
        (["generate", "x", "--output", "/proc/nowhere/x.png"], 70, "/proc/nowhere/x.png"),
        (["generate", "x", "--output-dir", "/proc/nowhere"], 78, "/proc/nowhere"),
        pytest.param(["generate", "x", "--model", "./no/such/folder"], 69, "no/such/folder", marks=pytest.mark.model),
    ],
)
def test_what_is_wrong_is_told_in_one_message_and_an_exit_code(capsys, arguments, code, told):
    got, out, err = run(capsys, *arguments)
    assert got == code
    assert told in err
    assert "Traceback" not in err
    assert out == ""


def test_an_untrained_model_and_a_prompt_cut_short_are_told(capsys):
    _, out, err = run(capsys, "generate", " ".join(["boat"] * 520), "--output", "boat.png")
    assert "its last 8 tokens were not read" in err
    assert "untrained" in err
    assert len(out.splitlines()) == 1


def test_guidance_is_refused_where_the_model_works_without(capsys):
    code, out, err = run(capsys, "generate", "a boat", "--guidance-scale", "4")
    assert (code, out) == (2, "")
    assert "guidance_scale is 4" in err
    assert "sample" not in err


@pytest.mark.parametrize("output", ["/proc/nowhere/x.png", "taken.png", "file/x.png"])
def test_a_place_that_takes_no_picture_is_told_before_one_is_made(capsys, tmp_path, output):
    (tmp_path / "taken.png").mkdir()
    (tmp_path / "file").touch()
    code, out, err = run(capsys, "generate", "a boat", "--output", output)
    assert (code, out) == (70, "")
    assert f"{output} could not be written" in err
    assert "loading" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken.png"]


def test_a_picture_whose_place_is_gone_when_it_is_made_is_kept_in_the_output_folder(capsys, tmp_path, monkeypatch):
    class Meanwhile(FakeGenerator):
        def generate(self, request, listener, cancel=None):
            (tmp_path / "p.png").mkdir()
            return super().generate(request, listener, cancel)

    monkeypatch.setattr("zimage_ui.runtime.make_generator", lambda *_: Meanwhile())
    code, out, err = run(capsys, "generate", "a boat", "--output", "p.png", "--output-dir", "pictures")
    (kept,) = (tmp_path / "pictures").glob("2*/*.png")
    assert (code, out) == (70, "")
    assert str(kept) in err
    assert read_metadata(kept) is not None


def test_a_jpeg_comes_after_the_settings_that_do_not_fit_into_it(capsys, tmp_path, monkeypatch):
    from zimage_ui import errand

    placed: list[str] = []
    really = errand._replace
    monkeypatch.setattr(errand, "_replace", lambda path, data: (placed.append(path.name), really(path, data)))
    long = "😀" * 8000
    assert run(capsys, "generate", long, "--negative-prompt", long, "--output", "p.jpg")[0] == 0
    assert placed == ["p.json", "p.jpg"]


def test_an_error_that_nobody_expected_is_one_message_too(capsys, caplog, monkeypatch):
    class Broken(FakeGenerator):
        def load(self, progress: ProgressListener) -> ModelInfo:
            raise RuntimeError("a library broke")

    monkeypatch.setattr("zimage_ui.runtime.make_generator", lambda *_: Broken())
    code, out, err = run(capsys, "generate", "x")
    assert (code, out) == (70, "")
    assert "RuntimeError: a library broke" in err
    assert "Traceback" not in err
    assert "Traceback" in caplog.text


def test_exit_codes_follow_the_tree_of_errors():
    from zimage_ui.cli import exit_code

    codes = {
        SettingsError: 78, OutputFolderError: 78, InvalidRequestError: 2, ModelNotFoundError: 69,
        DeviceMemoryError: 70, StorageError: 70,
    }  # fmt: skip
    assert {kind: exit_code(kind("x")) for kind in codes} == codes


def test_a_bad_errand_is_refused_before_anything_is_loaded():
    with pytest.raises(InvalidRequestError) as error:
        Errand({"prompt": "x", "height": 7})
    assert error.value.param == "height"
