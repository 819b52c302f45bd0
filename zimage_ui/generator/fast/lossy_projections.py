"""The matrix products of the lossy modes; and those in eight bits, about twice as fast as in sixteen.

Both factors are rounded, the weights once and the activations as they come; a sum of products in eight bits is then
multiplied by the scales of its factors, so the product is exact but for their rounding. The four products of each block
are 85 % of the arithmetic of a step at 1024 x 1024, attention most of the rest; that is in eight bits in the FP8 mode,
too, where there is `fp8_attention`. Everything else (embedders, the caption's refiner, norms, the last layer) stays as
it is. Each token's activations have a scale of their own.

* FP8 (e4m3): three bits of mantissa, so a value is off by at most a sixteenth of itself, unless it is 28,000 times
  smaller than the one that sets the scale. Rows of a matrix differ far less than that, so a matrix has one scale, and
  the product leaves scaling to whatever reads it: CUDA's library takes a fifth longer to scale rows and columns itself
  (358 us for the products of a block at 512 x 512 on an H100, 294 without). Tensor cores of Ada, Hopper and Blackwell.
* INT8: a value is off by at most a 254th of the largest of its row, which in a matrix is a row, too. Tensor cores since
  Turing.

On a CPU, FP8 products are emulated in fp32, which holds the products of eight-bit numbers exactly: so what they do to a
picture can be measured anywhere, but not what attention in eight bits adds. It is slower there than the exact mode.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Self

import torch

from zimage_ui.generator.components import ROUNDED_MULTIPLE
from zimage_ui.generator.fast.four_bits import Nf4Projection
from zimage_ui.generator.fast.projections import (
    PRODUCTS,
    VALUES_AT_ONCE,
    BlockProjections,
    PlainProjection,
    Projection,
    RoundedProjection,
    block_projections,
)
from zimage_ui.generator.fast.quantised_rows import (
    Activations,
    QuantisedRows,
    ScaledProduct,
    largest_scale,
    quantise,
)
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


@dataclass(frozen=True, slots=True)
class EightBitProjection(RoundedProjection):
    """A matrix in eight bits, (outputs, inputs), multiplied with activations in the same.

    Attributes:
        stored: the dtype of both factors.
        unit: (), fp32: one, from the first `fill` on.
    """

    stored: ClassVar[torch.dtype]

    unit: torch.Tensor

    @classmethod
    def unfilled(cls, outputs: int, inputs: int, parts: int, dtype: torch.dtype, device: torch.device) -> Self:
        """The same for a matrix whose values are anything yet."""
        weight = torch.empty(outputs, inputs, dtype=cls.stored, device=device)
        scales = torch.empty(cls._scales_shape(outputs, parts), device=device)
        return cls(weight, scales, dtype, torch.empty((), device=device))

    @property
    def form(self) -> torch.dtype:
        """`stored`."""
        return self.stored

    def read(self, values: torch.Tensor) -> QuantisedRows:
        """`values` (..., inputs) in eight bits."""
        return quantise(values, self.stored)

    def rows(self, activations: Activations) -> QuantisedRows:
        """`activations` in eight bits, where they are not yet."""
        return activations if isinstance(activations, QuantisedRows) else self.read(activations)

    def fill(self, part: int, matrix: torch.Tensor) -> None:
        """Round `matrix`, (outputs / parts, inputs), on its own device, to its place."""
        self.unit.fill_(1)  # here: a streamed layer was laid out in host memory since it was made, and nothing copied
        self._fill(part, matrix)

    @abstractmethod
    def _fill(self, part: int, matrix: torch.Tensor) -> None: ...

    @classmethod
    @abstractmethod
    def _scales_shape(cls, outputs: int, parts: int) -> tuple[int, ...]: ...


@dataclass(frozen=True, slots=True)
class Fp8Projection(EightBitProjection):
    """By FP8, e4m3: both extents are multiples of 16, and a GPU's product is bf16. Emulated on a CPU.

    `scales` is (parts,): one of each matrix.

    Attributes:
        fast_accumulation: add up in the tensor cores' own precision (14 bits on Hopper), which takes half the time of
            adding up in fp32 there and rounds far less than the factors were.
    """

    stored = torch.float8_e4m3fn

    fast_accumulation: bool = True

    def __call__(self, activations: Activations) -> ScaledProduct:
        """One matrix product by the device's own library, to be scaled by what reads it."""
        rows = self.rows(activations)
        product = self._product(rows.values.flatten(0, -2)).view(*rows.values.shape[:-1], -1)
        return ScaledProduct(product, rows.scales, self.scales)

    def _fill(self, part: int, matrix: torch.Tensor) -> None:
        scale = largest_scale(matrix, self.stored)
        self.scales[part] = scale
        target = self.weight.chunk(len(self.scales))[part]
        for piece, place in zip(_pieces(matrix), _pieces(target), strict=True):
            place.copy_(piece.float() / scale)

    @classmethod
    def _scales_shape(cls, outputs: int, parts: int) -> tuple[int, ...]:
        return (parts,)

    def _product(self, factor: torch.Tensor) -> torch.Tensor:
        if not factor.is_cuda:
            return (factor.float() @ self.weight.float().t()).to(self.dtype)
        return torch._scaled_mm(
            factor,
            self.weight.t(),
            scale_a=self.unit,
            scale_b=self.unit,
            out_dtype=self.dtype,
            use_fast_accum=self.fast_accumulation,
        )


