"""Under which conditions a figure was taken: the GPU's clocks, temperature, power and what held it down.

Read by the product's own probe, before, during (on a thread, every half second) and after; so is the memory in use on
the whole card, which no torch counter knows. Without a GPU the same is told with a note and no numbers.
"""

from __future__ import annotations

import statistics
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from zimage_ui.telemetry.probe import GpuReading, Probe, Snapshot

INTERVAL_S = 0.5
_SENSORS = ("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w")


class Watch:
    """Reads `probe` around and during what runs inside it, as a context manager.

    Args:
        probe: stays open.
        interval_s: from one reading to the next.
    """

    def __init__(self, probe: Probe, interval_s: float = INTERVAL_S) -> None:
        self._probe = probe
        self._interval_s = interval_s
        self._snapshots: list[Snapshot] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bench-conditions", daemon=True)

    def __enter__(self) -> Watch:
        self._snapshots.append(self._probe.read())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._snapshots.append(self._probe.read())

    def summary(self) -> dict[str, Any]:
        """What was read, the first and the last reading whole, the ones between as least, median and most."""
        readings = [snapshot.gpus[0] for snapshot in self._snapshots if snapshot.gpus]
        if not readings:
            return {"note": self._snapshots[-1].gpu_note}
        during = readings[1:-1] or readings
        return {
            "gpu": readings[0].name,
            "driver": readings[0].driver,
            "power_limit_w": readings[0].power_limit_w,
            "max_sm_clock_mhz": readings[0].max_sm_clock_mhz,
            "before": _instant(readings[0]),
            "during": {"readings": len(during), **{name: _range(during, name) for name in _SENSORS}},
            "after": _instant(readings[-1]),
            "throttled_share": _throttled(during),
            "nvml_peak_bytes": max((each.nvml_used_bytes or 0 for each in readings), default=None),
        }

    def _run(self) -> None:
        while not self._stop.wait(self._interval_s):
            self._snapshots.append(self._probe.read())


def _instant(reading: GpuReading) -> dict[str, Any]:
    return {name: getattr(reading, name) for name in (*_SENSORS, "nvml_used_bytes", "throttle_reasons")}


def _range(readings: Sequence[GpuReading], name: str) -> dict[str, float] | None:
    values = [value for each in readings if (value := getattr(each, name)) is not None]
    return {"min": min(values), "median": statistics.median(values), "max": max(values)} if values else None


def _throttled(readings: Sequence[GpuReading]) -> dict[str, float]:
    """Of each reason, the share of readings that named it."""
    counts = Counter(reason for each in readings for reason in each.throttle_reasons or ())
    return {reason: round(count / len(readings), 3) for reason, count in counts.most_common()}
