from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from zimage_ui.telemetry.host import HostProbe
from zimage_ui.telemetry.nvml import NvmlProbe, NvmlUnavailableError, open_probe, throttle_reason_names

GIB = 2**30
UUIDS = ("GPU-aaaa1111-0000", "GPU-bbbb2222-0000")


def error(name: str) -> Exception:
    """A true pynvml error, made as pynvml makes it."""
    raised: Exception = pynvml.NVMLError(getattr(pynvml, name))
    return raised


class StandInNvml:
    """pynvml with scripted answers; constants and error classes are the installed library's own.

    `answers` maps a function to its value, to an exception to raise, or to a function of its arguments.
    """

    def __init__(self, cards: int = 1, **answers: Any) -> None:
        self.answers: dict[str, Any] = {
            "nvmlInit": None,
            "nvmlShutdown": None,
            "nvmlSystemGetDriverVersion": "570.86.15",
            "nvmlDeviceGetCount": cards,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda card: f"NVIDIA Test {card}",
            "nvmlDeviceGetUUID": lambda card: UUIDS[card],
            "nvmlDeviceGetMaxClockInfo": lambda card, kind: {pynvml.NVML_CLOCK_SM: 1980}[kind],
            "nvmlDeviceGetClockInfo": lambda card, kind: {pynvml.NVML_CLOCK_SM: 1755, pynvml.NVML_CLOCK_MEM: 2619}[
                kind
            ],
            "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=41),
            "nvmlDeviceGetTemperature": lambda card, sensor: {pynvml.NVML_TEMPERATURE_GPU: 61}[sensor],
            "nvmlDeviceGetPowerUsage": 512_345,
            "nvmlDeviceGetEnforcedPowerLimit": 700_000,
            "nvmlDeviceGetMemoryInfo": self._memory,
            "nvmlDeviceGetFanSpeed": 44,
            "nvmlDeviceGetCurrentClocksEventReasons": pynvml.nvmlClocksEventReasonSwPowerCap,
            **answers,
        }
        self.calls: list[str] = []
        self.missing: set[str] = set()

    def _memory(self, card: int, version: int | None = None) -> SimpleNamespace:
        reserved = 0 if version == pynvml.nvmlMemory_v2 else GIB
        return SimpleNamespace(total=80 * GIB, used=20 * GIB + reserved, free=59 * GIB)

    def __getattr__(self, name: str) -> Any:
        if name in self.missing:
            raise AttributeError(name)
        real = getattr(pynvml, name)  # a name that the library does not have is a mistake of ours
        if not name.startswith("nvml") or not callable(real):
            return real
        return lambda *arguments: self._answer(name, arguments)

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> Any:
        self.calls.append(name)
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer(*arguments) if callable(answer) else answer


class Clock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


SENSORS = {
    "nvmlDeviceGetUtilizationRates": "utilization_pct",
    "nvmlDeviceGetTemperature": "temperature_c",
    "nvmlDeviceGetPowerUsage": "power_w",
    "nvmlDeviceGetEnforcedPowerLimit": "power_limit_w",
    "nvmlDeviceGetFanSpeed": "fan_pct",
    "nvmlDeviceGetMaxClockInfo": "max_sm_clock_mhz",
}


def test_every_sensor_is_read_in_its_unit() -> None:
    snapshot = NvmlProbe(StandInNvml()).read()

    (gpu,) = snapshot.gpus
    assert snapshot.gpu_note == ""
    assert not snapshot.gpu_lost
    assert snapshot.host.cpu_count
    assert (gpu.index, gpu.name, gpu.driver) == (0, "NVIDIA Test 0", "570.86.15")
    assert gpu.utilization_pct == 97
    assert (gpu.sm_clock_mhz, gpu.max_sm_clock_mhz, gpu.memory_clock_mhz) == (1755, 1980, 2619)
    assert gpu.temperature_c == 61
    assert (gpu.power_w, gpu.power_limit_w) == (512.345, 700)
    assert (gpu.nvml_used_bytes, gpu.nvml_total_bytes) == (20 * GIB, 80 * GIB)
    assert gpu.fan_pct == 44
    assert gpu.throttle_reasons == ("power cap",)


