"""The four stages of a picture and the clocks that time them.

A clock is told when a stage starts; the stage before it ends at that same instant, so stages touch and nothing is lost
between them. `MonotonicClock` reads the host's monotonic clock; the generator has one of CUDA events for GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class Stage(StrEnum):
    """What people see a picture go through, in this order."""

    ENCODE = "encode"
    SAMPLE = "sample"
    DECODE = "decode"
    SAVE = "save"


class StageClock(Protocol):
    """Times stages that follow each other without a gap."""

    def start(self, stage: Stage) -> None:
        """End the running stage, if any, and start `stage`."""

    def stop(self) -> None:
        """End the running stage."""

    def stage_ms(self) -> dict[Stage, float]:
        """The time of each stage that was started, in milliseconds; a stage started twice adds up."""


class MonotonicClock:
    """A `StageClock` on the host's monotonic clock; right wherever work is done when the call returns."""

    def __init__(self) -> None:
        self._marks: list[tuple[Stage | None, float]] = []

    def start(self, stage: Stage) -> None:
        """End the running stage, if any, and start `stage`."""
        self._marks.append((stage, time.perf_counter()))

    def stop(self) -> None:
        """End the running stage."""
        self._marks.append((None, time.perf_counter()))

    def stage_ms(self) -> dict[Stage, float]:
        """The time of each stage that was started and ended, in milliseconds."""
        total: dict[Stage, float] = {}
        for (stage, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            if stage is not None:
                total[stage] = total.get(stage, 0.0) + (ended - begun) * 1e3
        return total


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one job went, in milliseconds: queue + encode + sample + decode + save + other = total.

    `queue_ms` is the wait before the first stage, `save_ms` runs from the end of decode until the last picture of the
    job lies on disk (waiting for a saver thread included), `other_ms` is what no stage accounts for.
    """

    queue_ms: float
    encode_ms: float
    sample_ms: float
    decode_ms: float
    save_ms: float
    other_ms: float
    total_ms: float

    @classmethod
    def account(cls, *, queue_ms: float, stage_ms: Mapping[Stage, float], total_ms: float) -> Timings:
        """Build the account from its measured parts; `other_ms` is the remainder (never below zero).

        A GPU's clock and the host's disagree by microseconds: where the parts come to more than `total_ms`, their sum
        is the total.
        """
        parts = {stage: stage_ms.get(stage, 0.0) for stage in Stage}
        accounted_ms = queue_ms + sum(parts.values())
        return cls(
            queue_ms=queue_ms,
            encode_ms=parts[Stage.ENCODE],
            sample_ms=parts[Stage.SAMPLE],
            decode_ms=parts[Stage.DECODE],
            save_ms=parts[Stage.SAVE],
            other_ms=max(0.0, total_ms - accounted_ms),
            total_ms=max(total_ms, accounted_ms),
        )

    def as_dict(self) -> dict[str, float]:
        """The public `timings_ms` shape: {queue, encode, sample, decode, save, other, total}, to the microsecond."""
        return {
            "queue": round(self.queue_ms, 3),
            "encode": round(self.encode_ms, 3),
            "sample": round(self.sample_ms, 3),
            "decode": round(self.decode_ms, 3),
            "save": round(self.save_ms, 3),
            "other": round(self.other_ms, 3),
            "total": round(self.total_ms, 3),
        }
