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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from zimage_ui.generator.components import EIGHT_BIT_MULTIPLE
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection, Projection, block_projections
from zimage_ui.generator.fast.quantised_rows import Activations, QuantisedRows, quantise
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock


@dataclass(frozen=True, slots=True)
class Fp8Projection:
    """A matrix in FP8, multiplied with activations in FP8.

    Attributes:
        weight: (outputs, inputs), float8_e4m3fn; both extents multiples of 16.
        scales: (1, outputs), fp32.
        dtype: of the product; a GPU has bf16 only.
        fast_accumulation: add up in the tensor cores' own precision (14 bits on Hopper), which takes half the time of
            adding up in fp32 there and rounds far less than the factors were.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype
    fast_accumulation: bool = True

    @classmethod
    def of(cls, weight: torch.Tensor) -> Fp8Projection:
        """The projection by `weight`, (outputs, inputs), whose dtype the product will have."""
        rows = quantise(weight, torch.float8_e4m3fn)
        return cls(rows.values, rows.scales.view(1, -1), weight.dtype)

    def read(self, values: torch.Tensor) -> QuantisedRows:
        """`values` (..., inputs) in FP8."""
        return quantise(values, torch.float8_e4m3fn)

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library; emulated on a CPU."""
        rows = _rows_of(self.read, activations)
        factor, scales = rows.values.flatten(0, -2), rows.scales.flatten(0, -2)
        if factor.is_cuda:
            product = torch._scaled_mm(
                factor,
                self.weight.t(),
                scale_a=scales,
                scale_b=self.scales,
                out_dtype=self.dtype,
                use_fast_accum=self.fast_accumulation,
            )
        else:
            product = (factor.float() @ self.weight.float().t() * scales * self.scales).to(self.dtype)
        return product.view(*rows.values.shape[:-1], -1)


@dataclass(frozen=True, slots=True)
class Int8Projection:
    """A matrix in int8, multiplied with activations in int8; sums are int32.

    Attributes:
        weight: (outputs, inputs), int8; both extents multiples of 8.
        scales: (1, outputs), fp32.
        dtype: of the product.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor) -> Int8Projection:
        """The projection by `weight`, (outputs, inputs), whose dtype the product will have."""
        rows = quantise(weight, torch.int8)
        return cls(rows.values, rows.scales.view(1, -1), weight.dtype)

    def read(self, values: torch.Tensor) -> QuantisedRows:
        """`values` (..., inputs) in int8."""
        return quantise(values, torch.int8)

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library; a compiler scales it in whatever kernel reads it next."""
        rows = _rows_of(self.read, activations)
        sums = torch._int_mm(rows.values.flatten(0, -2), self.weight.t())
        # in place: uncompiled, each further copy of the largest product is 377 MB at 1024 x 1024
        product = sums.float().mul_(rows.scales.flatten(0, -2)).mul_(self.scales).to(self.dtype)
        return product.view(*rows.values.shape[:-1], -1)


_KINDS: dict[Precision, type[Fp8Projection] | type[Int8Projection]] = {
    Precision.FP8: Fp8Projection,
    Precision.INT8: Int8Projection,
}
_STORED = {Precision.FP8: torch.float8_e4m3fn, Precision.INT8: torch.int8}


def lossy_projections(block: ZImageTransformerBlock, precision: Precision) -> BlockProjections:
    """The projections of a stock block in eight bits.

    They replace the block's own matrices, whose memory is free afterwards: the stock block cannot be called any more,
    and never more than one block is there twice.

    Args:
        block: on its device, in the dtype that products are to have.
        precision: FP8 or INT8.
    """
    projections = lossy(block_projections(block), precision)
    for linear in _linears(block):
        linear.weight.data = linear.weight.new_empty(0)
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
) -> PlainProjection | Fp8Projection | Int8Projection:
    """The projection that `lossy` would make of a matrix of `dtype`, its values anything; for `RoundedBlocks`."""
    if not _takes((outputs, inputs)):
        return PlainProjection(torch.empty(outputs, inputs, dtype=dtype, device=device))
    weight = torch.empty(outputs, inputs, dtype=_STORED[precision], device=device)
    return _KINDS[precision](weight, torch.empty(1, outputs, device=device), dtype)


def _takes(extents: Sequence[int]) -> bool:
    return not any(extent % EIGHT_BIT_MULTIPLE for extent in extents)


def _rows_of(read: Callable[[torch.Tensor], QuantisedRows], activations: Activations) -> QuantisedRows:
    return activations if isinstance(activations, QuantisedRows) else read(activations)


def _linears(block: ZImageTransformerBlock) -> tuple[nn.Linear, ...]:
    attention, feed_forward = block.attention, block.feed_forward
    return (
        attention.to_q, attention.to_k, attention.to_v, attention.to_out[0],
        feed_forward.w1, feed_forward.w2, feed_forward.w3,
    )  # fmt: skip
