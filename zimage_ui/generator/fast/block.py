"""A transformer block as one function of its weights, the same for every block, so that it is compiled once for all.

What it is made of on a GPU: four matrix products, one attention, and a few small kernels between them, whether a
compiler's (`parts`) or our own (`triton_parts`): norm and rotation of queries and keys; SiLU and product; and twice
"add to the residual stream and norm for what comes next". For the last, a block hands on its sum together with the
normed input of the next block. Norms are computed in fp32 and rounded once, where the stock block rounds after every
step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from zimage_ui.generator.fast.attention import AttentionBackend, attention
from zimage_ui.generator.fast.gate import gated
from zimage_ui.generator.fast.lossy_projections import lossy_projections
from zimage_ui.generator.fast.parts import parts_by
from zimage_ui.generator.fast.product_kernels import USUAL_PRODUCTS, ProductKernels, multiplied
from zimage_ui.generator.fast.projections import BlockProjections, block_projections
from zimage_ui.generator.fast.quantised_rows import Activations, Product, QuantisedRows, ScaledProduct
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
        attention: its backend; torch's own are chosen by `attention_by`, around a block. FP8 is for products in eight
            bits, and with `triton` only.
        gate_tile: the kernel of the gated product (`gate.gated`); None is the projection's own.
        triton: what lies between the products by `triton_parts`, not by `parts`.
        products: the kernels of the products, plain or in FP8.
    """

    attention: AttentionBackend | None = None
    gate_tile: str | None = None
    triton: bool = False
    products: ProductKernels = USUAL_PRODUCTS


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
    products, parts, eps, by = weights.projections, parts_by(triton=kernels.triton), weights.eps, kernels.products
    product = multiplied(parts.plain(products.query_key_value), normed, by.query_key_value)
    attended = _attended(product, weights, rotary, kept_tokens, kernels)
    change = multiplied(parts.plain(products.output), attended, by.output)
    stream, between = parts.add_and_norm(
        stream[:, :kept_tokens], change, after_attention, before_feed_forward, eps, products.gate_up
    )
    hidden = gated(products, between, parts, kernels.gate_tile, by.gate_up)
    change = multiplied(parts.plain(products.down), hidden, by.down)
    return parts.add_and_norm(stream, change, after_feed_forward, before_next, eps, products.query_key_value)


def _attended(
    product: Product, weights: BlockWeights, rotary: torch.Tensor, kept_tokens: int | None, kernels: BlockKernels
) -> Activations:
    """What the attention's output projection reads, of the kept tokens."""
    heads = weights.query_norm, weights.key_norm, weights.query_key_eps, rotary
    if kernels.attention is AttentionBackend.FP8 and isinstance(product, ScaledProduct):
        from zimage_ui.generator.fast.fp8_attention import fp8_attention  # where there is Triton

        # Dense, as kernels read them: what is kept of several pictures lies apart.
        return QuantisedRows(*(each[:, :kept_tokens].contiguous() for each in fp8_attention(product, *heads)))
    parts = parts_by(triton=kernels.triton)
    query, key, value = parts.turned_heads(product, *heads)
    attended = attention(query[:, :kept_tokens], key, value, kernels.attention)
    return parts.read(attended.flatten(2), weights.projections.output)
