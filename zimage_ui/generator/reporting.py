"""Who watches the sampling loop: tells a listener of every step, with a preview, when the device has really done it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from zimage_ui.generator.base import GenerationListener
from zimage_ui.generator.clock import Stopwatch, stopwatch
from zimage_ui.generator.preview import PreviewProjection
from zimage_ui.generator.transfers import Fence, record_fence, to_host, works_meanwhile
from zimage_ui.request import Preview


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A preview under way; readable when the step's fence is passed."""

    pixels: torch.Tensor
    watch: Stopwatch

    def read(self) -> Preview:
        height, width, _ = self.pixels.shape
        return Preview(width=width, height=height, pixels=self.pixels.numpy().tobytes())


@dataclass(frozen=True, slots=True)
class _Step:
    number: int
    fence: Fence
    drawing: _Drawing | None


class StepReporter:
    """Tells a listener of each step when the device has really done it, with a preview.

    The host enqueues work faster than a GPU does it. Were it let run, all steps would be "done" before the first one
    is, and a cancel would come too late for every one of them. Were it to wait for each step, the GPU would stand idle
    between steps while the host enqueues the next. So it may run ahead by one step: after enqueuing step i it waits
    for step i - 1, reports it, and goes on, while the GPU works on step i. Copies of previews are read at that same
    wait, so a preview adds its own few kernels to the stream and no synchronisation. A cancel then costs at most the
    step that is under way. A CPU has done the work when the call returns and reports each step at once.
    """

    def __init__(
        self,
        listener: GenerationListener,
        num_steps: int,
        device: torch.device,
        projection: PreviewProjection | None,
    ) -> None:
        self.preview_ms = 0.0
        self._listener = listener
        self._num_steps = num_steps
        self._device = device
        self._projection = projection
        self._run_ahead = 1 if works_meanwhile(device) else 0
        self._under_way: deque[_Step] = deque()

    def enqueued(self, step: int, clean: torch.Tensor) -> None:
        """Draw the first picture of the batch, and report steps so that no more than the allowed are under way."""
        drawing = self._draw(clean) if self._projection is not None else None
        self._under_way.append(_Step(step + 1, record_fence(self._device), drawing))
        while len(self._under_way) > self._run_ahead:
            self._report(self._under_way.popleft())

    def finish(self) -> None:
        """Report what is still under way."""
        while self._under_way:
            self._report(self._under_way.popleft())

    def _draw(self, clean: torch.Tensor) -> _Drawing:
        assert self._projection is not None
        watch = stopwatch(self._device)
        watch.start()
        pixels = to_host(self._projection.draw(clean[0]))
        watch.stop()
        return _Drawing(pixels, watch)

    def _report(self, step: _Step) -> None:
        step.fence.wait()
        preview = None
        if step.drawing is not None:
            self.preview_ms += step.drawing.watch.elapsed_ms()
            preview = step.drawing.read()
        self._listener.step_done(step.number, self._num_steps, preview)
