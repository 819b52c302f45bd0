"""Which kernel multiplies by a block's plain matrices: measured for each number of tokens, and remembered.

torch takes what cuBLASLt proposes first. Measured on an H100 in bursts, another of its proposals, or quack's product in
tiles of 192 x 192, takes 2 to 17 % less for most sizes: how many thread blocks a product falls into, and what is left
over in the last round of them, is a matter of the very number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch

from zimage_ui.generator.fast import cublaslt, cute_kernels
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.choices import kernel_choices
from zimage_ui.generator.fast.cute_kernels import PRODUCT_TILES, has_tiled_product
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection, Projection
from zimage_ui.generator.fast.quantised_rows import Activations, Product
from zimage_ui.generator.fast.timing import median_ms

# The projection's own product.
USUAL = "torch"


class ProductKernels(NamedTuple):
    """For each product of a block (`BlockProjections`) the kernel's name; None is the projection's own product."""

    query_key_value: str | None = None
    output: str | None = None
    gate_up: str | None = None
    down: str | None = None


USUAL_PRODUCTS = ProductKernels()


def multiplied(projection: Projection, activations: Activations, kernel: str | None = None) -> Product:
    """What `projection` makes of `activations`, by `kernel` if that is one for its matrix and so many tokens."""
    if kernel is None or not isinstance(projection, PlainProjection) or not isinstance(activations, torch.Tensor):
        return projection(activations)
    if kernel in PRODUCT_TILES:
        return cute_kernels.tiled_product(activations, projection.weight, kernel)
    product = cublaslt.product(activations, projection.weight, kernel)
    return projection(activations) if product is None else product


def fastest_products(products: BlockProjections, tokens: int) -> ProductKernels:
    """The fastest kernels for so many tokens."""
    return ProductKernels(*(_fastest(projection, tokens) for projection in products))


def product_times_ms(projection: PlainProjection, tokens: int) -> dict[str, float]:
    """The time of each kernel that works for so many tokens, `USUAL` first, in ms.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
    """
    weight = projection.weight
    values = torch.randn(1, tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    times_ms = {}
    for kernel in _candidates(weight, tokens):
        run: Callable[[], object] = partial(multiplied, projection, values, None if kernel == USUAL else kernel)
        timed = partial(median_ms, run, weight.device)
        taken = attempt(timed, f"{kernel} is left out", but=(torch.OutOfMemoryError,))
        if taken is not None:
            times_ms[kernel] = taken
    return times_ms


def _fastest(projection: Projection, tokens: int) -> str | None:
    if not isinstance(projection, PlainProjection):
        return None
    weight = projection.weight
    candidates = _candidates(weight, tokens)
    if len(candidates) == 1:
        return None
    question = f"product of {tokens} tokens, {weight.shape[1]} to {weight.shape[0]}, {weight.dtype}"
    measure = partial(product_times_ms, projection, tokens)
    chosen = kernel_choices().choose(question, candidates, measure, weight.device)
    return None if chosen == USUAL else chosen


def _candidates(weight: torch.Tensor, tokens: int) -> tuple[str, ...]:
    tiles = PRODUCT_TILES if has_tiled_product(weight) else ()
    return USUAL, *cublaslt.kernel_names(tokens, weight), *tiles
