"""NVIDIA GPUs through NVML; the only importer of pynvml (the module of the `nvidia-ml-py` distribution).

The library is loaded when a probe is opened, never at import. Each sensor stands for itself: what a card does not
support, or the driver cannot tell just now, is None. A card that stops answering is reported as lost, and NVML is
opened anew after 1, 2, 4, ... 60 seconds.

What this module does not know: CUDA numbers cards by speed unless `CUDA_DEVICE_ORDER=PCI_BUS_ID`, NVML by PCI bus. On
a machine with different cards only the UUID form of `CUDA_VISIBLE_DEVICES` is sure to name the same card to both.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zimage_ui.telemetry.host import HostProbe, HostReader
from zimage_ui.telemetry.probe import GpuReading, Probe, Snapshot

_log = logging.getLogger(__name__)

_FIRST_RETRY_S, _LAST_RETRY_S = 1.0, 60.0
_CLOSE_WAIT_S = 1.0

# nvmlClocksEventReasons, nvml.h. "GPU idle" (bit 0) is left out: clocks of a card without work are not held down.
_IDLE_BIT = 0x1
_THROTTLE_REASONS = {
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal",
    0x040: "hardware thermal",
    0x080: "power brake",
    0x100: "display clock",
    0x200: "board limit",
    0x400: "reliability",
}

# By the error's class name in pynvml, without the prefix NVMLError_.
_NOTES = {
    "LibraryNotFound": "No NVIDIA GPU: NVML library not found.",
    "DriverNotLoaded": "No NVIDIA GPU: the driver is not loaded.",
    "LibRmVersionMismatch": "NVIDIA library and kernel driver have different versions: restart the machine.",
    "FunctionNotFound": "The NVIDIA driver is too old for its sensors to be read.",
    "NoPermission": "No permission to read the NVIDIA GPU's sensors.",
    "GpuIsLost": "The NVIDIA GPU has stopped answering (fallen off the bus).",
    "ResetRequired": "The NVIDIA GPU needs a reset before it answers again.",
    "GpuNotFound": "No NVIDIA GPU.",
}
_LOST = frozenset({"GpuIsLost", "ResetRequired"})
# Errors of NVML as a whole rather than of one sensor: nothing more can be read until it is opened anew.
_FATAL = _LOST | {"Uninitialized", "DriverNotLoaded", "LibRmVersionMismatch"}
_NO_VALUE = frozenset({2**32 - 1, 2**64 - 1})


class NvmlUnavailableError(Exception):
    """NVML gives no GPU to read.

    Attributes:
        note: why, as a plain statement for people.
        lost: a card was there and has stopped answering.
    """

    def __init__(self, note: str, *, lost: bool = False) -> None:
        super().__init__(note)
        self.note = note
        self.lost = lost


def open_probe(visible_devices: str | None = None, library: Any = None) -> Probe:
    """The best probe that this machine allows: its NVIDIA GPUs and the host, or the host alone with a plain note.

    Args:
        visible_devices: the value of `CUDA_VISIBLE_DEVICES`, None when it is not set.
        library: something with pynvml's functions; pynvml itself when None.
    """
    try:
        return NvmlProbe(library, visible_devices=visible_devices)
    except NvmlUnavailableError as error:
        _log.info("No GPU sensors: %s", error.note)
        return HostProbe(error.note)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What does not change while a card is open."""

    handle: Any
    index: int
    name: str
    driver: str | None
    max_sm_clock_mhz: float | None


