"""The host's own sensors: processor, memory, load, and this process. Always there, with or without a GPU."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from zimage_ui.telemetry.probe import HostReading, Snapshot

_CPUINFO = Path("/proc/cpuinfo")
# x86 and RISC-V name the processor per core; many ARM boards only name the board, at the end.
_NAME_KEYS = ("model name", "uarch", "Model", "Hardware")


def cpu_name(cpuinfo: Path = _CPUINFO) -> str:
    """The processor's name for people; the architecture where the kernel names none."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named: dict[str, str] = {}
    for line in lines:
        key, colon, value = line.partition(":")
        if colon:
            named.setdefault(key.strip(), " ".join(value.split()))
    return next((named[key] for key in _NAME_KEYS if named.get(key)), platform.machine())


class HostReader:
    """Reads the host; a sensor that the system denies is None.

    Args:
        library: psutil, or something with its functions.
    """

    def __init__(self, library: Any = psutil) -> None:
        self._library = library
        self._denied = (OSError, AttributeError, NotImplementedError, psutil.Error)
        self._cpu_name = cpu_name()
        self._cpu_count: int | None = self._read(library.cpu_count)
        self._process: Any = self._read(library.Process)
        # The first percentage would be that of an interval without a beginning: 0.0.
        self._read(self._cpu_pct)

    def read(self) -> HostReading:
        """All sensors once; takes well under a millisecond."""
        used, total = self._read(self._memory) or (None, None)
        return HostReading(
            cpu_name=self._cpu_name,
            cpu_count=self._cpu_count,
            cpu_pct=self._read(self._cpu_pct),
            memory_used_bytes=used,
            memory_total_bytes=total,
            process_rss_bytes=self._read(self._rss),
            load_1m=self._read(lambda: float(self._library.getloadavg()[0])),
        )

    def _cpu_pct(self) -> float:
        return float(self._library.cpu_percent(interval=None))

    def _memory(self) -> tuple[int, int]:
        memory = self._library.virtual_memory()
        return int(memory.total - memory.available), int(memory.total)

    def _rss(self) -> int:
        return int(self._process.memory_info().rss)

    def _read(self, sensor: Callable[[], Any]) -> Any:
        try:
            return sensor()
        except self._denied:
            return None


class HostProbe:
    """A `Probe` for machines without an NVIDIA GPU.

    Args:
        gpu_note: why there are no GPU numbers, for people.
        host: reads the host's sensors.
    """

    def __init__(self, gpu_note: str, host: HostReader | None = None) -> None:
        self.gpu_note = gpu_note
        self._host = host or HostReader()

    def read(self) -> Snapshot:
        """The host's sensors, and the note in the GPU's place."""
        return Snapshot(at_s=time.monotonic(), unix_s=time.time(), gpu_note=self.gpu_note, host=self._host.read())

    def close(self) -> None:
        """Nothing to release."""