def test_names_may_come_as_bytes() -> None:
    library = StandInNvml(nvmlDeviceGetName=b"NVIDIA GeForce RTX 4060 Ti", nvmlSystemGetDriverVersion=b"535.1")

    (gpu,) = NvmlProbe(library).read().gpus

    assert (gpu.name, gpu.driver) == ("NVIDIA GeForce RTX 4060 Ti", "535.1")


@pytest.mark.parametrize("code", ["NVML_ERROR_NOT_SUPPORTED", "NVML_ERROR_UNKNOWN", "NVML_ERROR_NO_PERMISSION"])
@pytest.mark.parametrize(("function", "sensor"), SENSORS.items())
def test_a_sensor_that_fails_is_none_and_takes_no_other_with_it(function: str, sensor: str, code: str) -> None:
    answers = {function: error(code)}
    if function == "nvmlDeviceGetTemperature":
        answers["nvmlDeviceGetTemperatureV"] = error(code)

    snapshot = NvmlProbe(StandInNvml(**answers)).read()

    (gpu,) = snapshot.gpus
    assert {name for name in gpu.__slots__ if getattr(gpu, name) is None} == {sensor}
    assert snapshot.gpu_note == ""


def test_memory_and_clocks_and_reasons_that_fail_are_none() -> None:
    unsupported = error("NVML_ERROR_NOT_SUPPORTED")
    library = StandInNvml(
        nvmlDeviceGetMemoryInfo=unsupported,
        nvmlDeviceGetClockInfo=unsupported,
        nvmlDeviceGetCurrentClocksEventReasons=unsupported,
        nvmlDeviceGetCurrentClocksThrottleReasons=unsupported,
        nvmlSystemGetDriverVersion=unsupported,
        nvmlDeviceGetName=unsupported,
    )

    (gpu,) = NvmlProbe(library).read().gpus

    assert gpu.name == "GPU 0"
    assert gpu.driver is None
    assert gpu.nvml_used_bytes is gpu.nvml_total_bytes is None
    assert gpu.sm_clock_mhz is gpu.memory_clock_mhz is None
    assert gpu.throttle_reasons is None


def test_the_number_that_stands_for_no_number_is_none() -> None:
    (gpu,) = NvmlProbe(StandInNvml(nvmlDeviceGetPowerUsage=2**32 - 1, nvmlDeviceGetFanSpeed=2**32 - 1)).read().gpus

    assert gpu.power_w is None
    assert gpu.fan_pct is None


def test_an_old_driver_is_asked_by_the_old_names() -> None:
    too_old = error("NVML_ERROR_FUNCTION_NOT_FOUND")

    def memory(card: int, version: int | None = None) -> SimpleNamespace:
        if version is not None:
            raise too_old
        return SimpleNamespace(total=8 * GIB, used=2 * GIB)

    library = StandInNvml(
        nvmlDeviceGetCurrentClocksEventReasons=too_old,
        nvmlDeviceGetCurrentClocksThrottleReasons=pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        nvmlDeviceGetMemoryInfo=memory,
    )

    (gpu,) = NvmlProbe(library).read().gpus

    assert gpu.throttle_reasons == ("hardware thermal",)
    assert (gpu.nvml_used_bytes, gpu.nvml_total_bytes) == (2 * GIB, 8 * GIB)


def test_a_newer_library_without_the_old_names_is_asked_by_the_new_ones() -> None:
    library = StandInNvml(nvmlDeviceGetTemperatureV=lambda card, sensor: 55)
    library.missing = {"nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"}

    (gpu,) = NvmlProbe(library).read().gpus

    assert gpu.temperature_c == 55
    assert gpu.throttle_reasons == ("power cap",)


