"""Convolutions on a CPU, packed or not: the stock convolution's picture, and sums in place."""

import pytest
import torch

from zimage_ui.generator.fast.convolution import PackedConvolution, PlainConvolution, convolution

CASES = [(8, 16, 3, True), (32, 32, 3, False), (16, 3, 3, True), (24, 8, 1, True)]


@pytest.fixture(params=CASES, ids=str)
def stock(request) -> torch.nn.Conv2d:
    inputs, outputs, side, bias = request.param
    return torch.nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("kind", [PlainConvolution, PackedConvolution])
@pytest.mark.parametrize("size", [(7, 5), (64, 96)], ids=str)
def test_is_the_stock_convolution(noise, stock, kind, size):
    picture = noise(1, stock.in_channels, *size).contiguous(memory_format=torch.channels_last)
    ours = kind(stock)(picture)
    assert torch.allclose(ours, stock(picture), atol=1e-5)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [PlainConvolution, PackedConvolution])
def test_adds_in_place(noise, stock, kind):
    picture = noise(1, stock.in_channels, 12, 9).contiguous(memory_format=torch.channels_last)
    other = noise(1, stock.out_channels, 12, 9, seed=1).contiguous(memory_format=torch.channels_last)
    expected = other + stock(picture)
    total = kind(stock).added_to(other, picture)
    assert torch.allclose(total, expected, atol=1e-5)
    assert total.data_ptr() == other.data_ptr()


def test_only_fp32_is_packed(stock):
    assert isinstance(convolution(stock.bfloat16()), PlainConvolution)
