"""Clocks that read the device's own time: CUDA events on the stream, resolved once at the end.

Recording an event costs a microsecond and waits for nothing. An event is stamped when the device reaches it, so the
stages of a job touch on the device's time line even though the host enqueues their work ahead of it.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch

from zimage_ui.stages import MonotonicClock, Stage, StageClock


class CudaEventClock:
    """A `StageClock` of CUDA events on the current stream of one device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[Stage | None, torch.cuda.Event]] = []

    def start(self, stage: Stage) -> None:
        """End the running stage, if any, and start `stage`, where the stream stands now."""
        self._mark(stage)

    def stop(self) -> None:
        """End the running stage where the stream stands now."""
        self._mark(None)

    def stage_ms(self) -> dict[Stage, float]:
        """The time of each stage that was started and ended, in milliseconds; waits for the last mark."""
        if self._marks:
            self._marks[-1][1].synchronize()
        total: dict[Stage, float] = {}
        for (stage, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            if stage is not None:
                total[stage] = total.get(stage, 0.0) + begun.elapsed_time(ended)
        return total

    def _mark(self, stage: Stage | None) -> None:
        self._marks.append((stage, _recorded(self._device)))


class Stopwatch(Protocol):
    """Times one stretch of work on a device."""

    def start(self) -> None:
        """The stretch begins with what is enqueued next."""

    def stop(self) -> None:
        """The stretch ends with what was enqueued last."""

    def elapsed_ms(self) -> float:
        """Its duration in milliseconds; waits until the device has done it."""


class HostStopwatch:
    """A `Stopwatch` for a device whose work is done when the call returns."""

    def __init__(self) -> None:
        self._begun = self._ended = 0.0

    def start(self) -> None:
        """Begin now."""
        self._begun = time.perf_counter()

    def stop(self) -> None:
        """End now."""
        self._ended = time.perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds from start to stop."""
        return (self._ended - self._begun) * 1e3


class CudaStopwatch:
    """A `Stopwatch` of two CUDA events on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun: torch.cuda.Event | None = None
        self._ended: torch.cuda.Event | None = None

    def start(self) -> None:
        """Begin where the stream stands now."""
        self._begun = _recorded(self._device)

    def stop(self) -> None:
        """End where the stream stands now."""
        self._ended = _recorded(self._device)

    def elapsed_ms(self) -> float:
        """Milliseconds from start to stop on the device; 0 when it was not stopped."""
        if self._begun is None or self._ended is None:
            return 0.0
        self._ended.synchronize()
        return self._begun.elapsed_time(self._ended)


def stage_clock(device: torch.device) -> StageClock:
    """The clock that tells the truth on `device`."""
    return CudaEventClock(device) if device.type == "cuda" else MonotonicClock()


def stopwatch(device: torch.device) -> Stopwatch:
    """The stopwatch that tells the truth on `device`."""
    return CudaStopwatch(device) if device.type == "cuda" else HostStopwatch()


def _recorded(device: torch.device) -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True, blocking=True)
    event.record(torch.cuda.current_stream(device))
    return event
