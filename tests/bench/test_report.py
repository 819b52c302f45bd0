import json
from pathlib import Path

import pytest

from bench.report import PartedResult, commit


def call(day: int) -> dict[str, object]:
    return {"date": f"2026-01-{day:02}", "command": f"call {day}"}


def test_parts_of_several_calls_become_one_result(tmp_path: Path):
    path = tmp_path / "results" / "engine.json"
    first = PartedResult(path, call(1))
    first.put(("sizes", "512x512", "stock"), {"ms": 5})
    first.put(("peak",), {"tflops": 700})
    PartedResult(path, call(2)).put(("sizes", "512x512", "exact"), {"ms": 2})
    stored = json.loads(path.read_text("utf-8"))
    assert stored["parts"] == {
        "sizes": {"512x512": {"stock": {"call": "2026-01-01", "ms": 5}, "exact": {"call": "2026-01-02", "ms": 2}}},
        "peak": {"call": "2026-01-01", "tflops": 700},
    }
    assert stored["calls"] == {"2026-01-01": call(1), "2026-01-02": call(2)}
    assert [file.name for file in path.parent.iterdir()] == ["engine.json"]


def test_a_part_measured_again_replaces_the_old_one_and_an_empty_call_goes(tmp_path: Path):
    path = tmp_path / "engine.json"
    PartedResult(path, call(1)).put(("peak",), {"tflops": 1})
    PartedResult(path, call(2)).put(("peak",), {"tflops": 2})
    stored = json.loads(path.read_text("utf-8"))
    assert stored == {"calls": {"2026-01-02": call(2)}, "parts": {"peak": {"call": "2026-01-02", "tflops": 2}}}


def test_what_is_no_result_is_not_overwritten(tmp_path: Path):
    path = tmp_path / "engine.json"
    path.write_text("not JSON")
    with pytest.raises(ValueError, match="Expecting value"):
        PartedResult(path, call(1))
    assert path.read_text() == "not JSON"


def test_the_commit_is_named_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("bench.report.ROOT", tmp_path)
    assert commit() is None
