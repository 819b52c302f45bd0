"""The side panel tells the truth: numbers, n/a, old ones, and a machine without a GPU."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from zimage_ui.telemetry.fake import FakeProbe, fake_gpu, fake_host
from zimage_ui.telemetry.probe import GpuReading, Snapshot

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visiting
    from tests.web.conftest import Studio


def reading(*gpus: GpuReading, note: str = "") -> FakeProbe:
    return FakeProbe(script=(Snapshot(at_s=0.0, unix_s=0.0, gpus=gpus, gpu_note=note, host=fake_host()),))


def test_gpu_numbers_say_how_they_were_taken(shared: Studio, visit: Visiting) -> None:
    person = visit(shared).open()
    machine = person.page.locator("zi-machine")
    for meter in ("utilization", "clock", "temperature", "power", "memory"):
        row = machine.locator(f"[data-meter={meter}]")
        expect(row.locator(".zi-number")).to_contain_text(
            ["%", "MHz", "°C", "W", "GiB"][["utilization", "clock", "temperature", "power", "memory"].index(meter)]
        )
        assert (row.get_attribute("title") or "").startswith("NVML")
    expect(machine).to_contain_text("Prompt cache")


def test_what_cannot_be_read_is_na(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    with run_studio(tmp_path, probe=reading(GpuReading(index=0, name="Silent GPU"))) as studio:
        person = visit(studio).open()
        machine = person.page.locator("zi-machine")
        expect(machine).to_contain_text("Silent GPU")
        gpu = machine.locator(".zi-gpu .zi-number")
        assert gpu.all_inner_texts() == ["n/a"] * 5
        expect(machine).to_contain_text("Throttle reasons: n/a")


def test_held_clocks_are_said_with_their_reasons(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    hot = replace(fake_gpu(1.0), throttle_reasons=("thermal", "power cap"))
    with run_studio(tmp_path, probe=reading(hot)) as studio:
        person = visit(studio).open()
        machine = person.page.locator("zi-machine")
        expect(machine).to_contain_text("Clocks held down: temperature, power limit")
        person.page.get_by_role("button", name="中文").click()
        expect(machine).to_contain_text("时钟受限：温度, 功耗上限")


def test_several_gpus_are_told_apart(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    gpus = (fake_gpu(0.2), replace(fake_gpu(0.9), index=1, name="Other GPU"))
    with run_studio(tmp_path, probe=reading(*gpus)) as studio:
        person = visit(studio).open()
        expect(person.page.locator("zi-machine .zi-gpu")).to_have_count(2)
        expect(person.page.locator("zi-machine")).to_contain_text("1: Other GPU")


def test_without_a_gpu_the_host_is_shown_and_it_is_said(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    with run_studio(tmp_path, probe=reading(note="No NVIDIA GPU: NVML library not found.")) as studio:
        person = visit(studio).open()
        machine = person.page.locator("zi-machine")
        expect(machine).to_contain_text("There are no numbers of an NVIDIA GPU here")
        expect(machine).to_contain_text("No NVIDIA GPU: NVML library not found.")
        for meter in ("cpu", "ram", "rss", "load"):
            expect(machine.locator(f"[data-meter={meter}]")).to_be_visible()
        assert machine.locator(".zi-gpu").count() == 0


def test_numbers_that_grow_old_are_marked(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    probe = FakeProbe(gate=threading.Event())
    assert probe.gate is not None
    probe.gate.set()
    with run_studio(tmp_path, probe=probe) as studio:
        person = visit(studio).open()
        age = person.page.locator("zi-machine .zi-age")
        expect(age).to_have_text("live")
        probe.gate.clear()  # the driver hangs
        expect(age).to_contain_text("stale")
        probe.gate.set()
        expect(age).to_have_text("live")
