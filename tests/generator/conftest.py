"""A tiny random model, built in place, in the hands of both: our stages and the stock diffusers pipeline."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.generator.fake_driver import Driver
from zimage_ui.generator.base import GenerationListener
from zimage_ui.request import GeneratedImage, Preview
from zimage_ui.stages import Stage


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    return build_untrained_model(tmp_path_factory.mktemp("model") / "tiny", TINY)


@pytest.fixture(scope="session")
def stock(tiny_folder: Path) -> Any:
    """The stock pipeline. Its parts are shared with our components: a test leaves them as they were."""
    import torch
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(tiny_folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        part.eval().requires_grad_(False)
    return pipe


@pytest.fixture
def components(stock: Any) -> Any:
    import torch

    from zimage_ui.generator.components import Components

    return Components(
        tokenizer=stock.tokenizer,
        text_encoder=stock.text_encoder,
        transformer=stock.transformer,
        vae=stock.vae,
        scheduler=stock.scheduler,
        device=torch.device("cpu"),
        dtype=torch.float32,
        text_encoder_fingerprint="tiny",
    )


@pytest.fixture
def fail_forward() -> Iterator[Callable[..., Any]]:
    """Make a module's forward raise: `fail_forward(module, error, times=1)`; undone after the test."""
    handles: list[Any] = []

    def arm(module: Any, error: Exception, times: int = 1) -> None:
        left = [times]

        def fail(_module: Any, _arguments: Any) -> None:
            if left[0] > 0:
                left[0] -= 1
                raise type(error)(str(error))  # a fresh one: a kept one would keep its traceback

        handles.append(module.register_forward_pre_hook(fail))

    yield arm
    for handle in handles:
        handle.remove()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    """Locks pages on paper only."""
    import torch

    driver = Driver()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: driver.calls.append("synchronize"))
    yield driver
    gc.collect()  # whatever is still locked, and in a cycle, is unlocked by the stand-in


class Recorder(GenerationListener):
    """Keeps what it hears; `at_step` is called with each step's number."""

    def __init__(self) -> None:
        self.at_step: Callable[[int], object] = lambda step: None
        self.stages: list[Stage] = []
        self.steps: list[tuple[int, int]] = []
        self.previews: list[Preview | None] = []

    def stage_started(self, stage: Stage) -> None:
        self.stages.append(stage)

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        self.steps.append((step, num_steps))
        self.previews.append(preview)
        self.at_step(step)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def as_array() -> Callable[[GeneratedImage | Preview], np.ndarray]:
    """Pixels as (height, width, 3)."""
    return lambda image: np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)