@pytest.mark.parametrize(
    ("bits", "names"),
    [
        (pynvml.nvmlClocksEventReasonNone, ()),
        (pynvml.nvmlClocksEventReasonGpuIdle, ()),
        (pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonGpuIdle, ("power cap",)),
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, ("thermal",)),
        (
            pynvml.nvmlClocksEventReasonHwSlowdown | pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown,
            ("hardware slowdown", "power brake"),
        ),
        (pynvml.nvmlClocksEventReasonApplicationsClocksSetting, ("application clocks",)),
        (pynvml.nvmlClocksEventReasonSyncBoost, ("sync boost",)),
        (pynvml.nvmlClocksEventReasonDisplayClockSetting, ("display clock",)),
        (0x200, ("board limit",)),  # drivers still report these two, newer versions of nvidia-ml-py name them no more
        (0x400, ("reliability",)),
        (1 << 20, ("unknown (0x100000)",)),
    ],
)
def test_reasons_have_short_names(bits: int, names: tuple[str, ...]) -> None:
    assert throttle_reason_names(bits) == names


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "No NVIDIA GPU: NVML library not found."),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "No NVIDIA GPU: the driver is not loaded."),
        (
            "NVML_ERROR_LIB_RM_VERSION_MISMATCH",
            "NVIDIA library and kernel driver have different versions: restart the machine.",
        ),
        ("NVML_ERROR_NO_PERMISSION", "No permission to read the NVIDIA GPU's sensors."),
        ("NVML_ERROR_FUNCTION_NOT_FOUND", "The NVIDIA driver is too old for its sensors to be read."),
        ("NVML_ERROR_GPU_IS_LOST", "The NVIDIA GPU has stopped answering (fallen off the bus)."),
        ("NVML_ERROR_UNKNOWN", "The NVIDIA GPU cannot be read: Unknown Error."),
    ],
)
def test_without_nvml_the_host_is_read_and_the_reason_is_plain(code: str, note: str) -> None:
    probe = open_probe(library=StandInNvml(nvmlInit=error(code)))

    assert isinstance(probe, HostProbe)
    assert probe.read().gpu_note == note


def test_a_machine_without_cards_says_so() -> None:
    library = StandInNvml(cards=0)

    assert open_probe(library=library).read().gpu_note == "No NVIDIA GPU: NVML sees none."
    assert library.calls.count("nvmlInit") == library.calls.count("nvmlShutdown") == 1


def test_a_missing_package_is_a_note_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pynvml")
    real_import = builtins.__import__

    def refuse(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)

    assert open_probe().read().gpu_note == "No GPU sensors: the package nvidia-ml-py is not installed."


def test_this_machine_gives_a_probe_whatever_it_has() -> None:
    probe = open_probe()
    snapshot = probe.read()
    probe.close()

    assert bool(snapshot.gpus) != bool(snapshot.gpu_note)


def test_a_lost_card_is_said_and_opened_anew_with_growing_pauses() -> None:
    library, clock = StandInNvml(), Clock()
    probe = NvmlProbe(library, clock=clock)
    working = dict(library.answers)
    library.answers["nvmlDeviceGetUtilizationRates"] = error("NVML_ERROR_GPU_IS_LOST")

    snapshot = probe.read()
    assert snapshot.gpus == ()
    assert snapshot.gpu_lost
    assert "stopped answering" in snapshot.gpu_note
    assert snapshot.host.cpu_count

    library.answers["nvmlInit"] = error("NVML_ERROR_UNKNOWN")
    tries_at_s = []
    for _ in range(200):
        tries = library.calls.count("nvmlInit")
        assert probe.read().gpus == ()
        if library.calls.count("nvmlInit") > tries:
            tries_at_s.append(clock.now_s - 100.0)
        clock.now_s += 1.0
    assert tries_at_s == [1, 3, 7, 15, 31, 63, 123, 183]

    library.answers = working
    clock.now_s += 60
    assert probe.read().gpus[0].utilization_pct == 97
    assert probe.read().gpu_note == ""
    assert not probe.read().gpu_lost


@pytest.mark.parametrize(
    ("code", "lost"),
    [
        ("NVML_ERROR_GPU_IS_LOST", True),
        ("NVML_ERROR_RESET_REQUIRED", True),
        ("NVML_ERROR_UNINITIALIZED", False),
        ("NVML_ERROR_DRIVER_NOT_LOADED", False),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", False),
    ],
)
def test_errors_of_the_whole_driver_leave_a_note(code: str, lost: bool) -> None:
    library = StandInNvml()
    probe = NvmlProbe(library)
    library.answers["nvmlDeviceGetClockInfo"] = error(code)

    snapshot = probe.read()

    assert snapshot.gpus == ()
    assert snapshot.gpu_note
    assert snapshot.gpu_lost is lost


