"""The decoder's kernels of our own on a real GPU: what torch's operations compute in fp32, rounded once."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_fast_denoiser import CUDA, distance
from zimage_ui.generator.fast import group_norm, wide_attention
from zimage_ui.generator.fast.gpu_decoder import Functions, GpuLayers, compiled_functions
from zimage_ui.generator.fast.triton_decoder import triton_functions
from zimage_ui.generator.fast.vae import FastDecoder
from zimage_ui.generator.loading import load_components

pytestmark = [pytest.mark.gpu, pytest.mark.model]

OURS = triton_functions()
EPS = 1e-6
# How far one rounding of normal numbers leads from them.
ROUNDING = {torch.bfloat16: 0.0025, torch.float16: 0.0004, torch.float32: 1e-6}
DTYPES = pytest.mark.parametrize("dtype", ROUNDING, ids=str)
# Pixels, channels, groups: the full-size decoder's channels, a tiny one's, and some that fill no block of a kernel.
EXTENTS = pytest.mark.parametrize(
    "extents",
    [
        (1, 128, 32), (1, 1, 1), (1, 8, 8), (16, 8, 4), (37, 8, 2), (37, 48, 8), (4096, 48, 8), (333, 200, 25),
        (70, 6, 3), (4096, 512, 32), (4097, 512, 32), (65 * 67, 256, 32), (768 * 768, 128, 32), (999_983, 128, 32),
    ],
    ids=str,
)  # fmt: skip


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator(CUDA).manual_seed(seed), device=CUDA).to(dtype)


def nearly(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """As near as one rounding allows, on the whole and value by value."""
    assert found.dtype == dtype
    assert found.shape == expected.shape
    most = 4 * ROUNDING[dtype]
    return distance(found.float(), expected) < 2 * ROUNDING[dtype] and torch.allclose(
        found.float(), expected, rtol=most, atol=most
    )


@EXTENTS
@DTYPES
def test_measures(extents, dtype):
    pixels, channels, groups = extents
    rows = 3 * normal(1, pixels, channels, dtype=dtype) + 1
    pending, weight, bias = normal(3, channels, seed=1).unbind()
    factor, summand = OURS.measure(rows, pending, weight, bias, groups, EPS)
    exact = (each.double() for each in (rows, pending, weight, bias))
    expected_factor, expected_summand = group_norm.measure(*exact, groups, EPS)
    allowed, size = allowance(rows[0].double() + pending, groups)
    assert ((factor - expected_factor).abs() <= allowed * expected_factor.abs()).all()
    assert ((summand - expected_summand).abs() <= allowed * (bias.abs() + size * expected_factor.abs())).all()


def allowance(values: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """How far fp32 leads from exact statistics of (pixels, channels), relatively; and what is typical of the values.

    The variance is a difference, of which groups of few values leave little.
    """
    grouped = values.unflatten(1, (groups, -1))
    squares = grouped.square().mean((0, 2))
    variance = squares - grouped.mean((0, 2)).square()
    allowed = 1e-5 + 1e-6 * squares / (variance + EPS)
    each = values.shape[1] // groups
    return allowed.repeat_interleave(each), 1 + (squares.sqrt().repeat_interleave(each) + values.abs().amax(0))


@EXTENTS
def test_measures_the_same_bits_every_time_and_however_it_is_cut(extents):
    pixels, channels, groups = extents
    rows, (pending, weight, bias) = normal(1, pixels, channels, dtype=torch.bfloat16), normal(3, channels, seed=1)
    first = torch.stack(OURS.measure(rows, pending, weight, bias, groups, EPS))
    cuts = [rows, rows.unflatten(1, (2, -1))[0] if pixels % 2 == 0 else rows]
    for cut in cuts * 3:
        again = OURS.measure(cut, pending, weight, bias, groups, EPS)
        assert torch.equal(torch.stack(again), first)


@EXTENTS
@DTYPES
@pytest.mark.parametrize("name", ["normalise", "normalise_silu"])
def test_normalises(extents, dtype, name):
    pixels, channels, _ = extents
    rows, (factor, summand) = normal(pixels, channels, dtype=dtype), normal(2, channels, seed=1)
    expected = getattr(group_norm, name)(rows.float(), factor, summand)
    assert nearly(getattr(OURS, name)(rows, factor, summand), expected, dtype)


@EXTENTS
@DTYPES
def test_joins(extents, dtype):
    pixels, channels, _ = extents
    rows, others = normal(pixels, channels, dtype=dtype), normal(pixels, channels, dtype=dtype, seed=1)
    pending = normal(channels, seed=2)
    assert nearly(OURS.join(rows, others, pending), group_norm.join(rows.float(), others.float(), pending), dtype)


def test_silu_of_large_values_is_theirs_or_nothing():
    rows = torch.tensor([-1e4, -200, -90, -1, 0, 1, 90, 200, 1e4], device=CUDA)[:, None].repeat(1, 16)
    found = OURS.normalise_silu(rows, torch.ones(16, device=CUDA), torch.zeros(16, device=CUDA))
    assert torch.allclose(found, torch.nn.functional.silu(rows), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["normalise", "normalise_silu", "join"])
def test_planes_may_have_more_than_two_to_the_31_values(name):
    """In 16 bit 4.3 GB and a bit: zeros, but for a few pixels that are looked at, the last among them."""
    ours, theirs = getattr(OURS, name), getattr(group_norm, name)
    pixels, channels = 2**24 + 3, 128
    places = torch.tensor([0, 1, 2**22 + 5, 2**23, 2**24 - 1, 2**24, pixels - 1], device=CUDA)
    few = normal(len(places), channels, dtype=torch.bfloat16)
    rows = torch.zeros(pixels, channels, dtype=torch.bfloat16, device=CUDA)
    rows[places] = few
    factor, summand = normal(2, channels, seed=1)

    def by(function: Any, values: torch.Tensor) -> torch.Tensor:
        return function(values, values, summand) if name == "join" else function(values, factor, summand)

    found = by(ours, rows)
    assert nearly(found[places], by(theirs, few.float()), torch.bfloat16)
    found[places] = of_zero = by(ours, torch.zeros(1, channels, dtype=torch.bfloat16, device=CUDA))
    assert all(bool((part == of_zero).all()) for part in found.split(2**21))


def test_planes_of_more_than_two_to_the_31_values_are_measured_whole():
    pixels, channels = 2**24 + 3, 128
    rows = torch.ones(1, pixels, channels, dtype=torch.bfloat16, device=CUDA)
    rows[:, 2**23 :] = 3
    weight, bias = torch.ones(channels, device=CUDA), torch.zeros(channels, device=CUDA)
    factor, summand = OURS.measure(rows, bias, weight, bias, 32, EPS)
    # Half of ones, half of threes: a mean of 2 and a deviation of 1.
    assert torch.allclose(factor, torch.ones_like(factor), atol=1e-4)
    assert torch.allclose(summand, torch.full_like(summand, -2), atol=1e-4)


@DTYPES
@pytest.mark.parametrize("columns", [1, 16, 1000, 1024, 4096, 9216, 16_224, 16_384, 16_385, 25_600, 36_864])
def test_probabilities(columns, dtype):
    scores = 8 * normal(33, columns)
    found = OURS.probabilities(scores, 0.5, dtype)
    expected = torch.softmax(scores.double() * 0.5, -1).float()
    assert found.dtype == dtype
    # A half has no small numbers: what it cannot hold is far below a row's largest.
    assert torch.allclose(found.float(), expected, rtol=4 * max(ROUNDING[dtype], 1e-5), atol=1e-6)
    assert torch.allclose(found.float().sum(-1), torch.ones(33, device=CUDA), atol=0.01)


def test_scores_may_have_more_than_two_to_the_31_bytes_and_values():
    scores = torch.zeros(2**17 + 1, 2**14, device=CUDA)
    scores[-1] = normal(2**14)
    found = OURS.probabilities(scores, 2.0, torch.bfloat16)
    expected = wide_attention.probabilities(scores[-1:], 2.0, torch.float32)
    assert torch.allclose(found[-1:].float(), expected, rtol=0.01, atol=1e-7)
    assert all(bool((part == 2**-14).all()) for part in found[:-1].split(2**13))


def test_very_low_and_very_high_scores_are_no_division_by_zero():
    for columns in (4096, 36_864):
        scores = torch.full((2, columns), -3e4, device=CUDA)
        scores[1, columns - 7] = 3e4
        found = OURS.probabilities(scores, 1.0, torch.float32)
        assert torch.allclose(found[0], torch.full_like(found[0], 1 / columns), rtol=1e-4)
        assert found[1, columns - 7] == found[1].sum() == 1


class TestAWholeDecoder:
    @pytest.fixture
    def vae(self, folder: Path) -> Any:
        with torch.inference_mode(False):
            return load_components(str(folder), progress=lambda _: None)[0].vae

    @pytest.fixture
    def exact(self, vae, monkeypatch) -> Any:
        """The same in fp32, and no product rounded to less."""
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        with torch.inference_mode(False):
            return deepcopy(vae).float()

    @staticmethod
    def decoded(vae: Any, functions: Functions, latents: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode(False):
            decoder = FastDecoder(deepcopy(vae), CUDA, ways=[lambda: GpuLayers(functions)])
        assert decoder.prepare(*latents.shape[-2:])
        return decoder.decode(latents)[0].float()

    @pytest.mark.parametrize("size", [(32, 32), (26, 38)], ids=str)
    def test_is_the_same_by_either_way(self, vae, exact, size):
        latents = normal(1, 16, *size, dtype=vae.dtype)
        expected = exact.decode(latents.float(), return_dict=False)[0]
        ours, compiled = (self.decoded(vae, functions, latents) for functions in (OURS, compiled_functions()))
        rounding = distance(compiled, expected)
        assert distance(ours, expected) <= 1.1 * rounding
        assert distance(ours, compiled) <= 1.5 * rounding

    def test_in_fp32_it_is_the_stock_decoder(self, exact):
        latents = normal(1, 16, 16, 24)
        expected = exact.decode(latents, return_dict=False)[0]
        assert distance(self.decoded(exact, OURS, latents), expected) < 1e-4

    def test_the_usual_way_compiles_nothing(self, vae):
        from torch._dynamo.utils import counters

        before = counters["stats"]["unique_graphs"]
        decoder = FastDecoder(vae, CUDA)
        assert decoder.prepare(16, 16)
        assert decoder.decode(normal(1, 16, 22, 18, dtype=vae.dtype))[0].shape[-2:] == (176, 144)
        assert counters["stats"]["unique_graphs"] == before
