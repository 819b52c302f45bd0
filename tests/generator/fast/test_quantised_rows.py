"""Rounding rows to eight bits."""

import pytest
import torch

from zimage_ui.generator.fast.quantised_rows import QuantisedRows, joined, quantise

pytestmark = pytest.mark.model

KINDS = [torch.float8_e4m3fn, torch.int8]
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}


def restored(rows: QuantisedRows) -> torch.Tensor:
    return rows.values.float() * rows.scales


@pytest.mark.parametrize("dtype", KINDS)
def test_the_largest_of_each_row_reaches_the_limit_and_is_kept(noise, dtype):
    values = noise(4, 9, 96) * torch.logspace(-4, 4, 9)[:, None]
    rows = quantise(values, dtype)
    assert rows.values.dtype == dtype
    assert rows.scales.shape == (4, 9, 1)
    assert torch.equal(rows.values.float().abs().amax(-1), torch.full((4, 9), LIMITS[dtype]))
    largest = values.abs().argmax(-1, keepdim=True)
    assert torch.allclose(restored(rows).gather(-1, largest), values.gather(-1, largest), rtol=1e-6)


def test_fp8_is_off_by_at_most_a_sixteenth_of_the_value(noise):
    values = noise(32, 96)
    error = (restored(quantise(values, torch.float8_e4m3fn)) - values).abs()
    smallest_normal = values.abs().amax(-1, keepdim=True) / 448 * 2**-6
    assert (error <= torch.maximum(values.abs(), smallest_normal) / 16 * 1.001).all()


def test_int8_is_off_by_at_most_half_a_step_of_its_row(noise):
    values = noise(32, 96)
    error = (restored(quantise(values, torch.int8)) - values).abs()
    assert (error <= values.abs().amax(-1, keepdim=True) / 254 * 1.001).all()


@pytest.mark.parametrize("dtype", KINDS)
def test_an_outlier_in_one_row_costs_the_others_nothing(noise, dtype):
    values = noise(3, 96)
    wild = values.clone()
    wild[1, 7] = 6.6e4
    assert torch.equal(quantise(wild, dtype).values[::2].float(), quantise(values, dtype).values[::2].float())


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_no_row_becomes_infinite_or_undefined(noise, dtype, scale):
    values = noise(3, 96) * scale
    found = restored(quantise(values, dtype))
    assert found.isfinite().all()
    assert torch.allclose(found, values, atol=max(scale / 8, 1e-12))  # rows below that are zeros


@pytest.mark.parametrize("dtype", KINDS)
def test_bf16_is_rounded_once(noise, dtype):
    values = noise(5, 96).bfloat16()
    half, exact = quantise(values, dtype), quantise(values.float(), dtype)
    assert torch.equal(half.values.float(), exact.values.float())
    assert torch.equal(half.scales, exact.scales)


def test_tokens_are_joined_as_they_are(noise):
    one, other = noise(2, 3, 8), noise(2, 5, 8, seed=1)
    assert torch.equal(joined(one, other), torch.cat((one, other), dim=1))
    for dtype in KINDS:
        whole = joined(quantise(one, dtype), quantise(other, dtype))
        assert isinstance(whole, QuantisedRows)
        assert torch.equal(restored(whole), restored(quantise(torch.cat((one, other), dim=1), dtype)))
