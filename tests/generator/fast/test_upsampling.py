"""Doubling and convolving in one: the stock upsampler's picture, edges included."""

import pytest
import torch
from torch.nn import functional

from zimage_ui.generator.fast.upsampling import double_and_convolve, folded_kernel


@pytest.mark.parametrize(("inputs", "outputs", "height", "width"), [(8, 8, 6, 9), (3, 5, 1, 1), (16, 4, 2, 7)])
def test_is_the_stock_upsampler(noise, inputs, outputs, height, width):
    from diffusers.models.upsampling import Upsample2D

    stock = Upsample2D(inputs, use_conv=True, out_channels=outputs).requires_grad_(False)
    small = noise(2, inputs, height, width)
    ours = double_and_convolve(small, folded_kernel(stock.conv.weight), stock.conv.bias)
    assert torch.allclose(ours, stock(small), atol=1e-5)


def test_a_kernel_in_16_bit_is_added_up_exactly_and_rounded_once(noise):
    kernel = noise(4, 4, 3, 3).bfloat16()
    assert torch.equal(folded_kernel(kernel), folded_kernel(kernel.float()).bfloat16())


def test_an_edge_counts_as_black(noise):
    kernel, small = noise(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
    doubled = functional.interpolate(small, scale_factor=2.0, mode="nearest")
    expected = functional.conv2d(doubled, kernel, padding=1)
    ours = double_and_convolve(small, folded_kernel(kernel), None)
    assert torch.allclose(ours, expected, atol=1e-6)
    assert not torch.allclose(expected[..., 0, :], expected[..., 2, :])
