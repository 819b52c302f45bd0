"""The lossy modes on a real NVIDIA GPU: its own rounded products against the emulated ones, compiled and not."""

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.command import alone
from bench.full_size import build
from bench.small_card import Trial, prove
from tests.generator.fast.conftest import random_transformer
from tests.gpu.conftest import LIGHTHOUSE
from tests.gpu.test_fast_denoiser import requested_bytes
from tests.gpu.test_flat_memory import FULL_SIZE_FOLDER
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.four_bits import Nf4Projection
from zimage_ui.generator.fast.lossy_projections import Fp8Projection, Int8Projection
from zimage_ui.generator.fast.quantised_rows import QuantisedRows, scaled
from zimage_ui.generator.fast.rounding import RoundedBlocks
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.placement import memory_need, read_device
from zimage_ui.generator.sources import TURBO_SIZES
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest, Precision

pytestmark = [pytest.mark.gpu, pytest.mark.model]

CUDA = torch.device("cuda:0")
TIMESTEPS = (1000.0, 913.5, 500.0, 12.25)
# Heads of 128 values, as the full-size model has them: not every kernel takes others; 1024 in the feed-forward.
SIZES = {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "n_layers": 6, "axes_dims": [32, 48, 48], "cap_feat_dim": 64}
EIGHT_BIT_KINDS = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection}
KINDS = {**EIGHT_BIT_KINDS, Precision.NF4: Nf4Projection}
# Bits of a value and its share of a scale, beside sixteen.
SHARES = {Precision.FP8: 1 / 2, Precision.INT8: 1 / 2, Precision.NF4: 4.5 / 16}
# Of a transformer of eight blocks, and of 255 of a picture; both of random weights. On a CPU: 0.22 and 30 in four bits.
LARGEST_ERRORS = {Precision.FP8: 0.15, Precision.INT8: 0.15, Precision.NF4: 0.3}
LARGEST_DIFFERENCES = {Precision.FP8: 16, Precision.INT8: 16, Precision.NF4: 45}
# Prepared and not: rounded at other places, and what differs then may be rounded further to another of few levels.
LARGEST_SPREADS = {Precision.FP8: 0.15, Precision.INT8: 0.15, Precision.NF4: 0.02}


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


@pytest.mark.parametrize("precision", EIGHT_BIT_KINDS, indirect=True)
@pytest.mark.parametrize("tokens", [32, 1056, 4128])
@pytest.mark.parametrize(("outputs", "inputs"), [(1152, 384), (384, 1024)])
def test_a_product_is_the_emulated_one(precision: Precision, tokens: int, outputs: int, inputs: int) -> None:
    weight = torch.randn(outputs, inputs, device=CUDA, dtype=torch.bfloat16)
    projection = KINDS[precision].of(weight)
    values = torch.randn(1, tokens, inputs, device=CUDA, dtype=torch.bfloat16)
    rows = projection.read(values)
    assert distance(rows.values.float() * rows.scales, values) < 0.04  # three bits of mantissa: 2.7 %
    # Of the same factors: CUDA divides by a number as it multiplies by its inverse, and a scale that is off by the last
    # bit rounds what lies between two numbers of eight bits to the other one.
    emulated = replace(projection, **{name: getattr(projection, name).cpu() for name in ("weight", "scales", "unit")})
    expected = scaled(emulated(QuantisedRows(*(each.cpu() for each in rows))))
    found = scaled(projection(rows))
    assert found.shape == (1, tokens, outputs)
    assert found.dtype == torch.bfloat16
    assert distance(found.cpu(), expected) < 5e-3  # bf16 once, and the tensor cores' own sums


@pytest.mark.parametrize("precision", [Precision.NF4], indirect=True)
def test_a_card_packs_as_a_cpu_does(precision: Precision) -> None:
    weight = torch.randn(1152, 384, device=CUDA, dtype=torch.bfloat16)
    here, there = Nf4Projection.of(weight, parts=3), Nf4Projection.of(weight.cpu(), parts=3)
    # A value in the middle between two levels may go to either.
    assert (here.plain().weight.cpu() != there.plain().weight).float().mean() < 1e-3


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
        assert 1e-3 < distance(found, exact) < LARGEST_ERRORS[precision]
    assert distance(prepared, plain) < LARGEST_SPREADS[precision]