@dataclass(frozen=True, slots=True)
class Int8Projection(EightBitProjection):
    """By int8, with sums in int32: both extents are multiples of 8.

    `scales` is (1, outputs): one of each row of the matrix.
    """

    stored = torch.int8

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library."""
        rows = self.rows(activations)
        sums = torch._int_mm(rows.values.flatten(0, -2), self.weight.t())
        # In place: uncompiled, each further copy of the largest product is 377 MB at 1024 x 1024. A compiler scales it
        # in whatever kernel reads it next.
        product = sums.float().mul_(rows.scales.flatten(0, -2)).mul_(self.scales).to(self.dtype)
        return product.view(*rows.values.shape[:-1], -1)

    def _fill(self, part: int, matrix: torch.Tensor) -> None:
        begin = part * len(matrix)
        for piece in _pieces(matrix):
            rows = quantise(piece, self.stored)
            self.weight[begin : begin + len(piece)].copy_(rows.values)
            self.scales[0, begin : begin + len(piece)].copy_(rows.scales[:, 0])
            begin += len(piece)

    @classmethod
    def _scales_shape(cls, outputs: int, parts: int) -> tuple[int, ...]:
        return (1, outputs)


_KINDS: dict[Precision, type[RoundedProjection]] = {
    Precision.FP8: Fp8Projection,
    Precision.INT8: Int8Projection,
    Precision.NF4: Nf4Projection,
}


def lossy_projections(block: ZImageTransformerBlock, precision: Precision) -> BlockProjections:
    """The projections of a stock block, rounded.

    They replace the block's own matrices, whose memory is free afterwards: the stock block cannot be called any more,
    and never more than one block is there twice.

    Args:
        block: on its device, in the dtype that products are to have.
        precision: which of the lossy ones.
    """
    projections = lossy(block_projections(block), precision)
    for matrix in (block.get_parameter(name) for names in PRODUCTS for name in names):
        matrix.data = matrix.new_empty(0)
    return projections


def lossy(projections: BlockProjections, precision: Precision) -> BlockProjections:
    """Plain projections rounded; others stay as they are, and so do extents that tensor cores do not take."""

    def rounded(projection: Projection, parts: int) -> Projection:
        if not isinstance(projection, PlainProjection) or not _takes(projection.weight.shape):
            return projection
        return _KINDS[precision].of(projection.weight, parts)

    return BlockProjections(*map(rounded, projections, map(len, PRODUCTS)))


def unfilled(
    outputs: int, inputs: int, parts: int, dtype: torch.dtype, precision: Precision, device: torch.device
) -> PlainProjection | RoundedProjection:
    """The projection that `lossy` would make of `parts` matrices of `dtype`, with `outputs` together; for a loader.

    Its values are anything yet.
    """
    if not _takes((outputs, inputs)):
        return PlainProjection(torch.empty(outputs, inputs, dtype=dtype, device=device))
    return _KINDS[precision].unfilled(outputs, inputs, parts, dtype, device)


def _pieces(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return matrix.split(max(1, VALUES_AT_ONCE // matrix.shape[1]))


def _takes(extents: Sequence[int]) -> bool:
    return not any(extent % ROUNDED_MULTIPLE for extent in extents)
