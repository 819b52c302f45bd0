"""What a decoder does between its convolutions, as Triton kernels: the functions of `group_norm` and `wide_attention`.

torch's compiler makes kernels of the same functions, but takes seconds to trace them in each process, also when their
compiled code is on the disk. All of them are bound by memory, so each reads and writes every byte of a plane once, 16
at a time: a tile is some pixels by 128 channels, which serves each number of channels of a full-size decoder, any
number of pixels, and any dtype of the picture. Sums of a plane are cut by tiles, not by divisors of its pixels, and
added in one order: the same bits every time.

A plane is measured from its beginning and written from its end. What was read or written last is what a GPU's cache
still holds: so a norm's second pass begins with what the first has just read, a sum of two with what a convolution has
just written, and whatever comes next with what was written here last.

Everything is computed in fp32 and rounded once. Offsets within a tile fit in 32 bits; where a tile begins is counted
in 64, as a plane can have more than 2**31 bytes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from zimage_ui.generator.fast.gpu_decoder import Functions

# Channels of a tile, at the most; and values: 16 bytes of bf16 four times for each thread of four warps.
_CHANNELS, _TILE = 128, 4096
# A tile to be added up is twice as large, in four layers: a thread adds its four pixels up before it keeps anything.
_LAYERS, _MEASURED_TILE = tl.constexpr(4), 8192
# Eight warps of so few registers: an H100 runs 528 such programs at a time, and none has to wait for the others.
_MEASURING = {"num_warps": 8, "maxnreg": 64}
# Of each of both statistics: 512 programs with 128 channels each.
_PARTIAL_SUMS = 2**16
# With 32 groups all partial sums of a group.
_SETTLED = 2048
# Triton makes kernels of their own for 1 and for multiples of 16: with these arguments that would gain nothing.
_OF_THE_SIZE = ["pixels", "shares"]
# A row of scores that is read once stays in the registers of 16 warps, 32 values a thread; a longer one is read twice.
_LONGEST_KEPT_ROW, _LONG_ROW_BLOCK = 2**14, 2**13


@triton.jit(do_not_specialize=_OF_THE_SIZE)
def _add_up(
    rows: tl.tensor,
    pending_bias: tl.tensor,
    partial: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    shares: tl.tensor,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Sums and sums of squares of every `shares`-th tile of a block of channels: (2, shares, channels)."""
    blocks = tl.cdiv(channels, CHANNELS)
    share, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    column = block * CHANNELS + tl.arange(0, CHANNELS)
    inside = column < channels
    bias = tl.load(pending_bias + column, mask=inside, other=0.0)[None, :]
    pixel = tl.arange(0, PIXELS)[:, None]
    place, inside_tile = pixel * channels + column[None, :], inside[None, :]
    sums = tl.zeros((PIXELS // _LAYERS, CHANNELS), tl.float32)
    squares = tl.zeros((PIXELS // _LAYERS, CHANNELS), tl.float32)
    for start in range(share * PIXELS, pixels, shares * PIXELS):
        there = (pixel < pixels - start) & inside_tile
        found = tl.load(rows + tl.cast(start, tl.int64) * channels + place, mask=there, other=0.0)
        values = tl.where(there, found.to(tl.float32) + bias, 0.0)
        layers = tl.reshape(values, (_LAYERS, PIXELS // _LAYERS, CHANNELS))
        sums += tl.sum(layers, 0)
        squares += tl.sum(layers * layers, 0)
    target = partial + share * channels + column
    tl.store(target, tl.sum(sums, 0), mask=inside)
    tl.store(target + shares * channels, tl.sum(squares, 0), mask=inside)


@triton.jit(do_not_specialize=_OF_THE_SIZE)
def _settle(
    partial: tl.tensor,
    pending_bias: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    applied: tl.tensor,
    shares: tl.tensor,
    channels: tl.tensor,
    group_channels: tl.tensor,
    pixels: tl.tensor,
    eps: tl.tensor,
    SHARES: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One group's factors and summands, (2, channels)."""
    within = tl.arange(0, CHANNELS)
    column, inside = tl.program_id(0) * group_channels + within, within < group_channels
    sums = tl.zeros((SHARES, CHANNELS), tl.float32)
    squares = tl.zeros((SHARES, CHANNELS), tl.float32)
    for start in range(0, shares, SHARES):
        share = start + tl.arange(0, SHARES)[:, None]
        place, there = partial + share * channels + column[None, :], (share < shares) & inside[None, :]
        sums += tl.load(place, mask=there, other=0.0)
        squares += tl.load(place + shares * channels, mask=there, other=0.0)
    count = pixels * (group_channels * 1.0)
    mean = tl.sum(tl.sum(sums, 0), 0) / count
    variance = tl.sum(tl.sum(squares, 0), 0) / count - mean * mean
    factor = tl.load(weight + column, mask=inside, other=0.0) * tl.rsqrt(tl.maximum(variance, 0.0) + eps)
    pending = tl.load(pending_bias + column, mask=inside, other=0.0)
    summand = tl.load(bias + column, mask=inside, other=0.0) + (pending - mean) * factor
    tl.store(applied + column, factor, mask=inside)
    tl.store(applied + channels + column, summand, mask=inside)


@triton.jit
def _tile(
    pixels: tl.tensor, channels: tl.tensor, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The tile of a program, the last ones first: where it begins, places in it, which there are, and its channels."""
    blocks = tl.cdiv(channels, CHANNELS)
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    start = (number // blocks).to(tl.int64) * PIXELS
    column = (number % blocks) * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.arange(0, PIXELS)[:, None]
    there = (pixel < pixels - start) & (column < channels)[None, :]
    return start * channels, pixel * channels + column[None, :], there, column


@triton.jit(do_not_specialize=_OF_THE_SIZE)
def _normalise(
    rows: tl.tensor,
    factor: tl.tensor,
    summand: tl.tensor,
    target: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    SILU: tl.constexpr,
) -> None:
    """One tile, with what was measured applied, and SiLU."""
    start, place, there, column = _tile(pixels, channels, PIXELS, CHANNELS)
    values = tl.load(rows + start + place, mask=there, other=0.0).to(tl.float32)
    inside = column < channels
    values = values * tl.load(factor + column, mask=inside, other=0.0)[None, :]
    values = values + tl.load(summand + column, mask=inside, other=0.0)[None, :]
    if SILU:
        values = values * tl.sigmoid(values)
    tl.store(target + start + place, values.to(target.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=_OF_THE_SIZE)
def _join(
    rows: tl.tensor,
    others: tl.tensor,
    pending_bias: tl.tensor,
    target: tl.tensor,
    pixels: tl.tensor,
    channels: tl.tensor,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """One tile of the sum."""
    start, place, there, column = _tile(pixels, channels, PIXELS, CHANNELS)
    first = tl.load(rows + start + place, mask=there, other=0.0).to(tl.float32)
    second = tl.load(others + start + place, mask=there, other=0.0).to(tl.float32)
    pending = tl.load(pending_bias + column, mask=column < channels, other=0.0)
    tl.store(target + start + place, (first + second + pending[None, :]).to(target.dtype.element_ty), mask=there)


@triton.jit
def _softmax_kept(
    scores: tl.tensor, target: tl.tensor, scale: tl.tensor, columns: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """One row, read once."""
    start, column = tl.program_id(0).to(tl.int64) * columns, tl.arange(0, BLOCK)
    there = column < columns
    values = tl.load(scores + start + column, mask=there, other=float("-inf")) * scale
    weights = tl.exp(values - tl.max(values, 0))
    answer = weights * (1.0 / tl.sum(weights, 0))
    tl.store(target + start + column, answer.to(target.dtype.element_ty), mask=there)


@triton.jit
def _softmax(scores: tl.tensor, target: tl.tensor, scale: tl.tensor, columns: tl.tensor, BLOCK: tl.constexpr) -> None:
    """One row, read twice; the cache is told to keep it until then. Every lane has a maximum and a sum of its own."""
    start, column = tl.program_id(0).to(tl.int64) * columns, tl.arange(0, BLOCK)
    most = tl.full((BLOCK,), -1e38, tl.float32)  # -inf less itself would be no number
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, columns, BLOCK):
        place, there = scores + start + begin + column, begin + column < columns
        values = tl.load(place, mask=there, other=float("-inf"), eviction_policy="evict_last") * scale
        higher = tl.maximum(most, values)
        total = total * tl.exp(most - higher) + tl.exp(values - higher)
        most = higher
    highest = tl.max(most, 0)
    unit = 1.0 / tl.sum(total * tl.exp(most - highest), 0)
    for begin in range(0, columns, BLOCK):
        place, there = start + begin + column, begin + column < columns
        values = tl.load(scores + place, mask=there, other=0.0, eviction_policy="evict_first") * scale
        tl.store(target + place, (tl.exp(values - highest) * unit).to(target.dtype.element_ty), mask=there)


def triton_functions() -> Functions:
    """All of them, each for any number of pixels."""
    return Functions(measure, normalise, normalise_silu, join, probabilities)


def measure(
    stretches: torch.Tensor,
    pending_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `group_norm`; its stretches are taken together and cut anew."""
    rows = stretches.flatten(0, 1).contiguous()
    pixels, channels = rows.shape
    block = _channel_block(channels)
    tile = _MEASURED_TILE // block
    shares = max(min(triton.cdiv(pixels, tile), _PARTIAL_SUMS // channels), 1)
    partial = torch.empty(2, shares, channels, dtype=torch.float32, device=rows.device)
    grid = (shares * triton.cdiv(channels, block),)
    _add_up[grid](rows, pending_bias, partial, pixels, channels, shares, PIXELS=tile, CHANNELS=block, **_MEASURING)
    applied = torch.empty(2, channels, dtype=torch.float32, device=rows.device)
    group_channels = channels // groups
    width = triton.next_power_of_2(group_channels)
    options = {"SHARES": max(_SETTLED // width, 1), "CHANNELS": width, "num_warps": 4}
    sizes = (shares, channels, group_channels, pixels)
    _settle[(groups,)](partial, pending_bias, weight, bias, applied, *sizes, eps, **options)
    factor, summand = applied.unbind()
    return factor, summand


def normalise(rows: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """See `group_norm`."""
    return _normalised(rows, factor, summand, silu=False)


def normalise_silu(rows: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
    """See `group_norm`."""
    return _normalised(rows, factor, summand, silu=True)


def join(rows: torch.Tensor, others: torch.Tensor, pending_bias: torch.Tensor) -> torch.Tensor:
    """See `group_norm`."""
    rows, others = rows.contiguous(), others.contiguous()
    target = torch.empty_like(rows)
    grid, options = _tiles(rows)
    _join[grid](rows, others, pending_bias, target, *rows.shape, **options)
    return target


def probabilities(scores: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """See `wide_attention`.

    A row of up to 16,384 scores (1024 x 1024 pixels) stays in registers, by one kernel for each power of two: it is
    read once, and a multiprocessor has room for two rows, so that one is loaded while the other is computed. A longer
    one would leave no room for a second; one kernel reads those twice, block by block.
    """
    scores = scores.contiguous()
    columns = scores.shape[-1]
    target = torch.empty_like(scores, dtype=dtype)
    grid = (scores.numel() // columns,)
    if columns <= _LONGEST_KEPT_ROW:
        block = triton.next_power_of_2(columns)
        _softmax_kept[grid](scores, target, scale, columns, BLOCK=block, num_warps=min(max(block // 1024, 1), 16))
    else:
        _softmax[grid](scores, target, scale, columns, BLOCK=_LONG_ROW_BLOCK, num_warps=32)
    return target


def _normalised(rows: torch.Tensor, factor: torch.Tensor, summand: torch.Tensor, *, silu: bool) -> torch.Tensor:
    rows = rows.contiguous()
    target = torch.empty_like(rows)
    grid, options = _tiles(rows)
    _normalise[grid](rows, factor, summand, target, *rows.shape, SILU=silu, **options)
    return target


def _tiles(rows: torch.Tensor) -> tuple[tuple[int], dict[str, int]]:
    """One program for each tile of (pixels, channels), and what the kernels of tiles are told."""
    pixels, channels = rows.shape
    block = _channel_block(channels)
    tile = _TILE // block
    grid = (triton.cdiv(pixels, tile) * triton.cdiv(channels, block),)
    return grid, {"PIXELS": tile, "CHANNELS": block, "num_warps": 4}


def _channel_block(channels: int) -> int:
    return min(triton.next_power_of_2(channels), _CHANNELS)
