"""The device's clocks, with scripted events in the place of CUDA's."""

import pytest
import torch

from zimage_ui.generator import clock
from zimage_ui.generator.clock import CudaEventClock, CudaStopwatch, HostStopwatch, stage_clock, stopwatch
from zimage_ui.stages import MonotonicClock, Stage

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class ScriptedEvents:
    """Each event is stamped with the next time of the script, in ms; synchronisations are counted."""

    def __init__(self, *times_ms: float) -> None:
        self._times = iter(times_ms)
        self.synchronised: list[float] = []

    def record(self, device: torch.device) -> "ScriptedEvents._Event":
        return self._Event(next(self._times), self.synchronised)

    class _Event:
        def __init__(self, at_ms: float, synchronised: list[float]) -> None:
            self.at_ms, self._synchronised = at_ms, synchronised

        def synchronize(self) -> None:
            self._synchronised.append(self.at_ms)

        def elapsed_time(self, later: "ScriptedEvents._Event") -> float:
            return later.at_ms - self.at_ms


def script(monkeypatch: pytest.MonkeyPatch, *times_ms: float) -> ScriptedEvents:
    events = ScriptedEvents(*times_ms)
    monkeypatch.setattr(clock, "_recorded", events.record)
    return events


def test_stages_touch_on_the_devices_time_line(monkeypatch):
    events = script(monkeypatch, 10.0, 15.0, 115.0, 140.0)
    timed = CudaEventClock(CUDA)
    for stage in (Stage.ENCODE, Stage.SAMPLE, Stage.DECODE):
        timed.start(stage)
    timed.stop()
    assert events.synchronised == []  # nothing waits before the times are asked for
    assert timed.stage_ms() == {Stage.ENCODE: 5.0, Stage.SAMPLE: 100.0, Stage.DECODE: 25.0}
    assert events.synchronised == [140.0]


def test_a_stage_that_comes_twice_adds_up(monkeypatch):
    script(monkeypatch, 0.0, 1.0, 3.0, 6.0)
    timed = CudaEventClock(CUDA)
    for stage in (Stage.ENCODE, Stage.SAMPLE, Stage.ENCODE):
        timed.start(stage)
    timed.stop()
    assert timed.stage_ms() == {Stage.ENCODE: 4.0, Stage.SAMPLE: 2.0}


def test_a_clock_that_never_ran_has_no_stages():
    assert CudaEventClock(CUDA).stage_ms() == {}


def test_a_stopwatch_reads_the_devices_time(monkeypatch):
    script(monkeypatch, 2.0, 9.5)
    watch = CudaStopwatch(CUDA)
    assert watch.elapsed_ms() == 0.0
    watch.start()
    watch.stop()
    assert watch.elapsed_ms() == 7.5


def test_each_device_gets_the_clock_that_tells_the_truth_there(monkeypatch):
    assert isinstance(stage_clock(CPU), MonotonicClock)
    assert isinstance(stopwatch(CPU), HostStopwatch)
    assert isinstance(stage_clock(CUDA), CudaEventClock)
    assert isinstance(stopwatch(CUDA), CudaStopwatch)
