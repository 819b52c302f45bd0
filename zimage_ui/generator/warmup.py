"""What "warm" means: the first request of a person is as fast as the tenth.

A first pass pays for things that later passes find done: kernels are loaded when first called, cuBLAS and cuDNN choose
their algorithms by shape, the allocator fetches its memory from the driver. So warming is running: the real stages,
through to pixels, with all the steps at the size that the page offers first. A GPU does the other sizes of the profile
too, with one step each, since one step calls every kernel of that shape; on a CPU nothing depends on the shape.
Before its pass, each size is prepared on a GPU: the transformer is compiled and recorded for prompts of usual lengths.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

import torch

from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.base import (
    GenerationListener,
    ModelProfile,
    ProgressListener,
    WarmupPhase,
    WarmupProgress,
)
from zimage_ui.generator.engine import Engine
from zimage_ui.request import GenerationRequest, Preview
from zimage_ui.stages import Stage

_log = logging.getLogger(__name__)
# Prompts of up to 64 tokens, the chat template's own 8 included: about 40 English words.
_CAPTION_TOKENS = (32, 64)
_PROMPT = "A red fox in the snow, morning light"


@dataclass(frozen=True, slots=True)
class WarmShape:
    """One pass of the warm-up.

    Attributes:
        width, height: in pixels.
        num_inference_steps: that the pass takes.
        caption_tokens: the padded lengths of prompts that the size is prepared for.
    """

    width: int
    height: int
    num_inference_steps: int
    caption_tokens: tuple[int, ...] = ()

    @property
    def reports(self) -> int:
        """How often the pass reports: each preparation, each step, and the end."""
        return len(self.caption_tokens) + self.num_inference_steps + 1

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def shapes_to_warm(profile: ModelProfile, device: torch.device) -> tuple[WarmShape, ...]:
    """The passes that make `profile` warm on `device`, the default size first."""
    (width, height), *others = profile.sizes
    steps = profile.num_inference_steps
    if device.type == "cpu":
        return (WarmShape(width, height, steps),)
    return (
        WarmShape(width, height, steps, _CAPTION_TOKENS),
        *(WarmShape(width, height, 1, _CAPTION_TOKENS) for width, height in others),
    )


def warm(engine: Engine, profile: ModelProfile, progress: ProgressListener) -> None:
    """Fit the preview, prepare and run every shape, reporting each step that was really done.

    Raises:
        GenerationError: the preview's fit or the pass at the default size failed. A further size that does not fit in
            memory is only logged: whoever asks for it gets the same answer then.
    """
    shapes = shapes_to_warm(profile, engine.components.device)
    steps = _Steps(progress, total=1 + sum(shape.reports for shape in shapes))
    engine.fit_preview()
    steps.done("preview fitted to the VAE")
    for place, shape in enumerate(shapes):
        for caption_tokens in shape.caption_tokens:
            engine.prepare(shape.width, shape.height, caption_tokens)
            steps.done(f"prepared for {shape} and prompts of up to {caption_tokens} tokens")
        try:
            engine.generate(_request(shape, profile), _PassListener(steps, shape), threading.Event())
        except DeviceMemoryError as error:
            if place == 0:
                raise
            _log.warning("not warmed: %s", error)
        steps.reach(1 + sum(shape.reports for shape in shapes[: place + 1]))
    engine.forget_prompts()


def _request(shape: WarmShape, profile: ModelProfile) -> GenerationRequest:
    return GenerationRequest(
        prompt=_PROMPT,
        width=shape.width,
        height=shape.height,
        num_inference_steps=shape.num_inference_steps,
        guidance_scale=profile.guidance_scale,
        seed=0,
    )


class _Steps:
    """Counts what is done of what is to do; never backwards, also when a pass is tried again."""

    def __init__(self, progress: ProgressListener, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def done(self, detail: str) -> None:
        self._done = min(self._total, self._done + 1)
        self._progress(WarmupProgress(phase=WarmupPhase.WARMING, progress=self._done / self._total, detail=detail))

    def reach(self, done: int) -> None:
        self._done = done
        self._progress(WarmupProgress(phase=WarmupPhase.WARMING, progress=done / self._total))


class _PassListener(GenerationListener):
    """Turns the steps of a pass into progress of the warm-up."""

    def __init__(self, steps: _Steps, shape: WarmShape) -> None:
        self._steps = steps
        self._shape = shape

    def stage_started(self, stage: Stage) -> None:
        pass

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        self._steps.done(f"step {step} of {num_steps} at {self._shape}")
