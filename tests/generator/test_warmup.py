"""Warming is running: the real stages, with progress that is true and never goes back."""

from typing import Any

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from tests.generator.hooked import decoder_pass, transformer_pass
from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.base import ModelProfile, WarmupPhase, WarmupProgress
from zimage_ui.generator.components import Components
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.fast.step import EAGER
from zimage_ui.generator.warmup import warm

pytestmark = pytest.mark.model

PROFILE = ModelProfile(
    name="mini",
    num_inference_steps=3,
    guidance_scale=0.0,
    takes_negative_prompt=False,
    sizes=((96, 64), (64, 64), (64, 96)),
)
FULL = torch.OutOfMemoryError("CUDA out of memory.")


@pytest.fixture
def engine(components: Components) -> Engine:
    return Engine(components, 1 << 20)


@pytest.fixture
def forwards(engine: Engine) -> Any:
    """The latent sizes that the transformer was called with."""
    sizes: list[tuple[int, int]] = []
    handle = transformer_pass(engine).register_forward_pre_hook(
        lambda _, inputs: sizes.append(tuple(inputs[1].shape[-2:]))
    )
    yield sizes
    handle.remove()


def test_the_real_stages_run_with_all_steps_and_every_step_is_reported(engine, forwards):
    heard: list[WarmupProgress] = []
    warm(engine, PROFILE, heard.append)
    assert forwards == [(8, 12)] * 3
    assert engine.projection is not None
    assert {report.phase for report in heard} == {WarmupPhase.WARMING}
    assert [report.detail for report in heard if report.detail] == [
        "preview fitted to the VAE",
        *(f"step {step} of 3 at 96 x 64" for step in (1, 2, 3)),
    ]
    progress = [report.progress for report in heard]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert 0 < progress[0] < 1


def test_the_cache_begins_empty_afterwards(engine):
    warm(engine, PROFILE, lambda report: None)
    stats = engine.cache_stats()
    assert (stats.hits, stats.misses, stats.entries) == (0, 0, 0)


def test_where_something_is_recorded_the_default_size_alone_is_prepared_before_its_pass(components, monkeypatch):
    monkeypatch.setattr("zimage_ui.generator.fast.denoiser._compiled", lambda: EAGER)
    recorder = ReplayingRecorder()
    engine = Engine(components, 1 << 20, recorder=recorder)
    made: list[tuple[PictureShape, int]] = []
    engine.on_made = lambda shape: made.append((shape, recorder.recorded))
    heard: list[WarmupProgress] = []
    warm(engine, PROFILE, heard.append)
    for tokens in (32, 64):
        assert engine.is_prepared(PictureShape(96, 64, tokens))
        assert not engine.is_prepared(PictureShape(64, 64, tokens))
    assert made == [(PictureShape(96, 64, 32), 7)]  # encoding, refining and a step for two lengths, decoding
    assert [report.detail for report in heard][1:3] == [
        f"prepared for 96 x 64 and prompts of up to {tokens} tokens" for tokens in (32, 64)
    ]
    assert heard[-1].progress == 1.0


def test_progress_does_not_go_back_when_a_pass_is_tried_again(engine):
    heard: list[WarmupProgress] = []
    failing = {"left": 1}

    def fail_after_fit(module: Any, inputs: Any) -> None:
        if inputs[0].shape[-2:] == (8, 12) and failing["left"]:
            failing["left"] -= 1
            raise FULL

    handle = decoder_pass(engine).register_forward_pre_hook(fail_after_fit)
    try:
        warm(engine, PROFILE, heard.append)
    finally:
        handle.remove()
    progress = [report.progress for report in heard]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert all(value <= 1 for value in progress)


def test_the_default_size_must_fit(engine, fail_forward):
    fail_forward(transformer_pass(engine), FULL, times=2)
    with pytest.raises(DeviceMemoryError):
        warm(engine, PROFILE, lambda report: None)
