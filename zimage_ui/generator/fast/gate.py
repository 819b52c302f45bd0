"""The gated half of the feed-forward, and which way to it is the fastest here.

A compiler makes of it a matrix product, which writes gate and up, and a kernel that reads both again: 80 us of a block
at 1024 x 1024 on an H100. quack's kernel has the gate in the product, whose own speed is not that of CUDA's library:
so it is measured, and remembered.
"""

from __future__ import annotations

from functools import partial

import torch
from torch.nn import functional

from zimage_ui.generator.fast import cute_kernels
from zimage_ui.generator.fast.any_size import compiled_as_they_come
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.choices import kernel_choices
from zimage_ui.generator.fast.cute_kernels import GATE_TILES, has_gated_product
from zimage_ui.generator.fast.projections import PlainProjection, Projection
from zimage_ui.generator.fast.quantised_rows import Activations
from zimage_ui.generator.fast.timing import median_ms

# The projection's own product, then the gate.
PLAIN = "plain"


def gated(gate_up: Projection, activations: Activations, tile: str | None = None) -> torch.Tensor:
    """`silu(gate) * up` of what `gate_up` says of `activations`.

    Args:
        gate_up: inputs -> 2 * outputs, the gate first.
        activations: (..., inputs), as `gate_up` reads them.
        tile: quack's kernel for a plain matrix; None is the projection's own product.

    Returns:
        (..., outputs).
    """
    if tile is not None and isinstance(gate_up, PlainProjection) and isinstance(activations, torch.Tensor):
        return cute_kernels.gated_product(activations, gate_up.weight, tile)
    gate, up = gate_up(activations).chunk(2, dim=-1)
    return functional.silu(gate).mul_(up)


def fastest_gate_tile(gate_up: Projection, tokens: int) -> str | None:
    """The tile of quack's kernel that is fastest for so many tokens; None where the projection's own product is."""
    if not isinstance(gate_up, PlainProjection) or not has_gated_product(gate_up.weight):
        return None
    weight = gate_up.weight
    question = f"gated product of {tokens} tokens, {weight.shape[1]} to {weight.shape[0] // 2}, {weight.dtype}"
    measure = partial(gate_times_ms, gate_up, tokens)
    chosen = kernel_choices().choose(question, (PLAIN, *GATE_TILES), measure, weight.device)
    return chosen if chosen != PLAIN else None


def gate_times_ms(gate_up: PlainProjection, tokens: int) -> dict[str, float]:
    """The time of the `PLAIN` way, compiled, and of each tile of quack's kernel that works, in ms.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
    """
    device = gate_up.weight.device
    values = torch.randn(1, tokens, gate_up.weight.shape[1], dtype=gate_up.weight.dtype, device=device)
    plain = compiled_as_they_come(gated)
    times_ms = {PLAIN: median_ms(partial(plain, gate_up, values), device)}
    for tile in GATE_TILES:
        timed = partial(median_ms, partial(gated, gate_up, values, tile), device)
        taken = attempt(timed, f"quack's gated product by {tile} is left out", but=(torch.OutOfMemoryError,))
        if taken is not None:
            times_ms[tile] = taken
    return times_ms
