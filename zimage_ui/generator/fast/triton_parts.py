"""What a pass does between its matrix products, each part as one Triton kernel that reads its input once.

A compiler makes kernels of the same parts (`parts`), but loops over a row of 3840 values once for each sum that it
needs of it. Here a row stays in registers between a norm, the sum, the next norm and the rounding to eight bits;
neighbours that are turned together come as one word of 32 bits; and products of rounded factors are scaled by whatever
reads them. A kernel serves every number of tokens, so a size that nobody prepared has them, too. Both ends of a pass
have theirs as its blocks do, so that nothing of it waits for torch's compiler to be imported and to look at it: with
all that it had compiled before on the disk, that still took seconds of every start.

Everything is computed in fp32 and rounded once. Tensors are bf16, and dense where nothing else is said.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from zimage_ui.generator.fast.four_bits import RUN, Nf4Projection
from zimage_ui.generator.fast.parts import Heads
from zimage_ui.generator.fast.projections import PlainProjection, Projection
from zimage_ui.generator.fast.quantised_rows import LIMITS, SMALLEST, Activations, Product, QuantisedRows, ScaledProduct

FP8 = torch.float8_e4m3fn
# What rounding to eight bits makes of the largest of a row, and the least that it is taken for.
MOST = tl.constexpr(LIMITS[FP8])
LEAST = tl.constexpr(SMALLEST)
# Warps of a program that holds a row.
_ROW_WARPS, _HIDDEN_WARPS = 8, 16
_GATE_BLOCK = 2048
# Runs of a matrix in four bits, of 64 values each, that a program unpacks.
_RUNS = 32


@triton.jit
def _factor(rows: tl.tensor, parts: tl.tensor, row: tl.tensor, part: tl.tensor, SCALED: tl.constexpr) -> tl.tensor:
    """What a product has still to be multiplied by, for one token and one share of the outputs."""
    factor = 1.0
    if SCALED:
        factor = tl.load(rows + row) * tl.load(parts + part)
    return factor


@triton.jit
def head_limit(norm: tl.tensor, HEAD_DIM: tl.constexpr) -> tl.tensor:
    """What no value of a head exceeds that was normed, multiplied by `norm` and turned."""
    return tl.max(tl.abs(tl.load(norm + tl.arange(0, HEAD_DIM))), 0) * tl.sqrt(HEAD_DIM * 1.0)


@triton.jit
def _turn_heads(
    product: tl.tensor,
    row_scales: tl.tensor,
    share_scales: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    table: tl.tensor,
    turned: tl.tensor,
    tokens: tl.tensor,
    eps: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_BLOCK: tl.constexpr,
    PAIRS: tl.constexpr,
    SCALED: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
) -> None:
    """Queries (program 0 of two) or keys of one token; `product` and `turned` are words of two values each."""
    row, which = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, pair = tl.arange(0, HEAD_BLOCK)[:, None], tl.arange(0, PAIRS)
    words: tl.constexpr = HEADS * PAIRS
    place, there = head * PAIRS + pair[None, :], head < HEADS
    word = tl.load(product + row * 3 * words + which * words + place, mask=there, other=0)
    factor = _factor(row_scales, share_scales, row, which, SCALED)
    even = (word << 16).to(tl.float32, bitcast=True) * factor
    odd = (word & -65536).to(tl.float32, bitcast=True) * factor
    unit = tl.rsqrt(tl.sum(even * even + odd * odd, 1) / (2 * PAIRS) + eps)[:, None]
    norm = query_norm if which == 0 else key_norm
    even = even * unit * tl.load(norm + 2 * pair)[None, :]
    odd = odd * unit * tl.load(norm + 2 * pair + 1)[None, :]
    angle = table + (row % tokens) * 2 * PAIRS + 2 * pair
    cosine, sine = tl.load(angle)[None, :], tl.load(angle + tokens * 2 * PAIRS + 1)[None, :]
    first, second = even * cosine - odd * sine, odd * cosine + even * sine
    target = turned + row * 2 * words + which * words + place
    if EIGHT_BIT:
        most = MOST / head_limit(norm, 2 * PAIRS)
        # Both by one instruction. Rounded apart and put together, Triton 3.6 gives wrong values.
        both = tl.inline_asm_elementwise(
            "cvt.rn.satfinite.e4m3x2.f32 $0, $2, $1;",
            "=h,f,f",
            [first * most, second * most],
            dtype=tl.int16,
            is_pure=True,
            pack=1,
        )
        tl.store(target, both, mask=there)
    else:
        low = first.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.uint32)
        high = second.to(tl.bfloat16).to(tl.uint16, bitcast=True).to(tl.uint32)
        tl.store(target, (low | (high << 16)).to(tl.int32, bitcast=True), mask=there)


@triton.jit
def _write(
    values: tl.tensor,
    target: tl.tensor,
    scales: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    mask: tl.tensor,
    width: tl.tensor,
    EIGHT_BIT: tl.constexpr,
) -> None:
    """One row, in eight bits with a scale of its own, or as it is."""
    if EIGHT_BIT:
        scale = tl.maximum(tl.max(tl.abs(values), 0), LEAST) / MOST
        tl.store(scales + row, scale)
        values = values / scale
    tl.store(target + row * width + columns, values.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _add_and_norm(
    stream: tl.tensor,
    change: tl.tensor,
    row_scales: tl.tensor,
    share_scales: tl.tensor,
    gate: tl.tensor,
    scale: tl.tensor,
    added: tl.tensor,
    target: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    SCALED: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
) -> None:
    """One row: the stream plus the normed and gated change, and that normed and scaled."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    place = row * WIDTH + columns
    moved = tl.load(change + place, mask=mask, other=0.0).to(tl.float32)
    before = tl.load(stream + place, mask=mask, other=0.0).to(tl.float32)
    moved = moved * _factor(row_scales, share_scales, row, 0, SCALED)
    moved = moved * tl.rsqrt(tl.sum(moved * moved, 0) / WIDTH + eps) * tl.load(gate + columns, mask=mask, other=0.0)
    rounded = (before + moved).to(added.dtype.element_ty)
    tl.store(added + place, rounded, mask=mask)
    exact = rounded.to(tl.float32)  # normed from its rounded values, as the stock block does
    normed = exact * tl.rsqrt(tl.sum(exact * exact, 0) / WIDTH + eps) * tl.load(scale + columns, mask=mask, other=0.0)
    _write(normed, target, scales, row, columns, mask, WIDTH, EIGHT_BIT)


