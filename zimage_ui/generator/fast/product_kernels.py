"""Which kernel multiplies by a block's matrices, plain or in FP8: measured for each number of tokens, and remembered.

torch takes what CUDA's library chooses. On an H100 at its power limit, another of its kernels takes 3 to 12 % less
for most of the sizes, quack's product in tiles of 192 x 192 for some: how many thread blocks a product falls into, what
is left over in the last round of them and what multiplies nothing, is a matter of the very number of tokens. 4160 are
26 times 160, and tiles of 128 x 160 are the fastest there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch

from zimage_ui.generator.fast import cublaslt, cute_kernels
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.choices import kernel_choices
from zimage_ui.generator.fast.cute_kernels import PRODUCT_TILES, has_tiled_product
from zimage_ui.generator.fast.four_bits import outline, unpacked
from zimage_ui.generator.fast.giving_way import give_way
from zimage_ui.generator.fast.lossy_projections import Fp8Projection
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection, Projection
from zimage_ui.generator.fast.quantised_rows import Activations, Product, ScaledProduct
from zimage_ui.generator.fast.timing import in_turns_ms

_log = logging.getLogger(__name__)

# The projection's own product.
USUAL = "torch"
# Relative: how far another kernel's product may be from it. Both are rounded to bf16 once, 0.2 % off what is exact.
_SAME = 0.01
# Compared are so many rows, from all over: widened to fp32, whole products would be a gigabyte.
_COMPARED_ROWS = 256


class ProductKernels(NamedTuple):
    """For each product of a block (`BlockProjections`) the kernel's name; None is the projection's own product."""

    query_key_value: str | None = None
    output: str | None = None
    gate_up: str | None = None
    down: str | None = None


USUAL_PRODUCTS = ProductKernels()


def multiplied(projection: Projection, activations: Activations, kernel: str | None = None) -> Product:
    """What `projection` makes of `activations`, by `kernel` if that is one for its matrix and so many tokens."""
    product: Product | None = None
    if kernel is not None and isinstance(projection, Fp8Projection):
        activations = projection.rows(activations)
        sums = _product(activations.values, projection.weight, kernel)
        product = None if sums is None else ScaledProduct(sums, activations.scales, projection.scales)
    elif kernel is not None and isinstance(projection, PlainProjection) and isinstance(activations, torch.Tensor):
        product = _product(activations, projection.weight, kernel)
    return projection(activations) if product is None else product


def fastest_products(blocks: Sequence[BlockProjections], tokens: int) -> ProductKernels:
    """The fastest kernels for so many tokens; `blocks` are alike, and several, more than a cache holds."""
    return ProductKernels(*(fastest_product(alike, tokens) for alike in zip(*blocks, strict=True)))


def fastest_product(alike: Sequence[Projection], tokens: int) -> str | None:
    """The fastest kernel of one product, of which `alike` are those of several blocks."""
    outlines = [found for projection in alike if (found := _outline(projection)) is not None]
    if len(outlines) < len(alike):
        return None
    weight = outlines[0]
    candidates = _candidates(weight, tokens)
    if len(candidates) == 1:
        return None
    question = f"product of {tokens} tokens, {weight.shape[1]} to {weight.shape[0]}, {weight.dtype}"
    measure = partial(product_times_ms, alike, tokens)
    chosen = kernel_choices().choose(question, candidates, measure, weight.device)
    return None if chosen == USUAL else chosen


def product_times_ms(alike: Sequence[Projection], tokens: int) -> dict[str, float]:
    """The time under load, of all of `alike` together, of each kernel that works and is near the fastest, in ms.

    Those in four bits are unpacked before: that takes the same time whatever multiplies.

    One that computes something else than the projection is left out, which is logged: what some settings of the library
    mean is not documented.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
        GaveWayError: somebody waits.
    """
    matrices = [unpacked(projection) for projection in alike]
    first, weight = matrices[0], _outline(matrices[0])
    assert weight is not None, "there is a choice"
    activations = first.read(torch.randn(1, tokens, weight.shape[1], device=weight.device))
    expected = _some_rows(first(activations))
    runs = {
        kernel: partial(_all_multiplied, matrices, activations, None if kernel == USUAL else kernel)
        for kernel in _candidates(weight, tokens)
        if kernel == USUAL or _agrees(first, activations, kernel, expected)
    }
    return in_turns_ms(runs, weight.device)


def _agrees(projection: Projection, activations: Activations, kernel: str, expected: torch.Tensor) -> bool:
    """Whether `kernel` computes what the projection does, of which `expected` are some rows."""
    give_way()
    found = attempt(
        partial(multiplied, projection, activations, kernel), f"{kernel} is left out", but=(torch.OutOfMemoryError,)
    )
    if found is None:
        return False
    distance = float((_some_rows(found) - expected).norm() / expected.norm())
    agrees = distance <= _SAME  # no number is not
    if not agrees:
        _log.warning("%s is left out: its product is %.3g of it away from torch's", kernel, distance)
    return agrees


def _some_rows(product: Product) -> torch.Tensor:
    rows = (product.values if isinstance(product, ScaledProduct) else product).flatten(0, -2)
    return rows[:: max(1, len(rows) // _COMPARED_ROWS)].float()


def _outline(projection: Projection) -> torch.Tensor | None:
    """As `four_bits.outline` has it, and of FP8; None where there is no choice. Other kernels add FP8 up fast."""
    if isinstance(projection, Fp8Projection):
        return projection.weight if projection.fast_accumulation else None
    return outline(projection)


def _all_multiplied(alike: Sequence[Projection], activations: Activations, kernel: str | None) -> None:
    for projection in alike:
        multiplied(projection, activations, kernel)


def _product(values: torch.Tensor, weight: torch.Tensor, kernel: str) -> torch.Tensor | None:
    if kernel in PRODUCT_TILES:
        return cute_kernels.tiled_product(values, weight, kernel)
    return cublaslt.product(values, weight, kernel)


def _candidates(weight: torch.Tensor, tokens: int) -> tuple[str, ...]:
    tiles = PRODUCT_TILES if has_tiled_product(weight) else ()
    return USUAL, *cublaslt.kernel_names(tokens, weight), *tiles
