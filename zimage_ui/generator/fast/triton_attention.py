"""Attention in bf16 by a kernel of our own, for numbers of tokens that FlashAttention 4's tiles do not suit.

Those that it takes by itself are of 128 queries: 1,088 tokens of 30 heads are 270 of them, two for each of an H100's
132 processors and six more, for which all others wait. Here a tile is of 64 queries, 510 of them, and an H100 takes
40.5 us where FlashAttention 4 takes 48.8. Of many tokens a last round matters less: so it is measured
(`attention.fastest_backend`).

The way through the keys is FlashAttention's (Dao, 2023, arXiv 2307.08691), as in `fp8_attention`. Sums are in fp32;
weights, before they are divided by their sum, and the result are rounded to bf16.
"""

# No `from __future__ import annotations`: torch reads the signatures of operators.
import math

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

# The fastest of those that were tried for 1,088 tokens on an H100.
_QUERIES, _KEYS, _WARPS, _STAGES = 64, 64, 4, 3


@triton.jit
def _attend(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    attended: tl.tensor,
    tokens: tl.tensor,
    factor: tl.tensor,
    HEAD_DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """`QUERIES` tokens of one head, over all `tokens` of keys and values; no whole number of blocks if `MASKED`."""
    first, head = tl.program_id(0) * QUERIES, tl.program_id(1)
    column = head * HEAD_DIM
    query = queries.load([first, column])
    highest = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    summed = tl.zeros((QUERIES, HEAD_DIM), tl.float32)
    for begin in tl.range(0, tokens, KEYS, num_stages=STAGES):
        scores = tl.dot(query, keys.load([begin, column]).T)
        if MASKED:
            # Beyond the last token zeros are read, which would count as keys. In the loop, though only its last round
            # needs it: of a last block apart, CUDA's assembler makes that every product waits for the one before.
            scores = tl.where((begin + tl.arange(0, KEYS) < tokens)[None, :], scores, float("-inf"))
        now = tl.maximum(highest, tl.max(scores, 1) * factor)
        fade = tl.math.exp2(highest - now)
        weights = tl.math.exp2(scores * factor - now[:, None])
        total = total * fade + tl.sum(weights, 1)
        summed = tl.dot(weights.to(tl.bfloat16), values.load([begin, column]), summed * fade[:, None])
        highest = now
    attended.store([first, column], (summed / total[:, None]).to(tl.bfloat16))


@torch.library.custom_op("zimage_ui::triton_attention", mutates_args=(), device_types="cuda")
def triton_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Softmax attention of (pictures, tokens, heads, 128) in bf16 on Hopper; dense in that order.

    Args:
        query: of any number of tokens; the last two axes of all three lie densely.
        key: of all tokens that are looked at, any number of them.
        value: of the same tokens.
    """
    attended = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for picture in zip(query, key, value, attended, strict=True):
        _attend_one(*picture)
    return attended


@triton_attention.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return query.new_empty(query.shape)


def _attend_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attended: torch.Tensor) -> None:
    tokens, heads, head_dim = key.shape

    def by_token(rows: torch.Tensor, count: int) -> TensorDescriptor:
        flat = rows.flatten(-2)
        return TensorDescriptor(flat, [*flat.shape], [flat.stride(0), 1], [count, head_dim])

    _attend[(triton.cdiv(len(query), _QUERIES), heads)](
        by_token(query, _QUERIES),
        by_token(key, _KEYS),
        by_token(value, _KEYS),
        by_token(attended, _QUERIES),
        tokens,
        1 / (math.sqrt(head_dim) * math.log(2)),
        HEAD_DIM=head_dim,
        QUERIES=_QUERIES,
        KEYS=_KEYS,
        MASKED=tokens % _KEYS != 0,
        STAGES=_STAGES,
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
