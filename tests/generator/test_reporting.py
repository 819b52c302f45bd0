"""Steps are reported when the device has done them, the host never more than one step ahead of a GPU."""

from types import SimpleNamespace

import pytest
import torch

from zimage_ui.generator import reporting
from zimage_ui.generator.preview import PreviewProjection
from zimage_ui.generator.reporting import StepReporter

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
GREY = PreviewProjection(weights=torch.zeros(16, 3), bias=torch.tensor([0.0, 0.5, 1.0]), explained=1.0)
LATENTS = torch.zeros(2, 16, 4, 6)


class ScriptedDevice:
    """Stands in for a GPU: it writes down when which fence was recorded and waited for."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self._recorded = 0

    def record(self, device: torch.device) -> "ScriptedDevice._Fence":
        self._recorded += 1
        self.log.append(f"enqueued {self._recorded}")
        return self._Fence(self.log, self._recorded)

    class _Fence:
        def __init__(self, log: list[str], number: int) -> None:
            self._log, self._number = log, number

        def wait(self) -> None:
            self._log.append(f"waited {self._number}")


def test_a_cpu_reports_each_step_at_once(recorder):
    reporter = StepReporter(recorder, 3, CPU, None)
    for step in range(3):
        reporter.enqueued(step, LATENTS)
        assert recorder.steps[-1] == (step + 1, 3)
    reporter.finish()
    assert recorder.steps == [(1, 3), (2, 3), (3, 3)]


def test_a_gpu_is_kept_one_step_ahead_and_never_two(monkeypatch, recorder):
    device = ScriptedDevice()
    monkeypatch.setattr(reporting, "record_fence", device.record)
    recorder.at_step = lambda step: device.log.append(f"told {step}")
    reporter = StepReporter(recorder, 3, torch.device("cuda"), None)
    for step in range(3):
        reporter.enqueued(step, LATENTS)
    reporter.finish()
    assert device.log == [
        "enqueued 1",
        "enqueued 2", "waited 1", "told 1",
        "enqueued 3", "waited 2", "told 2",
        "waited 3", "told 3",
    ]  # fmt: skip


def test_previews_show_the_first_picture_and_their_cost_is_counted(recorder, as_array, monkeypatch):
    watch = SimpleNamespace(start=lambda: None, stop=lambda: None, elapsed_ms=lambda: 2.5)
    monkeypatch.setattr(reporting, "stopwatch", lambda device: watch)
    reporter = StepReporter(recorder, 2, CPU, GREY)
    reporter.enqueued(0, LATENTS)
    reporter.enqueued(1, LATENTS)
    reporter.finish()
    for preview in recorder.previews:
        assert (preview.width, preview.height) == (6, 4)
        assert as_array(preview).reshape(-1, 3).tolist() == [[0, 128, 255]] * 24
    assert reporter.preview_ms == 5.0


def test_without_a_projection_there_is_no_preview_and_no_cost(recorder):
    reporter = StepReporter(recorder, 1, CPU, None)
    reporter.enqueued(0, LATENTS)
    assert recorder.previews == [None]
    assert reporter.preview_ms == 0.0
