"""The layers of a VAE decoder on a GPU: channels_last, tensor cores for all convolutions, one pass for what is between.

A convolution leaves its bias to the kernel that reads its result next (cuDNN's own is a pass of its own for many
shapes, and for all that double a picture): that is what `pending` means here. Between the convolutions run the
functions of `group_norm`: as kernels of our own (`triton_decoder`), or compiled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from zimage_ui.generator.fast import group_norm, wide_attention
from zimage_ui.generator.fast.any_size import compiled
from zimage_ui.generator.fast.decoder_layers import Layer
from zimage_ui.generator.fast.upsampling import double_and_convolve, folded_kernel

# Tensor cores take channels in eights; three colours would be computed without them.
_CHANNELS = 8


class Functions(NamedTuple):
    """What runs between the convolutions, in torch's operations, compiled or in kernels of our own.

    See `group_norm` and `wide_attention`.
    """

    measure: Callable[..., Any] = group_norm.measure
    normalise: Callable[..., Any] = group_norm.normalise
    normalise_silu: Callable[..., Any] = group_norm.normalise_silu
    join: Callable[..., Any] = group_norm.join
    probabilities: Callable[..., Any] = wide_attention.probabilities


def compiled_functions() -> Functions:
    """All of them compiled, each for any number of pixels; another number of channels is compiled anew."""
    return Functions(
        measure=compiled(group_norm.measure, varying={0: (0, 1)}),
        normalise=compiled(group_norm.normalise, varying={0: (0,)}),
        normalise_silu=compiled(group_norm.normalise_silu, varying={0: (0,)}),
        join=compiled(group_norm.join, varying={0: (0,), 1: (0,)}),
        probabilities=compiled(wide_attention.probabilities, varying={0: (0, 1)}),
    )


class GpuLayers:
    """The `LayerMaker` for a GPU. The stock convolutions' kernels become channels_last in place."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        # The bias that the layer made last leaves to the next one.
        self._left: torch.Tensor | None = None

    def convolution(self, stock: nn.Conv2d) -> Layer:
        """With its bias: nothing is fused with the first one."""
        self._left = None
        kernel, padding = _kernel(stock), stock.padding
        return lambda picture: functional.conv2d(picture, kernel, stock.bias, padding=padding)

    def resnet(self, stock: Any) -> Layer:
        """Seven passes over a picture of its size, besides what the convolutions read and write."""
        left = self._taken(stock.norm1)
        before, between = self._norm(stock.norm1, left), self._norm(stock.norm2, _bias(stock.conv1))
        first, second = _without_bias(stock.conv1), _without_bias(stock.conv2)
        if stock.conv_shortcut is None:
            shortcut, pending = None, _bias(stock.conv2) + left
        else:
            shortcut, pending = _without_bias(stock.conv_shortcut), _bias(stock.conv2) + _bias(stock.conv_shortcut)
            pending = pending + stock.conv_shortcut.weight.data.float().sum((2, 3)) @ left
        join = self._functions.join

        def layer(picture: torch.Tensor) -> torch.Tensor:
            hidden = second(between(first(before(picture))))
            residual = picture if shortcut is None else shortcut(picture)
            return _picture(join(_rows(hidden), _rows(residual), pending), hidden)

        return layer

    def attention(self, stock: Any) -> Layer:
        """One wide head; queries, keys and values by one matrix product."""
        assert self._left is None, "no Z-Image VAE doubles a picture before its attention"
        norm = self._norm(stock.group_norm, silu=False)
        inputs = [stock.to_q, stock.to_k, stock.to_v]
        weight = torch.cat([linear.weight.data for linear in inputs])
        bias = torch.cat([linear.bias.data for linear in inputs])
        output, pending = stock.to_out[0].weight.data, stock.to_out[0].bias.data.float()
        functions = self._functions

        def layer(picture: torch.Tensor) -> torch.Tensor:
            query, key, value = functional.linear(_rows(norm(picture)), weight, bias).chunk(3, -1)
            attended = wide_attention.wide_attention(query, key, value, functions.probabilities)
            joined = functions.join(functional.linear(attended, output), _rows(picture), pending)
            return _picture(joined, picture)

        return layer

    def upsampler(self, stock: nn.Conv2d) -> Layer:
        """As a transposed convolution, whose bias is left to the next layer."""
        kernel = folded_kernel(stock.weight.data)
        assert self._left is None, "no Z-Image VAE doubles a picture twice in a row"
        self._left = _bias(stock)
        return lambda picture: double_and_convolve(picture, kernel, None)

    def head(self, norm: nn.GroupNorm, stock: nn.Conv2d) -> Layer:
        """The convolution to colours is filled up to eight channels with zeros."""
        normalise, colours = self._norm(norm, self._taken(norm)), stock.out_channels
        missing = -colours % _CHANNELS
        kernel = functional.pad(stock.weight.data, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous(
            memory_format=torch.channels_last
        )
        bias = functional.pad(_bias(stock).to(kernel.dtype), (0, missing))
        return lambda picture: functional.conv2d(normalise(picture), kernel, bias, padding=stock.padding)[:, :colours]

    def _taken(self, norm: nn.GroupNorm) -> torch.Tensor:
        """What was left to the layer that begins with `norm`."""
        left, self._left = self._left, None
        return torch.zeros_like(norm.bias.data, dtype=torch.float32) if left is None else left

    def _norm(self, norm: nn.GroupNorm, pending: torch.Tensor | None = None, *, silu: bool = True) -> Layer:
        weight, bias = norm.weight.data.float(), norm.bias.data.float()
        waiting = torch.zeros_like(bias) if pending is None else pending
        measure = self._functions.measure
        apply = self._functions.normalise_silu if silu else self._functions.normalise

        def layer(picture: torch.Tensor) -> torch.Tensor:
            rows = _rows(picture)
            stretches = group_norm.in_stretches(rows)
            factor, summand = measure(stretches, waiting, weight, bias, norm.num_groups, norm.eps)
            return _picture(apply(rows, factor, summand), picture)

        return layer


def _kernel(stock: nn.Conv2d) -> torch.Tensor:
    """The kernel in channels_last, which the stock module then shares."""
    with torch.inference_mode(False), torch.no_grad():
        stock.weight.data = stock.weight.data.contiguous(memory_format=torch.channels_last)
    return stock.weight.data


def _without_bias(stock: nn.Conv2d) -> Layer:
    kernel, padding = _kernel(stock), stock.padding
    return lambda picture: functional.conv2d(picture, kernel, None, padding=padding)


def _bias(stock: nn.Conv2d) -> torch.Tensor:
    return stock.bias.data.float() if stock.bias is not None else stock.weight.data.new_zeros(len(stock.weight)).float()


def _rows(picture: torch.Tensor) -> torch.Tensor:
    """(pixels, channels), without a copy for one picture in channels_last."""
    return picture.permute(0, 2, 3, 1).flatten(0, 2)


def _picture(rows: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The picture (1, channels, height, width) that `rows` (pixels, channels) are; its size is that of `like`."""
    return rows.unflatten(0, (1, *like.shape[-2:])).permute(0, 3, 1, 2)
