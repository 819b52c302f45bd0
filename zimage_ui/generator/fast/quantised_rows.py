"""Activations rounded to eight bits, each row with a scale of its own, and products of them.

A row is one token. The largest values of some tokens of this model are thousands of times larger than those of others
(6.6e4 was seen), so one scale for all of them would round most to nothing. What a step calls of this is elementwise or
a maximum along a row: a compiler makes it part of the kernel that computes the values, as kernels of our own do
(`triton_parts`), and eight bits are all that is written.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

# The largest value of each type; -128 of int8 is left out, so that both signs are alike.
LIMITS = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
# Keeps the scale of a row of zeros from being zero; far below any row that means something.
SMALLEST = 1e-12


class QuantisedRows(NamedTuple):
    """Rows of values times their scales.

    Attributes:
        values: (..., inputs), float8_e4m3fn or int8.
        scales: (..., 1), fp32, positive.
    """

    values: torch.Tensor
    scales: torch.Tensor


class ScaledProduct(NamedTuple):
    """A product of rounded factors before it is scaled: whatever reads it next does that on the way.

    Attributes:
        values: (..., outputs), in the model's dtype, but not fp16: sums of unscaled e4m3 leave its range.
        rows: (..., 1), fp32: the scale of each token.
        shares: (shares,), fp32: the scales of equal shares of the outputs, such as queries, keys and values.
    """

    values: torch.Tensor
    rows: torch.Tensor
    shares: torch.Tensor


# What a matrix product reads, and what it answers.
Activations = torch.Tensor | QuantisedRows
Product = torch.Tensor | ScaledProduct


def quantise(values: torch.Tensor, dtype: torch.dtype) -> QuantisedRows:
    """`values` (..., inputs) rounded to `dtype` (float8_e4m3fn or int8); the largest of each row becomes its limit."""
    exact = values.float()
    scales = exact.abs().amax(-1, keepdim=True).clamp(min=SMALLEST) / LIMITS[dtype]
    steps = exact / scales
    # Nothing is past the limit by more than fp32's rounding, which the rounding to eight bits takes back.
    return QuantisedRows(steps.round_().to(dtype) if dtype == torch.int8 else steps.to(dtype), scales)


def largest_scale(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The scale, (), fp32, with which the largest of `values` becomes the limit of `dtype`."""
    least, most = torch.aminmax(values)
    return torch.maximum(-least, most).float().clamp(min=SMALLEST) / LIMITS[dtype]


def scaled(product: Product) -> torch.Tensor:
    """`product` in the model's dtype, (..., outputs); what was not scaled yet is scaled in place.

    Uncompiled, each further copy of the largest product is 170 MB at 1024 x 1024. A compiler makes it part of whatever
    kernel reads it next.
    """
    if isinstance(product, torch.Tensor):
        return product
    values = product.values.unflatten(-1, (len(product.shares), -1))
    return values.mul_((product.rows * product.shares)[..., None]).flatten(-2)


def joined(first: Activations, second: Activations) -> Activations:
    """The tokens of `second` behind those of `first`: (pictures, tokens, inputs) each, and of one kind."""
    if isinstance(first, QuantisedRows) and isinstance(second, QuantisedRows):
        bits = torch.cat((first.values.view(torch.uint8), second.values.view(torch.uint8)), dim=1)
        return QuantisedRows(bits.view(first.values.dtype), torch.cat((first.scales, second.scales), dim=1))
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor), "both are of one kind"
    return torch.cat((first, second), dim=1)
