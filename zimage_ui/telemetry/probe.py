"""What can be measured of the machine, as frozen snapshots. A sensor that cannot be read is None.

Three memory numbers exist and are never mixed: `nvml_used_bytes` here is what NVML reports for the whole card;
torch's allocated and reserved bytes are the generator's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuReading:
    """One NVIDIA GPU at one instant.

    Attributes:
        index, name, driver: which card, as NVML names it.
        utilization_pct: share of the last sample period in which a kernel ran.
        sm_clock_mhz, max_sm_clock_mhz, memory_clock_mhz: clocks.
        temperature_c: of the chip.
        power_w, power_limit_w: drawn and allowed.
        nvml_used_bytes, nvml_total_bytes: memory of the whole card, all processes.
        fan_pct: None on cards without one.
        throttle_reasons: why the clocks are held down, short names ("power cap", "thermal"); empty when they are not.
    """

    index: int
    name: str
    driver: str | None = None
    utilization_pct: float | None = None
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    nvml_used_bytes: int | None = None
    nvml_total_bytes: int | None = None
    fan_pct: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostReading:
    """The host at one instant.

    Attributes:
        cpu_name, cpu_count: for people; logical cores.
        cpu_pct: of all cores together, 0..100, since the reading before.
        memory_used_bytes, memory_total_bytes: RAM in use (total - available) and in all.
        process_rss_bytes: resident memory of this process.
        load_1m: load average.
    """

    cpu_name: str = ""
    cpu_count: int | None = None
    cpu_pct: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    process_rss_bytes: int | None = None
    load_1m: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that was read in one round.

    Attributes:
        at_s: monotonic seconds; `unix_s` the same instant for people.
        gpus: empty when there is none that NVML can see.
        gpu_note: a plain statement why there are no GPU numbers, or what they lack ("" when all is well).
        gpu_lost: a card of this process has stopped answering; work on it cannot be trusted to end.
        host: always there.
    """

    at_s: float
    unix_s: float
    gpus: tuple[GpuReading, ...] = ()
    gpu_note: str = ""
    gpu_lost: bool = False
    host: HostReading = field(default_factory=HostReading)


class Probe(Protocol):
    """Reads the machine. Called from the sampler's thread only; may block, must not raise for a missing sensor."""

    def read(self) -> Snapshot:
        """One round of all sensors."""

    def close(self) -> None:
        """Release the driver library."""
