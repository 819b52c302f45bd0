"""A scripted probe: deterministic readings, errors and hangs on cue, without a GPU or a driver."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from zimage_ui.telemetry.probe import GpuReading, HostReading, Snapshot

_GIB = 2**30


def fake_gpu(busy: float = 0.0, *, index: int = 0, name: str = "Fake GPU 16 GB") -> GpuReading:
    """A card of 16 GiB that is `busy` from 0 to 1: everything else follows from that."""
    return GpuReading(
        index=index,
        name=name,
        driver="999.00",
        utilization_pct=100.0 * busy,
        sm_clock_mhz=300.0 + 2_100.0 * busy,
        max_sm_clock_mhz=2_475.0,
        memory_clock_mhz=405.0 + 8_596.0 * busy,
        temperature_c=38.0 + 40.0 * busy,
        power_w=12.0 + 148.0 * busy,
        power_limit_w=165.0,
        nvml_used_bytes=int((1 + 11 * busy) * _GIB),
        nvml_total_bytes=16 * _GIB,
        fan_pct=30.0 + 40.0 * busy,
        throttle_reasons=("power cap",) if busy > 0.9 else (),
    )


def fake_host() -> HostReading:
    """A small quiet host."""
    return HostReading(
        cpu_name="Fake CPU",
        cpu_count=2,
        cpu_pct=12.5,
        memory_used_bytes=3 * _GIB,
        memory_total_bytes=16 * _GIB,
        process_rss_bytes=_GIB // 2,
        load_1m=0.25,
    )


_RISE_AND_FALL = (0.0, 0.25, 0.5, 0.75, 1.0, 0.5)


@dataclass
class FakeProbe:
    """A `Probe` that plays a script, over and over.

    Attributes:
        script: what each reading gives: a snapshot (stamped with the time of the reading) or an error (raised).
        gate: when given, each reading waits for it to be set: a driver that hangs.
        entered: set when a reading has begun, before it waits at the gate.
        closed: whether `close` was called.
    """

    script: Iterable[Snapshot | Exception] = tuple(
        Snapshot(at_s=0.0, unix_s=0.0, gpus=(fake_gpu(busy),), host=fake_host()) for busy in _RISE_AND_FALL
    )
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    def __post_init__(self) -> None:
        self._readings = itertools.cycle(self.script)

    def read(self) -> Snapshot:
        """The next reading of the script.

        Raises:
            Exception: the script says so.
        """
        self.entered.set()
        if self.gate is not None:
            self.gate.wait()
        reading = next(self._readings)
        if isinstance(reading, Exception):
            raise reading
        return replace(reading, at_s=time.monotonic(), unix_s=time.time())

    def close(self) -> None:
        """Remember that it was called."""
        self.closed = True
