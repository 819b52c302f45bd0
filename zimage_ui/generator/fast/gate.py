"""The gated half of the feed-forward, and which way to it is the fastest here.

The plain way is a matrix product, which writes gate and up, and a kernel that reads both again: one that a compiler
makes takes 80 us of a block at 1024 x 1024 on an H100. quack's kernel has the gate in the product, whose own speed is
not that of CUDA's library: so it is measured, and remembered.
"""

from __future__ import annotations

from functools import partial

import torch

from zimage_ui.generator.fast import cute_kernels
from zimage_ui.generator.fast import parts as torch_parts
from zimage_ui.generator.fast.any_size import compiled_as_they_come
from zimage_ui.generator.fast.choices import kernel_choices
from zimage_ui.generator.fast.cute_kernels import GATE_TILES, has_gated_product
from zimage_ui.generator.fast.four_bits import outline
from zimage_ui.generator.fast.parts import Parts
from zimage_ui.generator.fast.product_kernels import multiplied
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection
from zimage_ui.generator.fast.quantised_rows import Activations
from zimage_ui.generator.fast.timing import in_turns_ms

# The projection's own product, then the gate.
PLAIN = "plain"


def gated(
    products: BlockProjections,
    activations: Activations,
    parts: Parts,
    tile: str | None = None,
    kernel: str | None = None,
) -> Activations:
    """`silu(gate) * up` of what `products.gate_up` says of `activations`, as `products.down` reads it.

    Args:
        products: of a block.
        activations: (..., inputs), as `gate_up` reads them.
        parts: computes the gate after a plain product.
        tile: quack's kernel for a plain matrix; None is a product and then the gate.
        kernel: of that product (`product_kernels`); None is the projection's own.
    """
    gate_up = parts.plain(products.gate_up)
    if tile is not None and isinstance(gate_up, PlainProjection) and isinstance(activations, torch.Tensor):
        return parts.read(cute_kernels.gated_product(activations, gate_up.weight, tile), products.down)
    return parts.gated(multiplied(gate_up, activations, kernel), products.down)


def fastest_gate_tile(products: BlockProjections, tokens: int, parts: Parts, kernel: str | None = None) -> str | None:
    """The tile of quack's kernel fastest for so many tokens; None where a product by `kernel`, then a gate are."""
    weight = outline(products.gate_up)
    if weight is None or not has_gated_product(weight):
        return None
    plainly = "compiled" if parts is torch_parts else "by our own kernel"
    plainly += f" after {kernel}" if kernel else ""
    sizes = f"{weight.shape[1]} to {weight.shape[0] // 2}"
    question = f"gated product of {tokens} tokens, {sizes}, {weight.dtype}, {PLAIN} {plainly}"
    measure = partial(gate_times_ms, products, tokens, parts, kernel)
    chosen = kernel_choices().choose(question, (PLAIN, *GATE_TILES), measure, weight.device)
    return chosen if chosen != PLAIN else None


def gate_times_ms(products: BlockProjections, tokens: int, parts: Parts, kernel: str | None = None) -> dict[str, float]:
    """The time under load of the `PLAIN` way, by `parts`, and of each tile of quack's kernel that is near it, in ms.

    Args:
        products: of a block, plain or in four bits, which are unpacked before.
        tokens: of all pictures.
        parts: computes the gate of the `PLAIN` way, and is compiled for it unless it has kernels of its own.
        kernel: of its product.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
    """
    gate_up = parts.plain(products.gate_up)
    assert isinstance(gate_up, PlainProjection), "quack's kernel is for plain matrices"
    products, weight = products._replace(gate_up=gate_up), gate_up.weight
    values = torch.randn(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    plain = compiled_as_they_come(gated) if parts is torch_parts else gated
    runs = {PLAIN: partial(plain, products, values, parts, kernel=kernel)}
    runs |= {tile: partial(gated, products, values, parts, tile, kernel=kernel) for tile in GATE_TILES}
    return in_turns_ms(runs, weight.device)
