"""The side panel tells the truth: numbers, n/a, old ones, and a machine without a GPU."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import expect

from zimage_ui.generator.base import ModelInfo, ProgressListener
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.request import GenerationRequest
from zimage_ui.telemetry.fake import FakeProbe, fake_gpu, fake_host
from zimage_ui.telemetry.probe import GpuReading, Snapshot

if TYPE_CHECKING:
    from tests.browser.conftest import StudioMaker, Visit, Visiting


def reading(*gpus: GpuReading, note: str = "") -> FakeProbe:
    return FakeProbe(script=(Snapshot(at_s=0.0, unix_s=0.0, gpus=gpus, gpu_note=note, host=fake_host()),))


UNITS = {"utilization": "%", "clock": "MHz", "temperature": "°C", "power": "W", "memory": "GiB"}


def test_gpu_numbers_say_how_they_were_taken_and_what_is_missing(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    hot = replace(fake_gpu(1.0), throttle_reasons=("thermal", "power cap"))
    silent = GpuReading(index=1, name="Silent GPU")
    with run_studio(tmp_path, probe=reading(hot, silent)) as studio:
        person = visit(studio).open()
        machine = person.page.locator("zi-machine")
        gpus = machine.locator(".zi-gpu")
        expect(gpus).to_have_count(2)
        for meter, unit in UNITS.items():
            row = gpus.first.locator(f"[data-meter={meter}]")
            expect(row.locator(".zi-number")).to_contain_text(unit)
            assert (row.get_attribute("title") or "").startswith("NVML")
        expect(gpus.first).to_contain_text("Clocks held down: temperature, power limit")
        expect(gpus.nth(1)).to_contain_text("1: Silent GPU")
        assert gpus.nth(1).locator(".zi-number").all_inner_texts() == ["n/a"] * len(UNITS)
        expect(gpus.nth(1)).to_contain_text("Throttle reasons: n/a")
        person.page.get_by_role("button", name="中文").click()
        expect(machine).to_contain_text("时钟受限：温度, 功耗上限")


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


def test_a_page_that_comes_later_draws_what_was_measured_before(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    probe = FakeProbe(gate=threading.Event())
    assert probe.gate is not None
    probe.gate.set()
    points = "[...document.querySelectorAll('zi-machine .zi-spark-line')].map((line) => line.getAttribute('d'))"
    with run_studio(tmp_path, probe=probe, interval_s=0.1) as studio:
        early = visit(studio).open()
        early.page.wait_for_function(f"{points}.length > 5 && {points}.every((d) => d.split(',').length > 12)")
        probe.gate.clear()  # from now on nothing new is measured
        late = visit(studio).open()
        expect(late.page.locator("zi-machine .zi-gpu")).to_be_visible()
        assert all(line.count(",") >= 12 for line in late.read(points))
        late.page.get_by_role("button", name="中文").click()
        assert all(line.count(",") >= 12 for line in late.read(points))
        probe.gate.set()


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


def test_the_sizes_say_whether_they_are_prepared_and_a_picture_that_it_was_not(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    gate = threading.Event()
    generator = FakeGenerator(FakeScript(prepare_s=0.0), prepare_gate=gate)
    with run_studio(tmp_path, generator=generator) as studio:
        try:
            person = visit(studio).open()
            sizes = person.page.locator("zi-model .zi-shapes li")
            expect(sizes.first).to_have_attribute("data-state", "warm")
            expect(sizes.nth(1)).to_have_attribute("data-state", "preparing")
            expect(sizes.nth(2)).to_have_attribute("data-state", "cold")
            expect(sizes.first).to_have_text("384×384 (prepared)")
            expect(sizes.first).to_have_attribute("title", "Prompts of up to 64 tokens: prepared")
            expect(person.page.locator("zi-model")).to_contain_text("1 of 5 prepared")
            person.shot("shapes")
        finally:
            gate.set()
        expect(person.page.locator("zi-model")).to_contain_text("5 of 5 prepared")
        person.page.get_by_role("button", name="中文").click()
        expect(sizes.nth(2)).to_have_text("512×512 (已准备)")
        expect(person.page.locator("zi-model")).to_contain_text("已准备 5 / 5")


def test_a_picture_of_a_size_that_nobody_had_prepared_says_so(
    tmp_path: Path, run_studio: StudioMaker, visit: Visiting
) -> None:
    gate = threading.Event()
    with run_studio(tmp_path, generator=FakeGenerator(FakeScript(prepare_s=0.0), prepare_gate=gate)) as studio:
        try:
            person = visit(studio).open()
            gate.set()
            expect(person.page.locator("zi-model")).to_contain_text("5 of 5 prepared")
            asked = {"prompt": "a cold boat", "size": "448x448"}
            answer = studio.client.post("/v1/images/generations", json=asked)
            assert answer.json()["shape_warm"] is False
            expect(person.account).to_contain_text("size not prepared")
            expect(person.page.locator("zi-model")).to_contain_text("6 of 6 prepared")
            studio.client.post("/v1/images/generations", json={**asked, "prompt": "a warm boat"})
            expect(person.account.locator(".zi-prompt-line")).to_have_text("a warm boat")
            expect(person.account).not_to_contain_text("size not prepared")
        finally:
            gate.set()


@dataclass
class OnDevice(FakeGenerator):
    """Says that it computes on `device`."""

    device: str = "cuda:0"

    def load(self, progress: ProgressListener) -> ModelInfo:
        self._info = replace(super().load(progress), device=self.device)
        return self._info


class TestWhatIsStillWritten:
    """Announced when the writing pauses for 0.3 s; the browser's clock is the test's own where that is what matters."""

    def test_it_is_encoded_when_the_writing_pauses(
        self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting
    ) -> None:
        generator = OnDevice(FakeScript(encode_s=0.04, encodes_ahead=True))
        with run_studio(tmp_path, generator=generator) as studio:
            person = visit(studio).open()
            with person.page.expect_response("**/api/draft") as answer:
                person.prompt.press_sequentially("a red boat")
            assert answer.value.status == 204
            person.generate.click()
            expect(person.account).to_contain_text("prompt encoded ahead, 40 ms")
            expect(person.account.locator(".zi-total")).to_be_visible()  # ended; its picture shows before
            assert len(studio.services.jobs.board.recent(9)) == 1

    def test_what_comes_back_with_the_page_is_announced_too(
        self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting
    ) -> None:
        with run_studio(tmp_path, generator=OnDevice()) as studio:
            person = visit(studio).open()
            with person.page.expect_response("**/api/draft"):
                person.prompt.fill("a red boat")
            with person.page.expect_request("**/api/draft") as asked:
                person.page.reload()
            assert asked.value.post_data_json == {
                "prompt": "a red boat", "negative_prompt": "", "guidance_scale": 0,
            }  # fmt: skip

    def test_on_a_cpu_nothing_is_gained_and_nothing_sent(
        self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting
    ) -> None:
        with run_studio(tmp_path, generator=OnDevice(device="cpu")) as studio:
            person = self.writing(visit(studio), "a red boat")
            person.page.clock.fast_forward(10_000)
            self.made(person, "a red boat")
            assert self.drafts(person) == 0

    def test_who_asks_at_once_announces_nothing(self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
        with run_studio(tmp_path, generator=OnDevice()) as studio:
            person = self.writing(visit(studio), "a red boat")
            self.made(person, "a red boat")
            person.page.clock.fast_forward(10_000)
            self.made(person, "a red boat", pictures=2)
            assert self.drafts(person) == 0

    def test_what_an_input_method_composes_is_not_what_is_meant(
        self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting
    ) -> None:
        with run_studio(tmp_path, generator=OnDevice()) as studio:
            person = visit(studio)
            person.page.clock.install()
            person.open()
            person.prompt.focus()
            keys = person.page.context.new_cdp_session(person.page)
            for written in ("n", "ni", "nih", "niha", "nihao"):
                keys.send("Input.imeSetComposition", {"text": written, "selectionStart": 5, "selectionEnd": 5})
                self.remembered(person, written)
                person.page.clock.fast_forward(10_000)
            assert self.drafts(person) == 0
            keys.send("Input.insertText", {"text": "你好"})
            self.remembered(person, "你好")
            with person.page.expect_request("**/api/draft") as asked:
                person.page.clock.fast_forward(10_000)
            assert asked.value.post_data_json["prompt"] == "你好"
            assert self.drafts(person) == 1

    def test_an_announcement_that_fails_bothers_nobody(
        self, tmp_path: Path, run_studio: StudioMaker, visit: Visiting
    ) -> None:
        with run_studio(tmp_path, generator=OnDevice()) as studio:
            person = visit(studio).open()
            person.page.route("**/api/draft", lambda route: route.abort())
            with person.page.expect_event("requestfailed"):
                person.prompt.press_sequentially("a red boat")
            person.generate.click()
            expect(person.account.locator(".zi-prompt-line")).to_have_text("a red boat")
            expect(person.page.get_by_text("Connection to the server was lost")).to_have_count(0)
            assert all("ERR_FAILED" in problem for problem in person.problems)  # the browser's own word for the abort
            person.problems.clear()

    @staticmethod
    def writing(person: Visit, prompt: str) -> Visit:
        """A page whose clock stands still, with `prompt` in it."""
        person.page.clock.install()
        person.open()
        person.prompt.fill(prompt)
        TestWhatIsStillWritten.remembered(person, prompt)
        return person

    @staticmethod
    def remembered(person: Visit, prompt: str) -> None:
        """Wait until the page has heard of it."""
        written = "prompt => JSON.parse(localStorage.getItem('zimage.form') ?? '{}').prompt === prompt"
        person.page.wait_for_function(written, arg=prompt)

    @staticmethod
    def made(person: Visit, prompt: str, pictures: int = 1) -> None:
        person.generate.click()
        expect(person.account.locator(".zi-prompt-line")).to_have_text(prompt)
        expect(person.page.locator("zi-strip img")).to_have_count(pictures)

    @staticmethod
    def drafts(person: Visit) -> int:
        return sum(url.endswith("/api/draft") for url in person.requests)


def test_a_prompt_that_was_encoded_ahead_says_so(tmp_path: Path, run_studio: StudioMaker, visit: Visiting) -> None:
    generator = FakeGenerator(FakeScript(encode_s=0.04, encodes_ahead=True))
    with run_studio(tmp_path, generator=generator, started=False) as studio:
        person = visit(studio).open()
        for prompt in ("the first", "the second"):
            studio.services.jobs.submit(GenerationRequest(prompt=prompt, width=64, height=64))
        studio.services.jobs.start()
        expect(person.account.locator(".zi-prompt-line")).to_have_text("the second")
        expect(person.account).to_contain_text("prompt encoded ahead, 40 ms")
        person.page.get_by_role("button", name="中文").click()
        expect(person.account).to_contain_text("提示词已提前编码，40")
