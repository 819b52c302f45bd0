import itertools
import json
from pathlib import Path

import pytest

from bench import mini, report


def test_prompts_are_all_different_and_in_both_languages():
    texts = list(mini.prompts())
    assert len(set(texts)) == len(texts) == 2 * 6 * 5 * 6
    assert list(itertools.islice(texts, 2)) == ["a red circle on a green background", "绿色背景上的红色圆形"]


@pytest.mark.model
def test_the_comparison_runs_and_both_make_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    import torch

    from zimage_ui.generator.untrained import TINY, build_untrained_model

    folder, threads = build_untrained_model(tmp_path / "tiny", TINY), torch.get_num_threads()
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(mini, "LOADS", 1)
    mini.main(["--model", str(folder), "--sides", "64", "--rounds", "2", "--threads", str(threads)])
    result = json.loads((tmp_path / "results" / "mini.json").read_text("utf-8"))
    figures = result["sizes"]["64x64"]
    assert figures["largest_difference_of_255"] <= 1
    assert {name: len(rows) for name, rows in figures["rounds_ms"].items()} == {"ours": 2, "stock": 2}
    for row in (row for rows in figures["rounds_ms"].values() for row in rows):
        assert sum(row[stage] for stage in mini.STAGES) == pytest.approx(row["total"], rel=0.2)
    assert (figures["bar_ms"], figures["meets_bar"]) == (None, None)
    assert result["load"]["median_ms"]["load"] > 0
    assert result["size_mb"] == pytest.approx(sum(f.stat().st_size for f in folder.rglob("*.*")) / 1e6, abs=0.01)
    assert {"date", "command", "machine", "versions", "device", "threads", "steps"} <= set(result)
    assert "of stock's time; pixels differ by at most" in capsys.readouterr().out
