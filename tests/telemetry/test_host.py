from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from zimage_ui.telemetry.host import HostProbe, HostReader, cpu_name


def test_this_host_is_read_with_every_sensor() -> None:
    reading = HostReader().read()

    assert reading.cpu_name
    assert reading.cpu_count is not None
    assert reading.cpu_count >= 1
    assert reading.cpu_pct is not None
    assert 0 <= reading.cpu_pct <= 100
    assert reading.memory_used_bytes is not None
    assert reading.memory_total_bytes is not None
    assert 0 < reading.memory_used_bytes < reading.memory_total_bytes
    assert reading.process_rss_bytes is not None
    assert 2**20 < reading.process_rss_bytes < reading.memory_total_bytes
    assert reading.load_1m is not None
    assert reading.load_1m >= 0


@pytest.mark.parametrize(
    ("cpuinfo", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: Intel(R)  Xeon(R) CPU\nprocessor\t: 1\nmodel name\t: other\n",
            "Intel(R) Xeon(R) CPU",
        ),
        ("processor\t: 0\nBogoMIPS\t: 50\n\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_the_processor_is_named_as_the_kernel_does(tmp_path: Path, cpuinfo: str, name: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)

    assert cpu_name(tmp_path / "cpuinfo") == name


def test_an_unnamed_processor_is_called_by_its_architecture(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t:\n")

    assert cpu_name(tmp_path / "cpuinfo") == cpu_name(tmp_path / "missing") != ""


class Denying:
    """psutil where the system denies everything, each sensor in another way."""

    def cpu_count(self) -> int:
        raise NotImplementedError

    def Process(self) -> object:  # noqa: N802 - psutil's name
        raise psutil.AccessDenied

    def cpu_percent(self, interval: float | None) -> float:
        raise PermissionError("/proc/stat")

    def virtual_memory(self) -> object:
        raise FileNotFoundError("/proc/meminfo")

    def getloadavg(self) -> tuple[float, float, float]:
        raise OSError


def test_denied_sensors_are_none() -> None:
    reading = HostReader(Denying()).read()

    assert reading.cpu_name
    assert reading.cpu_count is None
    assert reading.cpu_pct is None
    assert reading.memory_used_bytes is None
    assert reading.memory_total_bytes is None
    assert reading.process_rss_bytes is None
    assert reading.load_1m is None


def test_memory_in_use_is_what_is_not_available() -> None:
    library = SimpleNamespace(
        cpu_count=lambda: 4,
        Process=lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=7)),
        cpu_percent=lambda interval: 50.0,
        virtual_memory=lambda: SimpleNamespace(total=100, available=30, used=60),
        getloadavg=lambda: (1.5, 1.0, 0.5),
    )

    reading = HostReader(library).read()

    assert (reading.memory_used_bytes, reading.memory_total_bytes) == (70, 100)
    assert (reading.cpu_count, reading.cpu_pct, reading.process_rss_bytes, reading.load_1m) == (4, 50.0, 7, 1.5)


def test_a_host_probe_says_why_there_is_no_gpu() -> None:
    probe = HostProbe("No NVIDIA GPU.")
    before_s = time.monotonic()

    snapshot = probe.read()
    probe.close()

    assert snapshot.gpus == ()
    assert snapshot.gpu_note == "No NVIDIA GPU."
    assert not snapshot.gpu_lost
    assert before_s <= snapshot.at_s <= time.monotonic()
    assert abs(snapshot.unix_s - time.time()) < 60
    assert snapshot.host.cpu_count
