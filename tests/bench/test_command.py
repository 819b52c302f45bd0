import argparse
import json
from pathlib import Path

import pytest

from bench.command import Turns, completed, model_parser, parse_size, size_name
from bench.report import PartedResult


def test_a_size_is_read_as_it_is_written():
    assert parse_size("832x1248") == (832, 1248)
    assert size_name(parse_size("832x1248")) == "832x1248"
    for text in ("large", "832", "832x", "1x2x3"):
        with pytest.raises(argparse.ArgumentTypeError, match=rf"^'{text}' is no size such as 832x1248$"):
            parse_size(text)


def test_a_tiny_model_never_touches_the_stored_result(tmp_path: Path):
    folder = tmp_path / "model"
    options = completed(model_parser("memory", None).parse_args([str(folder), "--tiny"]), "memory")
    assert options.result == tmp_path / "model.memory.json"
    options = completed(model_parser("memory", None).parse_args([str(folder)]), "memory")
    assert options.result.parts[-3:] == ("bench", "results", "memory.json")


def fail() -> dict:
    raise MemoryError("too little")


@pytest.fixture
def result(tmp_path: Path) -> PartedResult:
    return PartedResult(tmp_path / "result.json", {"date": "2026-01-01"})


def stored(result: PartedResult) -> dict:
    return json.loads(result.path.read_text("utf-8"))["parts"]


@pytest.mark.parametrize("keep_failures", [False, True])
def test_what_fails_is_told_and_the_next_part_has_its_turn(
    result: PartedResult, capsys: pytest.CaptureFixture[str], keep_failures: bool
):
    turns = Turns(result, 60, keep_failures=keep_failures)
    turns.measure(("first", "a"), lambda: {"figure": 1})
    turns.measure(("first", "a"), fail)
    turns.measure(("second",), lambda: {"figure": 2})
    assert turns.left_out == ["first/a"]
    assert stored(result)["second"]["figure"] == 2
    kept = {"failed": "MemoryError: too little"} if keep_failures else {"figure": 1}
    assert stored(result)["first"]["a"] == {"call": "2026-01-01", **kept}
    told = capsys.readouterr()
    assert "MemoryError: too little" in told.err
    assert "second: done in" in told.out


def test_nothing_begins_when_the_time_is_up(result: PartedResult, capsys: pytest.CaptureFixture[str]):
    turns = Turns(result, 0, keep_failures=True)
    turns.measure(("late",), lambda: {"figure": 1})
    assert turns.left_out == ["late"]
    assert not result.path.exists()
    assert "late: left out, the time is up" in capsys.readouterr().out
