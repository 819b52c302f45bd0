"""The lossy modes on a real NVIDIA GPU: its own eight-bit products against the emulated ones, compiled and not."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from tests.gpu.conftest import LIGHTHOUSE
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.lossy_projections import Fp8Projection, Int8Projection
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.placement import read_device
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest, Precision

pytestmark = [pytest.mark.gpu, pytest.mark.model]

CUDA = torch.device("cuda:0")
TIMESTEPS = (1000.0, 913.5, 500.0, 12.25)
# Heads of 128 values, as the full-size model has them: not every kernel takes others; 1024 in the feed-forward.
SIZES = {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "n_layers": 6, "axes_dims": [32, 48, 48], "cap_feat_dim": 64}
KINDS = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection}


@pytest.fixture(params=KINDS, ids=str)
def precision(request: pytest.FixtureRequest) -> Precision:
    if not read_device().computes_in(request.param):
        pytest.skip(f"this card has no {request.param}")
    return request.param


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(CUDA, torch.bfloat16)


def distance(values: torch.Tensor, expected: torch.Tensor) -> float:
    return float((values.float() - expected.float()).norm() / expected.float().norm())


def made(precision: Precision) -> FastTransformer:
    model = random_transformer(**SIZES).to(CUDA, torch.bfloat16)
    return FastTransformer(model, CUDA, torch.bfloat16, precision=precision)


def velocities(fast: FastTransformer, prompt: torch.Tensor, shape: tuple[int, ...] = (1, 16, 26, 38)) -> torch.Tensor:
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(CUDA)
    wanted = DenoiserShape(*shape[2:], caption_length(prompt), shape[0])
    with torch.inference_mode():
        denoiser = fast.denoiser(wanted, TIMESTEPS, prompt)
        steps = enumerate(TIMESTEPS)
        return torch.stack([denoiser.predict(latents, torch.tensor(time), step) for step, time in steps])


@pytest.mark.parametrize("tokens", [32, 1056, 4128])
@pytest.mark.parametrize(("outputs", "inputs"), [(1152, 384), (384, 1024)])
def test_a_product_is_the_emulated_one(precision: Precision, tokens: int, outputs: int, inputs: int) -> None:
    weight, values = torch.randn(outputs, inputs).bfloat16(), torch.randn(1, tokens, inputs).bfloat16()
    expected = KINDS[precision].of(weight)(values)
    found = KINDS[precision].of(weight.to(CUDA))(values.to(CUDA))
    assert found.shape == (1, tokens, outputs)
    assert found.dtype == torch.bfloat16
    assert distance(found.cpu(), expected) < 5e-3  # bf16 once, and the tensor cores' own sums


@pytest.mark.parametrize("shape", [(1, 16, 26, 38), (2, 16, 16, 24)])
def test_prepared_and_not_it_is_near_the_exact_one(
    precision: Precision, prompt: torch.Tensor, shape: tuple[int, ...]
) -> None:
    exact = velocities(made(Precision.EXACT), prompt, shape)
    lossy = made(precision)
    plain = velocities(lossy, prompt, shape)
    assert lossy.prepare(DenoiserShape(*shape[2:], 64, shape[0]))
    prepared = velocities(lossy, prompt, shape)
    assert torch.equal(velocities(lossy, prompt, shape), prepared)
    for found in (plain, prepared):
        assert found.isfinite().all()
        assert 1e-3 < distance(found, exact) < 0.15
    # not rounded at the same places: the compiler leaves out what eager mode rounds to bf16 before it rounds further
    assert distance(prepared, plain) < 0.15


def test_the_weights_take_half_the_memory(precision: Precision) -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(CUDA)
    exact = made(Precision.EXACT)
    between = torch.cuda.memory_allocated(CUDA)
    lossy = made(precision)
    after = torch.cuda.memory_allocated(CUDA)
    blocks = [*exact.network.refiner, *exact.network.layers]
    matrices = sum(each.weight.nbytes for weights in blocks for each in weights.projections)
    saved = (between - before) - (after - between)
    assert saved == pytest.approx(matrices / 2, rel=0.03)  # but for the scales
    assert len(lossy.network.layers) == len(exact.network.layers)


def test_a_card_draws_with_it_and_says_so(precision: Precision, folder: Path) -> None:
    pictures = []
    for chosen in (Precision.EXACT, precision):
        generator = ZImageGenerator(str(folder), embedding_cache_bytes=2**26, precision=chosen)
        info = generator.load(lambda _: None)
        assert info.precision is chosen
        assert info.precision_reason
        result: Any = generator.generate(GenerationRequest(**LIGHTHOUSE), SILENT, threading.Event())
        assert result.precision is chosen
        pictures.append(np.frombuffer(result.images[0].pixels, np.uint8).astype(int))
        generator.close()
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < 16
