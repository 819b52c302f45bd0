"""Matrix products in eight bits, about twice as fast as in sixteen, with a picture that differs: the lossy modes.

Both factors are rounded, the weights once and the activations as they come, with a scale for each row of either. So
each output is one sum of products in eight bits, times the scale of its token, times the scale of its feature: the
product is exact but for the rounding of its factors. The four products of each block are 85 % of the arithmetic of a
step at 1024 x 1024, attention most of the rest; everything but those four (embedders, the caption's refiner, norms,
attention, the last layer) stays as it is.

* FP8 (e4m3): three bits of mantissa, so a value is off by at most a sixteenth of itself, unless it is 28,000 times
  smaller than the largest of its row. Tensor cores of Ada, Hopper and Blackwell.
* INT8: a value is off by at most a 254th of the largest of its row. Tensor cores since Turing.

On a CPU, FP8 products are emulated in fp32, which holds the products of eight-bit numbers exactly: so what a mode does
to a picture can be measured anywhere. It is slower there than the exact one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from zimage_ui.generator.components import EIGHT_BIT_MULTIPLE
from zimage_ui.generator.fast.projections import (
    PRODUCTS,
    BlockProjections,
    PlainProjection,
    Projection,
    block_projections,
)
from zimage_ui.generator.fast.quantised_rows import Activations, QuantisedRows, quantise
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


@dataclass(frozen=True, slots=True)
class EightBitProjection(ABC):
    """A matrix in eight bits, multiplied with activations in the same.

    Attributes:
        stored: the dtype of both factors.
        weight: (outputs, inputs), in it.
        scales: (1, outputs), fp32.
        dtype: of the product.
    """

    stored: ClassVar[torch.dtype]

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor) -> Self:
        """The projection by `weight`, (outputs, inputs), whose dtype the product will have."""
        rows = quantise(weight, cls.stored)
        return cls(rows.values, rows.scales.view(1, -1), weight.dtype)

    def read(self, values: torch.Tensor) -> QuantisedRows:
        """`values` (..., inputs) in eight bits."""
        return quantise(values, self.stored)

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library."""
        rows = activations if isinstance(activations, QuantisedRows) else self.read(activations)
        product = self._product(rows.values.flatten(0, -2), rows.scales.flatten(0, -2))
        return product.view(*rows.values.shape[:-1], -1)

    @abstractmethod
    def _product(self, factor: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """(tokens, outputs) of `factor` (tokens, inputs) and its `scales` (tokens, 1)."""


@dataclass(frozen=True, slots=True)
class Fp8Projection(EightBitProjection):
    """By FP8, e4m3: both extents are multiples of 16, and a GPU's product is bf16. Emulated on a CPU.

    Attributes:
        fast_accumulation: add up in the tensor cores' own precision (14 bits on Hopper), which takes half the time of
            adding up in fp32 there and rounds far less than the factors were.
    """

    stored = torch.float8_e4m3fn

    fast_accumulation: bool = True

    def _product(self, factor: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        if not factor.is_cuda:
            return (factor.float() @ self.weight.float().t() * scales * self.scales).to(self.dtype)
        return torch._scaled_mm(
            factor,
            self.weight.t(),
            scale_a=scales,
            scale_b=self.scales,
            out_dtype=self.dtype,
            use_fast_accum=self.fast_accumulation,
        )


@dataclass(frozen=True, slots=True)
class Int8Projection(EightBitProjection):
    """By int8, with sums in int32: both extents are multiples of 8."""

    stored = torch.int8

    def _product(self, factor: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        sums = torch._int_mm(factor, self.weight.t())
        # In place: uncompiled, each further copy of the largest product is 377 MB at 1024 x 1024. A compiler scales it
        # in whatever kernel reads it next.
        return sums.float().mul_(scales).mul_(self.scales).to(self.dtype)


_KINDS: dict[Precision, type[EightBitProjection]] = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection}


def lossy_projections(block: ZImageTransformerBlock, precision: Precision) -> BlockProjections:
    """The projections of a stock block in eight bits.

    They replace the block's own matrices, whose memory is free afterwards: the stock block cannot be called any more,
    and never more than one block is there twice.

    Args:
        block: on its device, in the dtype that products are to have.
        precision: FP8 or INT8.
    """
    projections = lossy(block_projections(block), precision)
    for matrix in (block.get_parameter(name) for names in PRODUCTS for name in names):
        matrix.data = matrix.new_empty(0)
    return projections


def lossy(projections: BlockProjections, precision: Precision) -> BlockProjections:
    """Plain projections in eight bits; others stay as they are, and so do extents that tensor cores do not take."""

    def rounded(projection: Projection) -> Projection:
        if not isinstance(projection, PlainProjection) or not _takes(projection.weight.shape):
            return projection
        return _KINDS[precision].of(projection.weight)

    return BlockProjections(*map(rounded, projections))


def unfilled(
    outputs: int, inputs: int, dtype: torch.dtype, precision: Precision, device: torch.device
) -> PlainProjection | EightBitProjection:
    """The projection that `lossy` would make of a matrix of `dtype`, its values anything; for `RoundedBlocks`."""
    if not _takes((outputs, inputs)):
        return PlainProjection(torch.empty(outputs, inputs, dtype=dtype, device=device))
    kind = _KINDS[precision]
    weight = torch.empty(outputs, inputs, dtype=kind.stored, device=device)
    return kind(weight, torch.empty(1, outputs, device=device), dtype)


def _takes(extents: Sequence[int]) -> bool:
    return not any(extent % EIGHT_BIT_MULTIPLE for extent in extents)
