"""Streamed layers and page-locked memory on a real NVIDIA GPU."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from tests.gpu.conftest import LIGHTHOUSE
from tests.gpu.test_fast_denoiser import requested_bytes
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.text_encoder import FastTextEncoder
from zimage_ui.generator.loading import load_components
from zimage_ui.generator.page_locked import HostBuffer
from zimage_ui.generator.placement import read_device
from zimage_ui.generator.residence import TextEncoderResidence
from zimage_ui.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.model]
CUDA = torch.device("cuda:0")
SHAPE = DenoiserShape(32, 32, 32)
TIMESTEPS = (1000.0, 700.0, 12.25)
LAYERS = 9
SIZES: dict[str, Any] = {
    "dim": 1024, "n_heads": 8, "n_kv_heads": 8, "n_layers": LAYERS, "axes_dims": [32, 48, 48], "cap_feat_dim": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return random_transformer(**SIZES).bfloat16()


@pytest.fixture
def fast(model: Any) -> FastTransformer:
    return FastTransformer(model.to(CUDA), CUDA, torch.bfloat16)


def velocities(fast: FastTransformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn((1, 16, 32, 32), generator=generator).to(CUDA)
    prompt = torch.randn((9, 64), generator=generator).to(CUDA, torch.bfloat16)
    denoiser = fast.denoiser(SHAPE, TIMESTEPS, prompt)
    with torch.inference_mode():
        return torch.stack(
            [denoiser.predict(latents, torch.tensor(time), step) for step, time in enumerate(TIMESTEPS)]
        ).cpu()


@pytest.mark.parametrize("count", [3, 5, LAYERS])
def test_streamed_layers_compute_the_same_bits_again_and_again(fast, count):
    expected = velocities(fast)
    fast.stream(count)
    for _ in range(20):
        assert torch.equal(velocities(fast), expected)
    fast.stream(0)
    assert torch.equal(velocities(fast), expected)


def test_compiled_and_streamed_is_compiled_and_resident(fast):
    assert fast.prepare(SHAPE)
    resident = velocities(fast)
    fast.stream(5)
    assert fast.prepare(SHAPE)
    assert torch.equal(velocities(fast), resident)


def test_what_is_streamed_takes_the_room_of_two_slots(fast):
    layer_bytes = 2 * 1024 * (4 * 1024 + 3 * int(1024 / 3 * 8))
    velocities(fast)  # what a process keeps once, such as cuBLAS's workspace, is there before
    before = requested_bytes()
    fast.stream(LAYERS)
    saved = before - requested_bytes()
    assert saved == pytest.approx((LAYERS - 2) * layer_bytes, rel=0.02)
    reserved = torch.cuda.memory_reserved(CUDA)
    for _ in range(10):
        velocities(fast)
    assert requested_bytes() <= before - saved + 2**25
    assert torch.cuda.memory_reserved(CUDA) <= reserved + 2**27


def test_weights_can_be_on_the_host_from_the_start():
    from zimage_ui.generator.fast.streaming import streamed_names

    model = random_transformer(**SIZES).bfloat16()
    expected = velocities(FastTransformer(random_transformer(**SIZES).to(CUDA, torch.bfloat16), CUDA, torch.bfloat16))
    on_host = streamed_names(4, LAYERS)
    for name, parameter in model.named_parameters():
        if name not in on_host:
            parameter.data = parameter.data.to(CUDA)
    fast = FastTransformer(model, CUDA, torch.bfloat16, streamed_layers=4)
    assert torch.equal(velocities(fast), expected)


def test_laying_out_what_was_loaded_copies_no_matrix(folder: Path):
    """Neither at first nor when the text encoder has been away: the matrices of one product come below each other."""
    components, _ = load_components(str(folder), progress=lambda _: None)
    text_encoder, transformer = components.text_encoder, components.transformer
    residence = TextEncoderResidence(text_encoder, CUDA)

    def copied_bytes(lay_out: Callable[[], object]) -> int:
        torch.cuda.reset_peak_memory_stats(CUDA)
        before = torch.cuda.memory_allocated(CUDA)
        lay_out()
        return torch.cuda.max_memory_allocated(CUDA) - before

    matrix_bytes = min(
        transformer.layers[0].attention.to_q.weight.nbytes, text_encoder.layers[0].mlp.up_proj.weight.nbytes
    )
    assert copied_bytes(lambda: FastTransformer(transformer, CUDA, components.dtype)) < matrix_bytes
    for resident in (True, False, True):
        residence.settle(resident=resident)
        encoder = FastTextEncoder(text_encoder, CUDA)
        if resident:
            assert copied_bytes(encoder._laid_out) < matrix_bytes
        del encoder


def test_memory_is_page_locked_and_let_go():
    buffer = HostBuffer(2**24 + 12345, locked=True)
    assert buffer.is_locked
    assert buffer.bytes.is_pinned()
    values = buffer.bytes.random_().clone()
    assert torch.equal(buffer.bytes.to(CUDA, non_blocking=True).cpu(), values)
    view = buffer.bytes
    del buffer
    assert not view.is_pinned()


def test_memory_that_cannot_be_locked_leaves_no_error_behind():
    import zimage_ui.generator.page_locked as module

    buffer = HostBuffer(2**20, locked=True)
    assert not module._lock(buffer.bytes)  # a second time
    assert float(torch.ones(3, device=CUDA).sum()) == 3.0


def test_a_cap_counts_like_a_smaller_card():
    whole = read_device()
    try:
        torch.cuda.set_per_process_memory_fraction(0.25)
        capped = read_device()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert capped.total_bytes == pytest.approx(whole.total_bytes / 4, rel=1e-6)
    assert capped.free_bytes <= capped.total_bytes


@pytest.mark.parametrize("plan", [MemoryPlan.TEXT_ENCODER_OFFLOADED, MemoryPlan.STREAMED])
def test_plans_change_no_pixel(folder: Path, plan: MemoryPlan):
    components, _ = load_components(str(folder), progress=lambda _: None)

    def draw(engine: Engine) -> bytes:
        return bytes(engine.generate(GenerationRequest(**LIGHTHOUSE), SILENT, threading.Event()).images[0].pixels)

    resident = draw(Engine(components, 2**26))
    layers = len(components.transformer.layers)
    engine = Engine(replace(components, memory_plan=plan, streamed_layers=layers), 2**26)
    assert engine._transformer.network.layers.streamed == (layers if plan.streams_transformer else 0)
    assert draw(engine) == resident
