"""Matrices rounded while they are read: each as it arrives, straight to where it will be computed with.

Matrices are rounded each for itself, so it does not matter in which order they come. What stands in sixteen bits at a
time is thus one matrix of a block (79 MB of 12.3 GB); a layer that is to be streamed is rounded on the device and goes
home to host memory rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from zimage_ui.generator.fast.flat import FlatLayout
from zimage_ui.generator.fast.lossy_projections import unfilled
from zimage_ui.generator.fast.projections import PRODUCTS, BlockProjections, PlainProjection, RoundedProjection
from zimage_ui.generator.fast.streaming import spread
from zimage_ui.generator.page_locked import HostBuffer
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

_Target = PlainProjection | RoundedProjection


class RoundedBlocks:
    """The matrix products of the blocks that every step runs, to be filled with a stock transformer's matrices.

    Attributes:
        precision: of the products.
        sinks: by the stock module's name of a matrix, what takes that matrix, (outputs, inputs), in the dtype that is
            computed in and on the device that rounds it.
    """

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        precision: Precision,
        dtype: torch.dtype,
        device: torch.device,
        streamed_layers: int = 0,
    ) -> None:
        """Allocate the memory of all blocks.

        Args:
            transformer: whose sizes count; it may have no memory.
            precision: which of the lossy ones.
            dtype: that products are to have.
            device: where they are computed.
            streamed_layers: how many of the main layers live in host memory from the start (`streaming.spread`).

        Raises:
            torch.OutOfMemoryError: the device has no room.
            RuntimeError: the host has none.
        """
        self.precision = precision
        self.sinks: dict[str, Callable[[torch.Tensor], None]] = {}
        self._blocks: dict[str, BlockProjections] = {}
        self._homes: dict[int, HostBuffer] = {}
        away = set(spread(streamed_layers, len(transformer.layers)))
        for stack, blocks in (("noise_refiner", transformer.noise_refiner), ("layers", transformer.layers)):
            for place, block in enumerate(blocks):
                at_home = stack == "layers" and place in away
                products = _products(block, dtype, precision, torch.device("meta") if at_home else device)
                if at_home:
                    layout = FlatLayout(products)
                    self._homes[place] = HostBuffer(layout.size_bytes, locked=device.type == "cuda")
                    products = layout.placed(products, self._homes[place].bytes)
                self._blocks[f"{stack}.{place}"] = products
                self._add_sinks(f"{stack}.{place}", block)

    def take(self, stack: str, place: int) -> BlockProjections:
        """The products of block number `place` in `stack`; they are the caller's from now on."""
        return self._blocks.pop(f"{stack}.{place}")

    def take_homes(self) -> dict[int, HostBuffer]:
        """Of each main layer that lives in host memory, that memory; the caller's from now on."""
        homes, self._homes = self._homes, {}
        return homes

    def _add_sinks(self, name: str, block: torch.nn.Module) -> None:
        for product, parts in enumerate(PRODUCTS):
            for number, part in enumerate(parts):
                self.sinks[f"{name}.{part}"] = self._sink(name, product, number)

    def _sink(self, name: str, product: int, part: int) -> Callable[[torch.Tensor], None]:
        # Not bound to the product itself: a block that was taken may move.
        return lambda matrix: _fill(self._blocks[name][product], part, matrix)


def _products(
    block: torch.nn.Module, dtype: torch.dtype, precision: Precision, device: torch.device
) -> BlockProjections:
    def product(parts: tuple[str, ...]) -> _Target:
        outputs, inputs = block.get_parameter(parts[0]).shape  # those of one product are of one shape
        return unfilled(len(parts) * outputs, inputs, len(parts), dtype, precision, device)

    with torch.inference_mode(False):
        return BlockProjections(*map(product, PRODUCTS))


def _fill(target: object, part: int, matrix: torch.Tensor) -> None:
    """`matrix` becomes that part of `target`, rounded on its own device."""
    assert isinstance(target, _Target)
    with torch.inference_mode(False), torch.no_grad():
        if isinstance(target, PlainProjection):
            target.weight[part * len(matrix) : (part + 1) * len(matrix)].copy_(matrix)
        else:
            target.fill(part, matrix)
