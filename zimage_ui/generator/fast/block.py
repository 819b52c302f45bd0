"""A transformer block as one function of its weights, the same for every block, so that it is compiled once for all.

What a compiler makes of it on a GPU: four matrix products, one attention, and five small kernels between them, each of
which reads its input once: norm and rotation of queries, and of keys; SiLU and product; and twice "add to the residual
stream and norm for what comes next". For the last, a block hands on its sum together with the normed input of the next
block. Norms are computed in fp32 and rounded once, where the stock block rounds after every step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from zimage_ui.generator.fast.attention import attention
from zimage_ui.generator.fast.gate import gated
from zimage_ui.generator.fast.lossy_projections import lossy_projections
from zimage_ui.generator.fast.projections import BlockProjections, block_projections
from zimage_ui.generator.fast.quantised_rows import Activations
from zimage_ui.generator.fast.rotary import rotate
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


class BlockWeights(NamedTuple):
    """What one block has of its own, but for the norms whose weights are in the modulation's rows.

    Attributes:
        projections: the matrix products.
        query_norm, key_norm: (head_dim,), fp32: the weights of both norms.
        query_key_eps, eps: what keeps the norms of queries and keys, and all others, from dividing by zero.
    """

    projections: BlockProjections
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    query_key_eps: float
    eps: float


class BlockKernels(NamedTuple):
    """What computes the parts of a block for which there is a choice.

    Attributes:
        flash_attention_4: attention by it, not by torch.
        gate_tile: the kernel of the gated product (`gate.gated`); None is the projection's own.
    """

    flash_attention_4: bool = False
    gate_tile: str | None = None


USUAL_KERNELS = BlockKernels()


def block_weights(
    block: ZImageTransformerBlock,
    precision: Precision = Precision.EXACT,
    projections: BlockProjections | None = None,
) -> BlockWeights:
    """The weights of a stock block; see `block_projections` and `lossy_projections` for what happens to its own.

    With `projections`, its matrices were made into those before, and it has none of its own.
    """
    if projections is None:
        exact = precision is Precision.EXACT
        projections = block_projections(block) if exact else lossy_projections(block, precision)
    attention_part = block.attention
    return BlockWeights(
        projections=projections,
        query_norm=attention_part.norm_q.weight.float(),
        key_norm=attention_part.norm_k.weight.float(),
        query_key_eps=attention_part.norm_q.eps,
        eps=block.attention_norm1.eps,
    )


def run_block(
    stream: torch.Tensor,
    normed: Activations,
    weights: BlockWeights,
    rows: torch.Tensor,
    rotary: torch.Tensor,
    kept_tokens: int | None = None,
    kernels: BlockKernels = USUAL_KERNELS,
) -> tuple[torch.Tensor, Activations]:
    """One block.

    Args:
        stream: (pictures, tokens, dim), the residual stream.
        normed: the same, normed for this block's attention, as its first projection reads it or in the model's dtype.
        weights: of this block.
        rows: (4, dim), fp32: what the norms multiply by after the attention, before the feed-forward, after the
            feed-forward, and before the next block's attention.
        rotary: the rotation of each token (`rotation_table`).
        kept_tokens: how many tokens, from the first, anybody reads afterwards; None is all.
        kernels: of its parts.

    Returns:
        The stream after this block, and the same normed for the next one, as this one's first projection would read
        it: all blocks are of one kind. Both of the kept tokens.
    """
    after_attention, before_feed_forward, after_feed_forward, before_next = rows.unbind(0)
    products = weights.projections
    query, key, value = _queries_keys_values(normed, weights, rotary)
    attended = attention(query[:, :kept_tokens], key, value, kernels.flash_attention_4).flatten(2)
    stream, between = add_and_norm(
        stream[:, :kept_tokens], products.output(attended), after_attention, before_feed_forward, weights.eps
    )
    change = products.down(gated(products.gate_up, products.gate_up.read(between), kernels.gate_tile))
    stream, following = add_and_norm(stream, change, after_feed_forward, before_next, weights.eps)
    return stream, products.query_key_value.read(following)


def add_and_norm(
    stream: torch.Tensor, change: torch.Tensor, gate: torch.Tensor, scale: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`stream` plus the normed and gated `change`; and that sum normed and scaled for what comes next, in fp32."""
    stream = torch.addcmul(stream.float(), _unit(change, eps), gate).to(stream.dtype)
    # Normed from its rounded values, as the stock block does: kept in fp32 the sum would be written to memory, too.
    return stream, norm(stream, scale, eps)


def norm(values: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The root mean square norm of the last axis, times `weight`; fp32."""
    return _unit(values, eps) * weight


def _unit(values: torch.Tensor, eps: float) -> torch.Tensor:
    exact = values.float()
    return exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)


def _queries_keys_values(
    normed: Activations, weights: BlockWeights, rotary: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each (pictures, tokens, heads, head_dim); the values are a view of the product."""
    head_dim = weights.query_norm.shape[-1]
    query, key, value = weights.projections.query_key_value(normed).unflatten(-1, (3, -1, head_dim)).unbind(2)
    query = rotate(norm(query, weights.query_norm, weights.query_key_eps), rotary)
    key = rotate(norm(key, weights.key_norm, weights.query_key_eps), rotary)
    return query.to(value.dtype), key.to(value.dtype), value
