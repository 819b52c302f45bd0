"""A layer of the text encoder with kernels of our own between its matrix products and its attention.

`text_encoder.run_layer` in few launches: a prompt is so short that each is over before it has filled a GPU.
A kernel serves every number of tokens, and no compiler has to trace anything before the first of them runs.

Everything is computed in fp32 and rounded once. Tensors are bf16 and dense. What does not depend on a reduction is
loaded before it: so short a kernel waits for memory, and is to do so once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch.nn import functional

from zimage_ui.generator.fast.triton_parts import gated_rows, normed_rows

if TYPE_CHECKING:
    from zimage_ui.generator.fast.text_encoder import LayerWeights

# Queries, keys and values, as torch's attention takes them: each (1, heads, tokens, head_dim).
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

# Warps of a program that holds a row, or a few heads of one.
_ROW_WARPS, _HEAD_WARPS = 8, 4
_HEADS_AT_ONCE = 8


@triton.jit
def _add_and_norm(
    stream: tl.tensor,
    change: tl.tensor,
    weight: tl.tensor,
    added: tl.tensor,
    target: tl.tensor,
    eps: tl.tensor,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row: the stream plus the change, and that normed."""
    columns = tl.arange(0, BLOCK)
    mask = columns < WIDTH
    place = tl.program_id(0).to(tl.int64) * WIDTH + columns
    scale = tl.load(weight + columns, mask=mask, other=0.0)
    before = tl.load(stream + place, mask=mask, other=0.0).to(tl.float32)
    moved = tl.load(change + place, mask=mask, other=0.0).to(tl.float32)
    rounded = (before + moved).to(added.dtype.element_ty)
    tl.store(added + place, rounded, mask=mask)
    # Normed from its rounded values, as the stock layer does.
    exact = rounded.to(tl.float32)
    normed = exact * tl.rsqrt(tl.sum(exact * exact, 0) / WIDTH + eps) * scale
    tl.store(target + place, normed.to(target.dtype.element_ty), mask=mask)


@triton.jit
def _head_norms(query_norm: tl.tensor, key_norm: tl.tensor, feature: tl.tensor, is_query: tl.tensor) -> tl.tensor:
    return tl.where(is_query, tl.load(query_norm + feature)[None, :], tl.load(key_norm + feature)[None, :])


@triton.jit
def _turn_heads(
    product: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    turned: tl.tensor,
    eps: tl.tensor,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A few heads of one token, queries before keys: feature i turns with i + HALF, by one angle."""
    row = tl.program_id(0).to(tl.int64)
    head, feature = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[:, None], tl.arange(0, HALF)
    there = head < QUERIES + KEYS
    place = head * 2 * HALF + feature[None, :]
    angle = row * 2 * HALF + feature
    cosine, sine = tl.load(cosines + angle)[None, :], tl.load(sines + angle)[None, :]
    first_norm = _head_norms(query_norm, key_norm, feature, head < QUERIES)
    second_norm = _head_norms(query_norm, key_norm, feature + HALF, head < QUERIES)
    source = product + row * (QUERIES + 2 * KEYS) * 2 * HALF + place
    first = tl.load(source, mask=there, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=there, other=0.0).to(tl.float32)
    unit = tl.rsqrt(tl.sum(first * first + second * second, 1) / (2 * HALF) + eps)[:, None]
    first, second = first * unit * first_norm, second * unit * second_norm
    target = turned + row * (QUERIES + KEYS) * 2 * HALF + place
    tl.store(target, (first * cosine - second * sine).to(turned.dtype.element_ty), mask=there)
    tl.store(target + HALF, (second * cosine + first * sine).to(turned.dtype.element_ty), mask=there)


def run_layer(stream: torch.Tensor, weights: LayerWeights, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """See `text_encoder.run_layer`; the cosines and sines are those of `rotary_tables`."""
    normed = normed_rows(stream, weights.attention_norm, weights.eps)
    heads = turned_heads(functional.linear(normed, weights.query_key_value), weights, cosines, sines)
    attended = functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)[0]
    change = functional.linear(attended.transpose(0, 1).flatten(1), weights.output)
    stream, normed = added_and_normed(stream, change, weights.feed_forward_norm, weights.eps)
    hidden = gated_rows(functional.linear(normed, weights.gate_up))
    return stream.addmm_(hidden, weights.down.t())  # it is ours: what the layer was given stays as it is


def added_and_normed(
    stream: torch.Tensor, change: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of both (tokens, features), a new tensor, and `parts.norm` of it."""
    tokens, width = stream.shape
    added, target = torch.empty_like(stream), torch.empty_like(stream)
    block = triton.next_power_of_2(width)
    _add_and_norm[(tokens,)](stream, change, weight, added, target, eps, WIDTH=width, BLOCK=block, num_warps=_ROW_WARPS)
    return added, target


def turned_heads(product: torch.Tensor, weights: LayerWeights, cosines: torch.Tensor, sines: torch.Tensor) -> Heads:
    """Queries and keys, normed and turned, and values, a view of the product.

    Args:
        product: (tokens, outputs): queries, keys and values of each token, head by head.
        weights: of the layer.
        cosines: of `rotary_tables`, of which half are read: both features of a pair have one angle.
        sines: likewise.
    """
    head_dim = len(weights.query_norm)
    tokens, width = product.shape
    queries = weights.output.shape[1] // head_dim
    keys = (width // head_dim - queries) // 2
    turned = torch.empty((1, tokens, queries + keys, head_dim), dtype=product.dtype, device=product.device)
    _turn_heads[(tokens, triton.cdiv(queries + keys, _HEADS_AT_ONCE))](
        product,
        weights.query_norm,
        weights.key_norm,
        cosines,
        sines,
        turned,
        weights.eps,
        QUERIES=queries,
        KEYS=keys,
        HALF=head_dim // 2,
        BLOCK=_HEADS_AT_ONCE,
        num_warps=_HEAD_WARPS,
    )
    query, key = turned.transpose(1, 2).split((queries, keys), dim=1)
    value = product.view(1, tokens, -1, head_dim)[:, :, queries + keys :].transpose(1, 2)
    return query, key, value