def test_the_weights_take_less_memory(precision: Precision) -> None:
    made(precision)  # what a library allocates once is there before
    before = requested_bytes()
    exact = made(Precision.EXACT)
    between = requested_bytes()
    lossy = made(precision)
    after = requested_bytes()
    blocks = [*exact.network.refiner, *exact.network.layers]
    matrices = sum(each.weight.nbytes for weights in blocks for each in weights.projections)
    saved = (between - before) - (after - between)
    assert saved == pytest.approx(matrices * (1 - SHARES[precision]), rel=0.03)  # but for the scales
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
    assert 0 < np.abs(pictures[0] - pictures[1]).mean() < LARGEST_DIFFERENCES[precision]


@pytest.mark.parametrize("streamed_layers", [0, 4])
def test_rounded_while_reading_it_computes_the_same_bits(
    precision: Precision, prompt: torch.Tensor, streamed_layers: int
) -> None:
    expected = velocities(made(precision), prompt)
    model = random_transformer(**SIZES).to(CUDA, torch.bfloat16)
    blocks = RoundedBlocks(model, precision, torch.bfloat16, CUDA, streamed_layers)
    for name, sink in blocks.sinks.items():
        parameter = model.get_parameter(name)
        sink(parameter.data)
        parameter.data = parameter.new_empty(0)
    assert all(home.is_locked for home in blocks._homes.values())
    fast = FastTransformer(model, CUDA, torch.bfloat16, streamed_layers=streamed_layers, precision=blocks)
    assert fast.network.layers.streamed == streamed_layers
    for _ in range(5):
        assert torch.equal(velocities(fast, prompt), expected)
    fast.stream(0)
    assert torch.equal(velocities(fast, prompt), expected)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The full-size architecture with random weights, 20 GB; a process of its own leaves nothing on the GPU.

    That of `FULL_SIZE_FOLDER`, where there is one.
    """
    if FULL_SIZE_FOLDER:
        yield Path(FULL_SIZE_FOLDER)
        return
    folder = tmp_path_factory.mktemp("model") / "full"
    alone(build, folder, "cuda", False, "bfloat16")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("precision", "card_gib", "plan", "streamed", "kept"),
    [
        *((precision, 12, "text_encoder_offloaded", 0, "6.7 GB") for precision in EIGHT_BIT_KINDS),
        *((precision, 8, "streamed", 17, "6.7 GB") for precision in EIGHT_BIT_KINDS),
        (Precision.NF4, 8, "streamed", 4, "4.2 GB"),
    ],
    indirect=["precision"],
)
def test_a_small_card_draws_the_full_size_model(
    full_size: Path, precision: Precision, card_gib: int, plan: str, streamed: int, kept: str
) -> None:
    told = alone(prove, Trial(full_size, card_gib, precision, (1024, 1024)), 2, 2)
    print(json.dumps(told, indent=1))
    assert (told["plan"], told["streamed_layers"]) == (plan, streamed)
    assert told["reason"].startswith(f"the transformer's matrices are kept in {precision}: {kept} instead of 12.3 GB;")
    need = memory_need(TURBO_SIZES, (1024, 1024), 2, precision=precision)
    resident_bytes = need.transformer_bytes + need.vae_bytes - streamed * need.layer_bytes
    # two slots, or what is being rounded
    assert told["loading"]["allocated_peak_bytes"] < resident_bytes + 2 * need.layer_bytes + 5 * 10**8
    assert told["preparing"]["prepared"]
    pictures = [*told["cold"]["pictures"], *told["warm"]["pictures"]]
    assert len(pictures) == 4
    for picture in pictures:
        assert (picture["plan"], picture["precision"], picture["drawn"]) == (plan, precision, ["1024x1024"])
        assert picture["reserved_peak_bytes"] <= told["cap_bytes"]
    assert told["warm"]["pictures"][-1]["warm"]
    assert told["broken"] == []