class NvmlProbe:
    """A `Probe` that reads every GPU of this process through NVML, and the host.

    Args:
        library: something with pynvml's functions; pynvml itself when None.
        visible_devices: the value of `CUDA_VISIBLE_DEVICES`, None when it is not set.
        host: reads the host's sensors.
        clock: monotonic seconds.

    Raises:
        NvmlUnavailableError: there is no library, no driver or no GPU.
    """

    def __init__(
        self,
        library: Any = None,
        *,
        visible_devices: str | None = None,
        host: HostReader | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._nvml = _load_library() if library is None else library
        self._visible_devices = visible_devices
        self._host = host or HostReader()
        self._clock = clock
        self._lock = threading.Lock()
        self._cards: tuple[_Card, ...] = ()
        self._note = ""
        self._lost = False
        self._retry_s = _FIRST_RETRY_S
        self._retry_at_s: float | None = None
        self._open()

    def read(self) -> Snapshot:
        """One round of all sensors; a card that has stopped answering leaves a note instead of numbers."""
        with self._lock:
            gpus = self._read_cards()
            return Snapshot(
                at_s=time.monotonic(),
                unix_s=time.time(),
                gpus=gpus,
                gpu_note=self._note,
                gpu_lost=self._lost,
                host=self._host.read(),
            )

    def close(self) -> None:
        """Release the driver library, unless a reading hangs in it."""
        if self._lock.acquire(timeout=_CLOSE_WAIT_S):
            try:
                self._cards = ()
                self._shut_down()
            finally:
                self._lock.release()

    def _read_cards(self) -> tuple[GpuReading, ...]:
        try:
            if self._retry_at_s is not None:
                if self._clock() < self._retry_at_s:
                    return ()
                self._shut_down()
                self._open()
            return tuple(self._read_card(card) for card in self._cards)
        except NvmlUnavailableError as error:
            self._back_off(error)
        except self._nvml.NVMLError as error:
            self._back_off(_unavailable(error))
        return ()

    def _back_off(self, error: NvmlUnavailableError) -> None:
        if not self._note:
            _log.warning("GPU sensors lost: %s", error.note)
        self._note, self._lost = error.note, error.lost
        self._cards = ()
        self._retry_at_s = self._clock() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _open(self) -> None:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            raise _unavailable(error) from error
        try:
            self._cards = self._chosen(self._find_cards())
        except self._nvml.NVMLError as error:
            self._shut_down()
            raise _unavailable(error) from error
        except NvmlUnavailableError:
            self._shut_down()
            raise
        self._retry_s, self._retry_at_s = _FIRST_RETRY_S, None

    def _shut_down(self) -> None:
        with contextlib.suppress(self._nvml.NVMLError):
            self._nvml.nvmlShutdown()

    def _find_cards(self) -> tuple[_Card, ...]:
        """All cards that answer; those that do not are noted, and all of them silent is an error."""
        driver = self._text("nvmlSystemGetDriverVersion") or None
        cards, silent = [], []
        for index in range(self._nvml.nvmlDeviceGetCount()):
            try:
                cards.append(self._open_card(index, driver))
            except self._nvml.NVMLError as error:
                silent.append((index, _unavailable(error)))
        if not cards:
            raise silent[0][1] if silent else NvmlUnavailableError("No NVIDIA GPU: NVML sees none.")
        self._note = " ".join(f"GPU {index}: {error.note}" for index, error in silent)
        self._lost = any(error.lost for _, error in silent)
        return tuple(cards)

    def _open_card(self, index: int, driver: str | None) -> _Card:
        handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
        return _Card(
            handle=handle,
            index=index,
            name=self._text("nvmlDeviceGetName", handle) or f"GPU {index}",
            driver=driver,
            max_sm_clock_mhz=self._number("nvmlDeviceGetMaxClockInfo", handle, self._nvml.NVML_CLOCK_SM),
        )

    def _chosen(self, cards: tuple[_Card, ...]) -> tuple[_Card, ...]:
        """The cards that `CUDA_VISIBLE_DEVICES` leaves to this process, in its order; all of them when it is not set.

        Like CUDA, takes indices and (shortened) UUIDs, and stops at the first entry that names no card.
        """
        if self._visible_devices is None:
            return cards
        entries = [entry.strip() for entry in self._visible_devices.split(",")]
        if any(entry.startswith("MIG-") for entry in entries):
            self._note = f"{self._note} This process uses a MIG slice; the numbers are of whole cards.".strip()
            return cards
        chosen: list[_Card] = []
        for entry in entries:
            card = next((card for card in cards if self._is_named(card, entry)), None)
            if card is None:
                break
            chosen.append(card)
        if not chosen:
            raise NvmlUnavailableError(f"CUDA_VISIBLE_DEVICES={self._visible_devices} leaves no GPU to this process.")
        return tuple(chosen)

    def _is_named(self, card: _Card, entry: str) -> bool:
        if entry.isdecimal():
            return card.index == int(entry)
        return entry.startswith("GPU-") and self._text("nvmlDeviceGetUUID", card.handle).startswith(entry)

    def _read_card(self, card: _Card) -> GpuReading:
        nvml, handle = self._nvml, card.handle
        utilization = self._call("nvmlDeviceGetUtilizationRates", handle)
        memory = self._memory(handle)
        return GpuReading(
            index=card.index,
            name=card.name,
            driver=card.driver,
            utilization_pct=None if utilization is None else float(utilization.gpu),
            sm_clock_mhz=self._number("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            max_sm_clock_mhz=card.max_sm_clock_mhz,
            memory_clock_mhz=self._number("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            temperature_c=self._temperature(handle),
            power_w=self._watts("nvmlDeviceGetPowerUsage", handle),
            power_limit_w=self._watts("nvmlDeviceGetEnforcedPowerLimit", handle),
            nvml_used_bytes=None if memory is None else int(memory.used),
            nvml_total_bytes=None if memory is None else int(memory.total),
            fan_pct=self._number("nvmlDeviceGetFanSpeed", handle),
            throttle_reasons=self._throttle_reasons(handle),
        )

    def _temperature(self, handle: Any) -> float | None:
        # The plain function is announced to go with CUDA 14, the versioned one is missing from older drivers.
        for function in ("nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV"):
            celsius = self._number(function, handle, self._nvml.NVML_TEMPERATURE_GPU)
            if celsius is not None:
                return celsius
        return None

    def _memory(self, handle: Any) -> Any:
        """Version 2 counts as nvidia-smi does; in version 1, `used` holds the driver's reserve too."""
        version = getattr(self._nvml, "nvmlMemory_v2", None)
        memory = None if version is None else self._call("nvmlDeviceGetMemoryInfo", handle, version)
        return memory if memory is not None else self._call("nvmlDeviceGetMemoryInfo", handle)

    def _throttle_reasons(self, handle: Any) -> tuple[str, ...] | None:
        # Drivers before 535 know the older of the two names only.
        for function in ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"):
            bits = self._call(function, handle)
            if bits is not None:
                return throttle_reason_names(int(bits))
        return None

    def _watts(self, function: str, handle: Any) -> float | None:
        milliwatts = self._number(function, handle)
        return None if milliwatts is None else milliwatts / 1e3

    def _number(self, function: str, *arguments: Any) -> float | None:
        value = self._call(function, *arguments)
        return None if value is None or value in _NO_VALUE else float(value)

    def _text(self, function: str, *arguments: Any) -> str:
        """Text as str, whichever pynvml answers; "" when there is none."""
        value = self._call(function, *arguments)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")

    def _call(self, function: str, *arguments: Any) -> Any:
        """What NVML answers; None where this card, driver or library has no answer.

        Raises:
            NVMLError: NVML as a whole, or this card, has stopped answering.
        """
        called = getattr(self._nvml, function, None)
        if called is None:
            return None
        try:
            return called(*arguments)
        except self._nvml.NVMLError as error:
            if _kind(error) in _FATAL:
                raise
            return None


def throttle_reason_names(bits: int) -> tuple[str, ...]:
    """Short names of the reasons in an NVML bit field that hold the clocks down; unknown bits keep their number."""
    names = tuple(name for bit, name in _THROTTLE_REASONS.items() if bits & bit)
    unknown = bits & ~(_IDLE_BIT | sum(_THROTTLE_REASONS))
    return (*names, f"unknown ({unknown:#x})") if unknown else names


def _load_library() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NvmlUnavailableError("No GPU sensors: the package nvidia-ml-py is not installed.") from error
    return pynvml


def _kind(error: Exception) -> str:
    return type(error).__name__.removeprefix("NVMLError_")


def _unavailable(error: Exception) -> NvmlUnavailableError:
    """The one place where an NVML error becomes a statement for people."""
    kind = _kind(error)
    return NvmlUnavailableError(_NOTES.get(kind, f"The NVIDIA GPU cannot be read: {error}."), lost=kind in _LOST)
