"""Kernels of our own on a real GPU: what torch's operations compute, rounded once."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import functional

from tests.gpu.test_fast_denoiser import CUDA, distance
from zimage_ui.generator.fast import parts, triton_parts
from zimage_ui.generator.fast.attention import has_fp8_attention
from zimage_ui.generator.fast.four_bits import Nf4Projection
from zimage_ui.generator.fast.fp8_attention import fp8_attention
from zimage_ui.generator.fast.quantised_rows import Activations, Product, QuantisedRows, ScaledProduct, quantise

pytestmark = [pytest.mark.gpu, pytest.mark.model]

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
EPS = 1e-5
# How far one rounding of normal numbers leads from them.
ROUNDING = {BF16: 0.0025, FP8: 0.03}
# Pictures, tokens, heads, head_dim: the full-size model's, and some that fill no block of a kernel.
EXTENTS = pytest.mark.parametrize("extents", [(1, 1088, 30, 128), (2, 37, 3, 128), (1, 5, 4, 32)], ids=str)


class Reader(NamedTuple):
    form: torch.dtype

    def read(self, values: torch.Tensor) -> Activations:
        return quantise(values, self.form) if self.form == FP8 else values.to(self.form)

    def __call__(self, activations: Activations) -> Product:
        raise NotImplementedError


IN_FP32 = Reader(torch.float32)


def restored(activations: Activations) -> torch.Tensor:
    scales: Any = activations.scales if isinstance(activations, QuantisedRows) else 1
    values = activations.values if isinstance(activations, QuantisedRows) else activations
    return values.float() * scales


def normal(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(CUDA, dtype)


def product(*shape: int, shares: int, scaled: bool) -> Product:
    values = normal(*shape)
    rows = normal(*shape[:-1], 1, dtype=torch.float32).abs() + 0.1
    return ScaledProduct(values, rows, torch.linspace(0.5, 3, shares, device=CUDA)) if scaled else values


def in_fp32(product: Product) -> Product:
    return product._replace(values=product.values.float()) if isinstance(product, ScaledProduct) else product.float()


def rotation(tokens: int, head_dim: int) -> torch.Tensor:
    angles = normal(tokens, 1, head_dim // 2, dtype=torch.float32)
    sines = torch.stack((-angles.sin(), angles.sin()), dim=-1).flatten(-2)
    return torch.stack((angles.cos().repeat_interleave(2, dim=-1), sines))


def norms(head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    query, key = normal(2, head_dim, dtype=torch.float32).abs() + 0.5
    return query, key


@pytest.mark.parametrize("extents", [(11520, 3840), (384, 1024), (48, 1040)], ids=str)
def test_four_bits_are_unpacked_to_the_same_values(extents):
    projection = Nf4Projection.of(normal(*extents))
    assert torch.equal(triton_parts.plain(projection).weight, parts.plain(projection).weight)


@EXTENTS
@pytest.mark.parametrize("scaled", [False, True])
def test_queries_and_keys_are_normed_and_turned(extents, scaled):
    pictures, tokens, heads, head_dim = extents
    heads_of = product(pictures, tokens, 3 * heads * head_dim, shares=3, scaled=scaled)
    arguments = (*norms(head_dim), EPS, rotation(tokens, head_dim))
    expected = parts.turned_heads(in_fp32(heads_of), *arguments)
    for ours, theirs in zip(triton_parts.turned_heads(heads_of, *arguments), expected, strict=True):
        assert ours.dtype == BF16
        assert ours.shape == theirs.shape == extents
        assert distance(ours.float(), theirs) < ROUNDING[BF16]


@EXTENTS
def test_in_eight_bits_they_have_the_limits_of_their_norms(extents):
    pictures, tokens, heads, head_dim = extents
    heads_of = product(pictures, tokens, 3 * heads * head_dim, shares=3, scaled=True)
    arguments = (*norms(head_dim), EPS, rotation(tokens, head_dim))
    *expected, _ = parts.turned_heads(in_fp32(heads_of), *arguments)
    found = triton_parts.turned_queries_and_keys(heads_of, *arguments, FP8).unbind(2)
    for ours, theirs, norm in zip(found, expected, arguments[:2], strict=True):
        limit = float(norm.abs().max()) * head_dim**0.5
        assert distance(ours.float() * limit / 448, theirs) < ROUNDING[FP8]


@EXTENTS
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("form", [BF16, FP8], ids=str)
def test_sums_and_norms(extents, scaled, form):
    pictures, tokens, heads, head_dim = extents
    width = heads * head_dim
    stream, change = normal(pictures, tokens, width), product(pictures, tokens, width, shares=1, scaled=scaled)
    gate, scale = normal(2, width, dtype=torch.float32)
    added, normed = triton_parts.add_and_norm(stream, change, gate, scale, EPS, Reader(form))
    expected, _ = parts.add_and_norm(stream.float(), in_fp32(change), gate, scale, EPS, IN_FP32)
    assert added.dtype == BF16
    assert distance(added.float(), expected) < ROUNDING[BF16]
    assert distance(restored(normed), parts.norm(added, scale, EPS)) < ROUNDING[form]


# Pictures, tokens, width: some that fill no block of a kernel, and rows that begin anywhere.
ROWS = pytest.mark.parametrize("rows", [(1, 4096, 3840), (2, 37, 384), (3, 5, 97), (1, 1, 96)], ids=str)
LYING = pytest.mark.parametrize("lying", ["dense", "before others", "of one picture"])


def lying_as(rows: tuple[int, int, int], lying: str) -> torch.Tensor:
    """Values of a mean that is not zero; dense, as an image before its captions, or as captions of one prompt."""
    pictures, tokens, width = rows
    if lying == "before others":
        return normal(pictures, tokens + 7, width).add(0.5)[:, :tokens]
    if lying == "of one picture":
        return normal(1, tokens, width).add(0.5).expand(pictures, -1, -1)
    return normal(*rows).add(0.5)


@ROWS
@LYING
@pytest.mark.parametrize("form", [BF16, FP8], ids=str)
def test_norms(rows, lying, form):
    values, scale = lying_as(rows, lying), normal(rows[-1], dtype=torch.float32)
    found = triton_parts.rms_normed(values, scale, EPS, Reader(form))
    written = found.values if isinstance(found, QuantisedRows) else found
    assert written.dtype == form
    assert written.shape == values.shape
    assert written.is_contiguous()
    assert distance(restored(found), parts.norm(values, scale, EPS)) < ROUNDING[form]


@ROWS
@LYING
def test_norms_less_the_mean(rows, lying):
    values, scale = lying_as(rows, lying), normal(rows[-1], dtype=torch.float32)
    found = triton_parts.layer_normed(values, scale, EPS)
    assert found.dtype == BF16
    assert found.shape == values.shape
    assert found.is_contiguous()
    assert distance(found.float(), parts.layer_normed(values.float(), scale, EPS)) < ROUNDING[BF16]


def test_a_mean_far_from_zero_takes_nothing_from_what_is_normed():
    values, scale = 300 + 4 * normal(1, 40, 3840), normal(3840, dtype=torch.float32)
    found = triton_parts.layer_normed(values, scale, EPS)
    expected = functional.layer_norm(values.double(), scale.shape, scale.double(), None, EPS)
    assert distance(found.double(), expected) < ROUNDING[BF16]


@EXTENTS
@pytest.mark.parametrize("form", [BF16, FP8], ids=str)
def test_gates(extents, form):
    pictures, tokens, heads, head_dim = extents
    both = product(pictures, tokens, 2 * (heads * head_dim + 16), shares=2, scaled=form == FP8)
    found = triton_parts.gated(both, Reader(form))
    expected = parts.gated(in_fp32(both), IN_FP32)
    assert distance(restored(found), restored(expected)) < ROUNDING[form]


def test_eight_bits_are_rounded_as_everywhere():
    values = normal(2, 37, 96)
    values[0, 3] = 0
    values[1, 5, 7] = 6.6e4  # such values there are
    found, expected = triton_parts.read(values, Reader(FP8)), quantise(values, FP8)
    assert isinstance(found, QuantisedRows)
    assert torch.equal(found.scales, expected.scales)
    assert (found.values.view(torch.uint8) != expected.values.view(torch.uint8)).float().mean() < 1e-3


def test_tokens_of_several_pictures_may_lie_apart():
    stream, change = normal(2, 40, 96)[:, :20], normal(2, 20, 96)
    gate, scale = normal(2, 96, dtype=torch.float32)
    found, _ = triton_parts.add_and_norm(stream, change, gate, scale, EPS, Reader(BF16))
    expected, _ = parts.add_and_norm(stream.float(), change.float(), gate, scale, EPS, IN_FP32)
    assert distance(found.float(), expected) < ROUNDING[BF16]


class TestAttention:
    """In eight bits, where that is served."""

    @pytest.fixture(autouse=True)
    def served(self) -> None:
        if not has_fp8_attention(128, CUDA):
            pytest.skip("attention in eight bits is for Hopper")

    @pytest.mark.parametrize("pictures_tokens", [(1, 4160), (1, 1088), (2, 160), (1, 96), (1, 32), (1, 128)], ids=str)
    def test_it_is_as_near_to_fp32_as_its_rounding_allows(self, pictures_tokens):
        pictures, tokens = pictures_tokens
        found, allowed = distances(product(pictures, tokens, 3 * 3 * 128, shares=3, scaled=True))
        assert found <= 1.1 * allowed

    def test_values_may_grow_and_shrink_a_millionfold(self):
        """The sum so far is rescaled from block to block, up and down."""
        heads_of = product(1, 512, 3 * 128, shares=3, scaled=True)
        growing = torch.logspace(-3, 3, 512, device=CUDA)[None, :, None]
        for rows in (growing, growing.flip(1)):
            found, allowed = distances(heads_of._replace(rows=rows.contiguous()))
            assert found <= 1.1 * allowed


def distances(heads_of: Any) -> tuple[float, float]:
    """From attention in fp32: of the kernel, and of the same rounding emulated."""
    arguments = (*norms(128), EPS, rotation(heads_of.values.shape[1], 128))
    exact = parts.turned_heads(in_fp32(heads_of), *arguments)
    expected = functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in exact))
    expected = expected.transpose(1, 2).flatten(2)
    found = fp8_attention(heads_of, *arguments)
    assert found.values.dtype == FP8
    return distance(restored(found), expected), distance(emulated(*exact, *arguments[:2]), expected)


def emulated(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, query_norm: torch.Tensor, key_norm: torch.Tensor
) -> torch.Tensor:
    """The same rounding in fp32 arithmetic, of (pictures, tokens, heads, 128) each: (pictures, tokens, heads * 128)."""

    def rounded(values: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        return (values * (448 / largest)).to(FP8).float() * (largest / 448)

    query, key = (rounded(heads, norm.abs().max() * 128**0.5) for heads, norm in ((query, query_norm), (key, key_norm)))
    scores = torch.einsum("pqhd,pkhd->phqk", query, key) / 128**0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1, keepdim=True)
    blocks = [rounded(block, block.abs().amax((1, 3), keepdim=True)) for block in value.split(128, dim=1)]
    shares = (weights * 256).to(FP8).float() / (256 * total)
    answer = torch.einsum("phqk,pkhd->pqhd", shares, torch.cat(blocks, dim=1))
    return rounded(answer, value.abs().amax((1, 2, 3), keepdim=True)).flatten(2)