@triton.jit
def _norm(
    values: tl.tensor,
    scale: tl.tensor,
    target: tl.tensor,
    scales: tl.tensor,
    picture_stride: tl.tensor,
    token_stride: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    CENTRED: tl.constexpr,
    EIGHT_BIT: tl.constexpr,
) -> None:
    """One token (first axis of the programs) of one picture, maybe less its mean: normed, scaled, written densely."""
    token, picture = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    place = values + picture * picture_stride + token * token_stride + columns
    exact = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if CENTRED:
        exact = tl.where(mask, exact - tl.sum(exact, 0) / WIDTH, 0.0)
    normed = exact * tl.rsqrt(tl.sum(exact * exact, 0) / WIDTH + eps) * tl.load(scale + columns, mask=mask, other=0.0)
    _write(normed, target, scales, picture * tl.num_programs(0) + token, columns, mask, WIDTH, EIGHT_BIT)


@triton.jit
def _gated(
    product: tl.tensor,
    row: tl.tensor,
    columns: tl.tensor,
    gate_factor: tl.tensor,
    up_factor: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    mask = columns < WIDTH
    place = product + row * 2 * WIDTH + columns
    # Nobody reads them again: let the card's cache keep what is computed of them.
    gate = tl.load(place, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32) * gate_factor
    up = tl.load(place + WIDTH, mask=mask, other=0.0, eviction_policy="evict_first").to(tl.float32) * up_factor
    return gate * tl.sigmoid(gate) * up


@triton.jit
def _gate(product: tl.tensor, target: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    """A block of a row: SiLU of the gate, times up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = _gated(product, row, columns, 1.0, 1.0, WIDTH)
    tl.store(target + row * WIDTH + columns, values.to(target.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def _gate_and_round(
    product: tl.tensor,
    row_scales: tl.tensor,
    share_scales: tl.tensor,
    target: tl.tensor,
    scales: tl.tensor,
    WIDTH: tl.constexpr,
    BODY: tl.constexpr,
    TAIL: tl.constexpr,
) -> None:
    """A whole row of the same in eight bits; in two pieces, as 10,240 is far from a power of two."""
    row = tl.program_id(0).to(tl.int64)
    body, tail = tl.arange(0, BODY), BODY + tl.arange(0, TAIL)
    gate_factor = _factor(row_scales, share_scales, row, 0, True)
    up_factor = _factor(row_scales, share_scales, row, 1, True)
    first = _gated(product, row, body, gate_factor, up_factor, WIDTH)
    second = _gated(product, row, tail, gate_factor, up_factor, WIDTH)
    largest = tl.maximum(tl.max(tl.abs(first), 0), tl.max(tl.abs(second), 0))
    scale = tl.maximum(largest, LEAST) / MOST
    tl.store(scales + row, scale)
    place = target + row * WIDTH
    tl.store(place + body, (first / scale).to(target.dtype.element_ty), mask=body < WIDTH)
    tl.store(place + tail, (second / scale).to(target.dtype.element_ty), mask=tail < WIDTH)


@triton.jit
def _round(values: tl.tensor, target: tl.tensor, scales: tl.tensor, WIDTH: tl.constexpr, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    exact = tl.load(values + row * WIDTH + columns, mask=mask, other=0.0).to(tl.float32)
    _write(exact, target, scales, row, columns, mask, WIDTH, True)


@triton.jit
def _unpack(
    packed: tl.tensor,
    scales: tl.tensor,
    levels: tl.tensor,
    target: tl.tensor,
    runs: int,
    RUNS: tl.constexpr,
    PAIRS: tl.constexpr,
) -> None:
    """`RUNS` runs of a matrix in four bits, as `four_bits` packs them."""
    run = tl.program_id(0) * RUNS + tl.arange(0, RUNS)[:, None]
    there = run < runs
    pairs = tl.load(packed + run * PAIRS + tl.arange(0, PAIRS)[None, :], mask=there, other=0).to(tl.int32)
    scale = tl.load(scales + run, mask=there, other=0.0)
    values = tl.interleave(tl.load(levels + (pairs >> 4)) * scale, tl.load(levels + (pairs & 15)) * scale)
    tl.store(target + run * (2 * PAIRS) + tl.arange(0, 2 * PAIRS)[None, :], values, mask=there)


def turned_heads(
    product: Product, query_norm: torch.Tensor, key_norm: torch.Tensor, eps: float, rotary: torch.Tensor
) -> Heads:
    """See `Parts`; the values are a view of the product, so one that is not scaled yet is scaled before."""
    values = _values(product)
    turned = turned_queries_and_keys(product, query_norm, key_norm, eps, rotary, values.dtype)
    query, key = turned.unbind(2)
    value = values.unflatten(-1, (3, -1, len(query_norm)))[:, :, 2]
    if isinstance(product, ScaledProduct):
        value = torch.mul(value, (product.rows * product.shares[2])[..., None], out=torch.empty_like(value))
    return query, key, value


def turned_queries_and_keys(
    product: Product,
    query_norm: torch.Tensor,
    key_norm: torch.Tensor,
    eps: float,
    rotary: torch.Tensor,
    form: torch.dtype,
) -> torch.Tensor:
    """Queries and keys, normed and turned, (pictures, tokens, 2, heads, head_dim), in `form`.

    In eight bits `head_limit` of either norm is 448: so they need no scales that depend on the picture.
    """
    head_dim = len(query_norm)
    values = _values(product)
    pictures, tokens, width = values.shape
    heads = width // (3 * head_dim)
    turned = torch.empty(pictures, tokens, 2, heads, head_dim, dtype=form, device=values.device)
    _turn_heads[(pictures * tokens, 2)](
        values.view(torch.int32),
        *_scales(product),
        query_norm,
        key_norm,
        rotary,
        turned.view(torch.int16 if form == FP8 else torch.int32),
        tokens,
        eps,
        HEADS=heads,
        HEAD_BLOCK=triton.next_power_of_2(heads),
        PAIRS=head_dim // 2,
        SCALED=isinstance(product, ScaledProduct),
        EIGHT_BIT=form == FP8,
        num_warps=4,
    )
    return turned


def add_and_norm(
    stream: torch.Tensor, change: Product, gate: torch.Tensor, scale: torch.Tensor, eps: float, reader: Projection
) -> tuple[torch.Tensor, Activations]:
    """See `Parts`."""
    stream = stream.contiguous()  # of several pictures whose captions nobody reads any more
    width = stream.shape[-1]
    added = torch.empty_like(stream)
    normed, written = _activations(stream.shape, reader.form, stream.device)
    _add_and_norm[(stream.numel() // width,)](
        stream,
        _values(change),
        *_scales(change),
        gate,
        scale,
        added,
        *written,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        SCALED=isinstance(change, ScaledProduct),
        EIGHT_BIT=reader.form == FP8,
        num_warps=_ROW_WARPS,
    )
    return added, normed


def rms_normed(values: torch.Tensor, scale: torch.Tensor, eps: float, reader: Projection) -> Activations:
    """See `Parts`."""
    activations, written = _activations(values.shape, reader.form, values.device)
    _launch_norm(values, scale, eps, written, centred=False)
    return activations


def normed_rows(rows: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """`parts.norm` of (rows, width), rounded to their dtype."""
    normed = torch.empty_like(rows)
    _launch_norm(rows[None], scale, eps, (normed, None), centred=False)
    return normed


def layer_normed(values: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """See `Parts`."""
    normed = torch.empty(values.shape, dtype=values.dtype, device=values.device)  # dense, whatever `values` are
    _launch_norm(values, scale, eps, (normed, None), centred=True)
    return normed


def gated(product: Product, reader: Projection) -> Activations:
    """See `Parts`."""
    return _gated_and_rounded(product) if isinstance(product, ScaledProduct) else gated_rows(product)


def gated_rows(product: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of (..., 2 * hidden), the gate first, in the dtype of the product."""
    *before, both = product.shape
    width = both // 2
    hidden = torch.empty((*before, width), dtype=product.dtype, device=product.device)
    grid = (product.numel() // both, triton.cdiv(width, _GATE_BLOCK))
    _gate[grid](product, hidden, WIDTH=width, BLOCK=_GATE_BLOCK, num_warps=_ROW_WARPS)
    return hidden


def plain(projection: Projection) -> Projection:
    """See `Parts`."""
    if not isinstance(projection, Nf4Projection):
        return projection
    matrix = torch.empty(projection.extents, dtype=projection.dtype, device=projection.weight.device)
    runs = len(projection.scales)
    written = projection.weight, projection.scales, projection.levels, matrix
    _unpack[(triton.cdiv(runs, _RUNS),)](*written, runs, RUNS=_RUNS, PAIRS=RUN // 2, num_warps=4)
    return PlainProjection(matrix)


def read(values: torch.Tensor, reader: Projection) -> Activations:
    """See `Parts`."""
    if reader.form != FP8:
        return reader.read(values)
    width = values.shape[-1]
    activations, written = _activations(values.shape, FP8, values.device)
    options = {"WIDTH": width, "BLOCK": triton.next_power_of_2(width), "num_warps": 4}
    _round[(values.numel() // width,)](values, *written, **options)
    return activations


def _launch_norm(
    values: torch.Tensor,
    scale: torch.Tensor,
    eps: float,
    written: tuple[torch.Tensor, torch.Tensor | None],
    *,
    centred: bool,
) -> None:
    pictures, tokens, width = values.shape
    picture_stride, token_stride, step = values.stride()
    assert step == 1, "the values of a token lie side by side"
    _norm[(tokens, pictures)](
        values,
        scale,
        *written,
        picture_stride,
        token_stride,
        eps,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        CENTRED=centred,
        EIGHT_BIT=written[1] is not None,
        num_warps=_ROW_WARPS,
    )


def _gated_and_rounded(product: ScaledProduct) -> Activations:
    *before, both = product.values.shape
    width, rows = both // 2, product.values.numel() // both
    activations, written = _activations((*before, width), FP8, product.values.device)
    body = triton.next_power_of_2(width) // 2
    tail = triton.next_power_of_2(width - body)
    options: dict[str, Any] = {"WIDTH": width, "BODY": body, "TAIL": tail, "num_warps": _HIDDEN_WARPS}
    _gate_and_round[(rows,)](product.values, product.rows, product.shares, *written, **options)
    return activations


def _values(product: Product) -> torch.Tensor:
    return product.values if isinstance(product, ScaledProduct) else product


def _scales(product: Product) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (product.rows, product.shares) if isinstance(product, ScaledProduct) else (None, None)


def _activations(
    shape: tuple[int, ...], form: torch.dtype, device: torch.device
) -> tuple[Activations, tuple[torch.Tensor, torch.Tensor | None]]:
    """Memory for activations, and what a kernel writes of them: values and scales."""
    values = torch.empty(shape, dtype=form, device=device)
    if form != FP8:
        return values, (values, None)
    scales = torch.empty((*shape[:-1], 1), dtype=torch.float32, device=device)
    return QuantisedRows(values, scales), (values, scales)
