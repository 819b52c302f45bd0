"""The layers of a VAE decoder on a CPU: channels_last, oneDNN's own order, sums and SiLU in place.

A decoder's time on a CPU is its convolutions' (89 % of it), and those run near the processor's peak. So what helps is
less of them: the doubled pictures (18 % of all work at the bundled model's sizes), and after that fewer new pictures.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from zimage_ui.generator.fast.convolution import convolution
from zimage_ui.generator.fast.decoder_layers import Layer
from zimage_ui.generator.fast.upsampling import double_and_convolve, folded_kernel


class CpuLayers:
    """The `LayerMaker` for a CPU."""

    def convolution(self, stock: nn.Conv2d) -> Layer:
        """By oneDNN."""
        return convolution(stock)

    def resnet(self, stock: Any) -> Layer:
        """Adds the second convolution to the residual on the way."""
        before, first = _norm_silu(stock.norm1), convolution(stock.conv1)
        between, second = _norm_silu(stock.norm2), convolution(stock.conv2)
        shortcut = convolution(stock.conv_shortcut) if stock.conv_shortcut is not None else None

        def layer(picture: torch.Tensor) -> torch.Tensor:
            hidden = between(first(before(picture)))
            return second.added_to(picture if shortcut is None else shortcut(picture), hidden)

        return layer

    def attention(self, stock: Any) -> Layer:
        """The stock module: a small share of a CPU's work."""
        return lambda picture: stock(picture.contiguous()).contiguous(memory_format=torch.channels_last)

    def upsampler(self, stock: nn.Conv2d) -> Layer:
        """As a transposed convolution."""
        kernel, bias = folded_kernel(stock.weight.data), None if stock.bias is None else stock.bias.data
        return lambda picture: double_and_convolve(picture, kernel, bias)

    def head(self, norm: nn.GroupNorm, stock: nn.Conv2d) -> Layer:
        """Norm and SiLU, then the colours."""
        normalise, to_colours = _norm_silu(norm), convolution(stock)
        return lambda picture: to_colours(normalise(picture))


def _norm_silu(norm: nn.GroupNorm) -> Layer:
    def layer(picture: torch.Tensor) -> torch.Tensor:
        normalised = functional.group_norm(picture, norm.num_groups, norm.weight, norm.bias, norm.eps)
        return functional.silu(normalised, inplace=True)

    return layer
