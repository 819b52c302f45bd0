"""Warming is running: the real stages, with progress that is true and never goes back."""

import logging
from typing import Any

import pytest
import torch

from tests.generator.hooked import decoder_pass, transformer_pass
from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.base import ModelProfile, WarmupPhase, WarmupProgress
from zimage_ui.generator.components import Components
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.warmup import WarmShape, shapes_to_warm, warm

pytestmark = pytest.mark.model

PROFILE = ModelProfile(
    name="mini",
    num_inference_steps=3,
    guidance_scale=0.0,
    takes_negative_prompt=False,
    sizes=((96, 64), (64, 64), (64, 96)),
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
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


def test_a_cpu_warms_the_default_size_and_a_gpu_every_size():
    assert shapes_to_warm(PROFILE, CPU) == (WarmShape(96, 64, 3),)
    assert shapes_to_warm(PROFILE, CUDA) == (
        WarmShape(96, 64, 3, (32, 64)),
        WarmShape(64, 64, 1, (32, 64)),
        WarmShape(64, 96, 1, (32, 64)),
    )


def test_the_real_stages_run_with_all_steps_and_every_step_is_reported(engine, forwards):
    heard: list[WarmupProgress] = []
    warm(engine, PROFILE, heard.append)
    assert forwards == [(8, 12)] * 3
    assert engine.projection is not None
    assert {report.phase for report in heard} == {WarmupPhase.WARMING}
    assert [report.detail for report in heard if report.detail.startswith("step")] == [
        f"step {step} of 3 at 96 x 64" for step in (1, 2, 3)
    ]
    progress = [report.progress for report in heard]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert 0 < progress[0] < 1


def test_the_cache_begins_empty_afterwards(engine):
    warm(engine, PROFILE, lambda report: None)
    stats = engine.cache_stats()
    assert (stats.hits, stats.misses, stats.entries) == (0, 0, 0)


def test_every_size_is_prepared_for_prompts_of_usual_lengths_before_its_pass(engine, monkeypatch, forwards):
    monkeypatch.setattr(
        "zimage_ui.generator.warmup.shapes_to_warm", lambda profile, device: shapes_to_warm(profile, CUDA)
    )
    prepared: list[tuple[int, ...]] = []
    monkeypatch.setattr(engine, "prepare", lambda *size: prepared.append((*size, len(forwards))))
    heard: list[WarmupProgress] = []
    warm(engine, PROFILE, heard.append)
    assert prepared == [
        (96, 64, 32, 0), (96, 64, 64, 0), (64, 64, 32, 3), (64, 64, 64, 3), (64, 96, 32, 4), (64, 96, 64, 4),
    ]  # fmt: skip
    assert [report.detail for report in heard if report.detail.startswith("prepared")] == [
        f"prepared for {width} x {height} and prompts of up to {tokens} tokens" for width, height, tokens, _ in prepared
    ]


def test_progress_does_not_go_back_when_a_pass_is_tried_again(engine, fail_forward):
    fail_forward(decoder_pass(engine), FULL, times=0)
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


def test_a_further_size_that_does_not_fit_is_logged_and_left(engine, monkeypatch, caplog, forwards):
    monkeypatch.setattr(
        "zimage_ui.generator.warmup.shapes_to_warm", lambda profile, device: shapes_to_warm(profile, CUDA)
    )

    def fail_large(module: Any, inputs: Any) -> None:
        if tuple(inputs[1].shape[-2:]) == (12, 8):
            raise FULL

    handle = transformer_pass(engine).register_forward_pre_hook(fail_large)
    heard: list[WarmupProgress] = []
    try:
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            warm(engine, PROFILE, heard.append)
    finally:
        handle.remove()
    assert "64 x 96" in caplog.text
    assert heard[-1].progress == 1.0
    assert (8, 8) in forwards
