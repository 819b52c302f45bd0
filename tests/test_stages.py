import dataclasses
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_ui.stages import MonotonicClock, Stage, Timings

MS = st.floats(min_value=0, max_value=1e7)


class ScriptedTime:
    """Stands in for the host's clock: each reading is the next of the script, in seconds."""

    def __init__(self, *readings_s: float) -> None:
        self._readings_s = list(readings_s)

    def perf_counter(self) -> float:
        return self._readings_s.pop(0)


def clock_at(monkeypatch: pytest.MonkeyPatch, *readings_s: float) -> MonotonicClock:
    monkeypatch.setattr("zimage_ui.stages.time", ScriptedTime(*readings_s))
    return MonotonicClock()


def test_the_stages_are_those_people_see_in_their_order():
    assert list(Stage) == ["encode", "sample", "decode", "save"]


def test_stages_touch_so_that_nothing_is_lost_between_them(monkeypatch: pytest.MonkeyPatch):
    clock = clock_at(monkeypatch, 1.0, 1.25, 3.25, 3.5)
    clock.start(Stage.ENCODE)
    clock.start(Stage.SAMPLE)
    clock.start(Stage.DECODE)
    clock.stop()
    assert clock.stage_ms() == {Stage.ENCODE: 250.0, Stage.SAMPLE: 2000.0, Stage.DECODE: 250.0}


def test_a_stage_that_starts_twice_adds_up_and_a_pause_counts_for_none(monkeypatch: pytest.MonkeyPatch):
    clock = clock_at(monkeypatch, 0.0, 1.0, 5.0, 7.0)
    clock.start(Stage.DECODE)
    clock.stop()
    clock.start(Stage.DECODE)
    clock.stop()
    assert clock.stage_ms() == {Stage.DECODE: 3000.0}


def test_a_stage_that_still_runs_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    clock = clock_at(monkeypatch, 0.0, 1.0)
    clock.start(Stage.ENCODE)
    clock.start(Stage.SAMPLE)
    assert clock.stage_ms() == {Stage.ENCODE: 1000.0}
    assert MonotonicClock().stage_ms() == {}


def test_the_clock_reads_the_time_that_really_passes():
    clock, begun_s = MonotonicClock(), time.perf_counter()
    clock.start(Stage.ENCODE)
    sum(range(100_000))
    clock.stop()
    assert 0 < clock.stage_ms()[Stage.ENCODE] <= (time.perf_counter() - begun_s) * 1e3


def test_an_account_names_every_part_and_what_no_stage_accounts_for():
    timings = Timings.account(
        queue_ms=10,
        stage_ms={Stage.ENCODE: 1, Stage.SAMPLE: 80, Stage.DECODE: 5, Stage.SAVE: 3},
        total_ms=100,
    )
    assert timings == Timings(
        queue_ms=10, encode_ms=1, sample_ms=80, decode_ms=5, save_ms=3, other_ms=1, total_ms=100
    )  # fmt: skip


def test_a_stage_that_did_not_happen_took_no_time():
    timings = Timings.account(queue_ms=0, stage_ms={Stage.SAMPLE: 7}, total_ms=7)
    assert (timings.encode_ms, timings.decode_ms, timings.save_ms, timings.other_ms) == (0, 0, 0, 0)


def test_two_clocks_that_disagree_by_a_hair_still_give_an_account_that_adds_up():
    timings = Timings.account(queue_ms=0, stage_ms={Stage.SAMPLE: 100.004}, total_ms=100)
    assert (timings.other_ms, timings.total_ms) == (0.0, 100.004)


@given(queue=MS, encode=MS, sample=MS, decode=MS, save=MS, total=MS)
def test_an_account_always_adds_up(
    queue: float, encode: float, sample: float, decode: float, save: float, total: float
):
    stage_ms = {Stage.ENCODE: encode, Stage.SAMPLE: sample, Stage.DECODE: decode, Stage.SAVE: save}
    timings = Timings.account(queue_ms=queue, stage_ms=stage_ms, total_ms=total)
    *parts, whole = dataclasses.astuple(timings)
    assert sum(parts) == pytest.approx(whole)
    assert min(parts) >= 0


def test_the_public_shape_is_to_the_microsecond():
    timings = Timings.account(queue_ms=1.23456, stage_ms={Stage.SAMPLE: 2.0}, total_ms=4)
    assert timings.as_dict() == {
        "queue": 1.235, "encode": 0.0, "sample": 2.0, "decode": 0.0, "save": 0.0, "other": 0.765, "total": 4,
    }  # fmt: skip