def test_one_silent_card_of_two_is_named_and_the_other_read() -> None:
    def handle(index: int) -> int:
        if index == 1:
            raise error("NVML_ERROR_GPU_IS_LOST")
        return index

    snapshot = NvmlProbe(StandInNvml(cards=2, nvmlDeviceGetHandleByIndex=handle)).read()

    assert [gpu.index for gpu in snapshot.gpus] == [0]
    assert snapshot.gpu_note.startswith("GPU 1: ")
    assert snapshot.gpu_lost


@pytest.mark.parametrize(
    ("visible", "indices"),
    [
        (None, [0, 1]),
        ("0", [0]),
        ("1", [1]),
        ("1,0", [1, 0]),
        (" 0 , 1 ", [0, 1]),
        ("0,-1,1", [0]),
        ("1,7", [1]),
        ("GPU-bbbb2222-0000", [1]),
        ("GPU-bbbb", [1]),
        ("GPU-bbbb,GPU-aaaa", [1, 0]),
        ("MIG-abc", [0, 1]),
    ],
)
def test_only_the_cards_of_this_process_are_read(visible: str | None, indices: list[int]) -> None:
    probe = open_probe(visible, StandInNvml(cards=2))

    assert [gpu.index for gpu in probe.read().gpus] == indices


def test_a_slice_of_a_card_is_said_to_be_one() -> None:
    assert "MIG" in open_probe("MIG-abc", StandInNvml(cards=2)).read().gpu_note


@pytest.mark.parametrize("visible", ["", "-1", "none", "2", "GPU-cccc"])
def test_a_process_that_may_see_no_card_says_so(visible: str) -> None:
    note = open_probe(visible, StandInNvml(cards=2)).read().gpu_note

    assert note == f"CUDA_VISIBLE_DEVICES={visible} leaves no GPU to this process."


def test_closing_releases_the_driver() -> None:
    library = StandInNvml()
    NvmlProbe(library).close()

    assert library.calls[-1] == "nvmlShutdown"


def test_closing_does_not_wait_for_a_hanging_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zimage_ui.telemetry.nvml._CLOSE_WAIT_S", 0.01)
    entered, gate = threading.Event(), threading.Event()

    def hang(card: int) -> int:
        entered.set()
        gate.wait()
        return 0

    library = StandInNvml(nvmlDeviceGetFanSpeed=hang)
    probe = NvmlProbe(library)
    reading = threading.Thread(target=probe.read)
    reading.start()
    assert entered.wait(10)

    probe.close()

    assert "nvmlShutdown" not in library.calls
    gate.set()
    reading.join()


def test_an_error_while_looking_for_cards_closes_what_was_opened() -> None:
    library = StandInNvml(nvmlDeviceGetCount=error("NVML_ERROR_UNKNOWN"))

    with pytest.raises(NvmlUnavailableError, match="cannot be read"):
        NvmlProbe(library)
    assert library.calls[-1] == "nvmlShutdown"


def test_the_driver_is_not_touched_by_importing() -> None:
    code = "import sys, zimage_ui.telemetry.nvml, zimage_ui.telemetry.sampler; sys.exit('pynvml' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.gpu
@pytest.mark.skipif(not Path("/dev/nvidiactl").exists(), reason="needs an NVIDIA GPU and its driver")
def test_a_real_card_answers_with_all_its_sensors() -> None:
    probe = open_probe()
    snapshot = probe.read()
    probe.close()

    assert snapshot.gpus, snapshot.gpu_note
    for gpu in snapshot.gpus:
        missing = {name for name in gpu.__slots__ if getattr(gpu, name) is None} - {"fan_pct"}
        assert missing == set()
        assert gpu.nvml_total_bytes is not None
        assert gpu.nvml_total_bytes > GIB
