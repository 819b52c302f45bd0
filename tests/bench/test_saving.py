import json

import pytest

from bench import report, saving
from zimage_ui.errors import StorageError
from zimage_ui.storage.files import OutputFolder

PICTURE_MS = 4.0


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


def _run(tmp_path, *more):
    saving.main(
        ["--side", "64", "--pictures", "3", "--rounds", "2", "--picture-ms", str(PICTURE_MS), "--folder", str(tmp_path),
         "--generators", "device", "launch", *more]
    )  # fmt: skip


def test_the_comparison_runs_and_says_how_it_was_made(tmp_path, results, capsys):
    _run(tmp_path, "--formats", "png", "jpeg", "webp")
    result = json.loads((results / "saving.json").read_text("utf-8"))
    assert [(row["generator"], row["image_format"]) for row in result["rows"]] == [
        (generator, image_format) for generator in ("device", "launch") for image_format in ("png", "jpeg", "webp")
    ]
    for row in result["rows"]:
        assert set(row["pictures_per_s"]) == {"off", "inline", "background"}
        assert all(ratio > 0 for ratio in row["ratio_to_off"].values())
        assert len(row["ratios_of_rounds"]["background"]) == 2
        assert row["mean_picture_kib"] > 0
    waited = [row["pictures_per_s"]["off"] for row in result["rows"] if row["generator"] == "device"]
    assert max(waited) <= 1e3 / PICTURE_MS
    assert {"date", "command", "machine", "versions", "disk", "bar", "side", "pictures", "rounds"} <= set(result)
    assert capsys.readouterr().out.count("pictures/s: off") == 6
    assert list(tmp_path.glob("bench-saving-*")) == []


def test_pictures_that_are_not_saved_make_the_comparison_void(tmp_path, results, monkeypatch):
    monkeypatch.setattr(saving, "MODES", ("off", "background"))
    monkeypatch.setattr(OutputFolder, "write_all", lambda self, files: [StorageError("full") for _ in files])
    with pytest.raises(SystemExit, match="background: 0 of 3 pictures are listed"):
        _run(tmp_path, "--formats", "png")
    assert not (results / "saving.json").exists()
