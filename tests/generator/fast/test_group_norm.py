"""The two passes of a group norm: the stock norm's numbers for any number of pixels, compiled once for all of them."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional

from zimage_ui.generator.fast.any_size import compiled
from zimage_ui.generator.fast.group_norm import in_stretches, join, measure, normalise, normalise_silu

EPS = 1e-6


def by_hand(rows: torch.Tensor, pending: torch.Tensor, norm: torch.nn.GroupNorm) -> torch.Tensor:
    return norm((rows + pending).T[None])[0].T


@pytest.fixture
def norm(noise) -> torch.nn.GroupNorm:
    norm = torch.nn.GroupNorm(8, 32, EPS).requires_grad_(False)
    norm.weight.copy_(noise(32, seed=1))
    norm.bias.copy_(noise(32, seed=2))
    return norm


@pytest.mark.parametrize("pixels", [4, 60, 66 * 50, 4096])
def test_is_the_stock_norm(noise, norm, pixels):
    rows, pending = 3 * noise(pixels, 32) + 1, noise(32, seed=3)
    factor, summand = measure(in_stretches(rows), pending, norm.weight, norm.bias, 8, EPS)
    expected = by_hand(rows, pending, norm)
    assert torch.allclose(normalise(rows, factor, summand), expected, atol=1e-5)
    assert torch.allclose(normalise_silu(rows, factor, summand), functional.silu(expected), atol=1e-5)


def test_a_large_mean_costs_less_than_16_bit_rounding_has(noise, norm):
    rows = (noise(4096, 32) + 30).bfloat16()
    factor, summand = measure(in_stretches(rows), torch.zeros(32), norm.weight, norm.bias, 8, EPS)
    expected = by_hand(rows.double(), torch.zeros(32).double(), norm.double())
    assert torch.allclose(rows.double() * factor + summand, expected, atol=2e-3)


def test_one_value_everywhere_is_no_division_by_zero(norm):
    rows = torch.full((64, 32), 0.1)
    factor, summand = measure(in_stretches(rows), torch.zeros(32), norm.weight, norm.bias, 8, EPS)
    assert torch.isfinite(normalise(rows, factor, summand)).all()


@pytest.mark.parametrize(("pixels", "channels"), [(4, 8), (66 * 50, 96), (128 * 128, 512), (1024 * 1024, 128)])
def test_stretches_are_a_view_of_all_pixels_with_two_or_more_in_each(pixels, channels):
    rows = torch.empty(pixels, channels, device="meta")
    stretches = in_stretches(rows)
    assert stretches.numel() == rows.numel()
    assert stretches._base is rows
    assert stretches.shape[1] >= 2
    assert stretches.shape[0] * channels <= 2**15 or stretches.shape[0] == 1


def test_joins_in_fp32(noise):
    ours, theirs, pending = noise(8, 4).bfloat16(), noise(8, 4, seed=1).bfloat16(), noise(4, seed=2)
    expected = (ours.double() + theirs.double() + pending.double()).bfloat16()
    assert torch.equal(join(ours, theirs, pending), expected)


def test_is_compiled_once_for_all_sizes_of_picture(noise, norm):
    counter = CompileCounter()
    run = compiled(measure, varying={0: (0, 1)}, backend=counter)
    for pixels in (8 * 12, 64 * 64, 66 * 50, 128 * 128):
        run(in_stretches(noise(pixels, 32)), norm.bias, norm.weight, norm.bias, 8, EPS)
    assert counter.frame_count == 1
