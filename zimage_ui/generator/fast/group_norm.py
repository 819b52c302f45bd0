"""Group norm for a GPU, over pictures that lie in memory pixel by pixel (channels_last), in two passes.

A decoder's planes are far larger than any cache, so what a norm costs is the bytes it moves: a full-size decoder at
1024 x 1024 normalises 3.7 GB of bf16 in 30 norms. Each is read once for its statistics, and once more to be
normalised, passed through SiLU and written: 11 GB, about 4 ms of an H100's memory. The stock modules copy the picture
to another layout, normalise it, and read and write it again for SiLU.

Each function here is one kernel (or one and a tiny one), for any number of pixels: one of our own (`triton_decoder`),
or a compiled one. What belongs to a channel alone (the bias of the convolution before, the norm's weight and bias, mean
and deviation) has become one factor and one summand before the large pass. Everything is computed in fp32; only what is
written is rounded.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

# Partial sums per channel and statistics: enough of them to occupy every part of a large GPU, few enough to add up.
_PARTIAL_SUMS = 2**15


def in_stretches(rows: torch.Tensor) -> torch.Tensor:
    """`rows` (pixels, channels) as (stretches, pixels, channels): the stretches are added up side by side."""
    pixels, channels = rows.shape
    wanted = 2 ** (max(_PARTIAL_SUMS // channels, 1).bit_length() - 1)
    # Two pixels at least in each: a compiler takes an extent of 1 for a special case, and starts anew.
    return rows.unflatten(0, (math.gcd(max(pixels // 2, 1), wanted), -1))


def measure(
    stretches: torch.Tensor,
    pending_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a group norm multiplies each channel by, and what it adds.

    The variance is the mean of squares less the square of the mean. In fp32 that costs about 1e-7 * mean^2 / variance
    of relative accuracy, less than the rounding of the 16-bit values themselves has cost before.

    Args:
        stretches: (stretches, pixels, channels), not yet with `pending_bias`.
        pending_bias: (channels,), fp32; belongs to the values.
        weight: (channels,), fp32, of the norm; and so is its `bias`.
        bias: see `weight`.
        groups: how many groups of channels are normalised together.
        eps: keeps the norm from dividing by zero.

    Returns:
        (channels,) each, fp32: `stretches * factor + summand` is normalised and has its bias.
    """
    values = stretches.float() + pending_bias
    sums, squares = values.sum(1), values.square().sum(1)
    count = stretches.shape[0] * stretches.shape[1] * (stretches.shape[2] // groups)
    mean = sums.unflatten(1, (groups, -1)).sum((0, 2)) / count
    variance = squares.unflatten(1, (groups, -1)).sum((0, 2)) / count - mean.square()
    deviation = torch.rsqrt(variance.clamp(min=0) + eps)
    factor = (weight.unflatten(0, (groups, -1)) * deviation[:, None]).flatten()
    mean_of_channel = mean[:, None].expand(groups, stretches.shape[2] // groups).flatten()
    return factor, bias + (pending_bias - mean_of_channel) * factor


def normalise(rows: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """`rows` (pixels, channels) with what `measure` found applied."""
    return (rows.float() * factor + summand).to(rows.dtype)


def normalise_silu(rows: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """`rows` (pixels, channels) with what `measure` found applied, and then SiLU."""
    return functional.silu(rows.float() * factor + summand).to(rows.dtype)


def join(rows: torch.Tensor, others: torch.Tensor, pending_bias: torch.Tensor) -> torch.Tensor:
    """The sum of both (pixels, channels), with the biases that both still wait for."""
    return (rows.float() + others.float() + pending_bias).to(rows.dtype)
