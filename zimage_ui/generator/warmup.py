"""What "warm" means: the first request of a person is as fast as the tenth.

A first pass pays for things that later passes find done: kernels are loaded when first called, cuBLAS and cuDNN choose
their algorithms by shape, the allocator fetches its memory from the driver. So warming is running: the real stages,
through to pixels, with all the steps, at the size that the page offers first. Before, on a GPU, that size is prepared:
its kernels are made, and all is recorded for prompts of usual lengths. On a CPU nothing depends on the shape.
All other shapes are prepared while nobody waits (`preparation`).
"""

from __future__ import annotations

import threading

from zimage_ui.generator.base import (
    GenerationListener,
    ModelProfile,
    ProgressListener,
    WarmupPhase,
    WarmupProgress,
)
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.preparation import CAPTION_TOKENS
from zimage_ui.request import GenerationRequest, Preview
from zimage_ui.stages import Stage

_PROMPT = "A red fox in the snow, morning light"


def warm(engine: Engine, profile: ModelProfile, progress: ProgressListener) -> None:
    """Fit the preview, prepare the default size and make a picture of it, reporting each step that was really done.

    Raises:
        GenerationError: the preview's fit or the pass failed.
    """
    request = _request(profile)
    lengths = CAPTION_TOKENS if engine.prepares else ()
    steps = _Steps(progress, total=1 + len(lengths) + request.num_inference_steps + 1)
    engine.fit_preview()
    steps.done("preview fitted to the VAE")
    for tokens in lengths:
        engine.prepare(request.width, request.height, tokens)
        steps.done(f"prepared for {request.width} x {request.height} and prompts of up to {tokens} tokens")
    engine.generate(request, _PassListener(steps, request), threading.Event())
    steps.all_done()
    engine.forget_prompts()


def _request(profile: ModelProfile) -> GenerationRequest:
    width, height = profile.sizes[0]
    return GenerationRequest(
        prompt=_PROMPT,
        width=width,
        height=height,
        num_inference_steps=profile.num_inference_steps,
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

    def all_done(self) -> None:
        self._progress(WarmupProgress(phase=WarmupPhase.WARMING, progress=1.0))


class _PassListener(GenerationListener):
    """Turns the steps of a pass into progress of the warm-up."""

    def __init__(self, steps: _Steps, request: GenerationRequest) -> None:
        self._steps = steps
        self._request = request

    def stage_started(self, stage: Stage) -> None:
        pass

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        self._steps.done(f"step {step} of {num_steps} at {self._request.width} x {self._request.height}")
