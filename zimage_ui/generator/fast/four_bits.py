"""Matrices kept in four bits and unpacked to sixteen for each product: for what is short of memory.

NF4 (Dettmers et al., QLoRA, 2023, arXiv 2305.14314): each run of 64 values has its largest for a scale, and a value is
rounded to the nearest of sixteen levels, which lie as close to each other as normally distributed values do. With the
scales that is 4.5 bits a value. Activations are not rounded, so the product is that of the exact mode by other weights:
whatever multiplies or attends fastest there does so here, and unpacking comes on top.

By torch's operations, for any device and for a compiler; `triton_parts` unpacks by a kernel of our own.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from statistics import NormalDist
from typing import Self

import torch
from torch.nn import functional

from zimage_ui.generator.fast.projections import (
    VALUES_AT_ONCE,
    PlainProjection,
    Projection,
    RoundedProjection,
    unquantised,
)
from zimage_ui.generator.fast.quantised_rows import SMALLEST, Activations

# Values with one scale.
RUN = 64


def _nf4_levels() -> tuple[float, ...]:
    """Quantiles of the normal distribution: eight above zero, zero, and seven below, so that both ends are one."""
    normal, outermost = NormalDist(), 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(count: int) -> list[float]:
        return [normal.inv_cdf(outermost - (outermost - 0.5) * number / count) for number in range(count)]

    largest = normal.inv_cdf(outermost)
    return tuple(sorted(level / largest for level in (*quantiles(8), 0.0, *(-level for level in quantiles(7)))))


LEVELS = _nf4_levels()
_BORDERS = tuple((lower + upper) / 2 for lower, upper in itertools.pairwise(LEVELS))


@dataclass(frozen=True, slots=True)
class Nf4Projection(RoundedProjection):
    """By NF4: outputs times inputs of each part is a multiple of `RUN`.

    `weight` is (outputs * inputs / 2,), uint8: two values each, the first in the upper half; `scales` is
    (outputs * inputs / RUN,).

    Attributes:
        levels: (16,), fp32: `LEVELS`, from the first `fill` on.
        extents: (outputs, inputs).
    """

    levels: torch.Tensor
    extents: tuple[int, int]

    @classmethod
    def unfilled(cls, outputs: int, inputs: int, parts: int, dtype: torch.dtype, device: torch.device) -> Self:
        """The same for a matrix whose values are anything yet; `parts` does not matter."""
        weight = torch.empty(outputs * inputs // 2, dtype=torch.uint8, device=device)
        scales, levels = (torch.empty(length, device=device) for length in (outputs * inputs // RUN, len(LEVELS)))
        return cls(weight, scales, dtype, levels, (outputs, inputs))

    @property
    def form(self) -> torch.dtype:
        """The product's dtype."""
        return self.dtype

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """`values` in the product's dtype."""
        return values.to(self.dtype)

    def fill(self, part: int, matrix: torch.Tensor) -> None:
        """Round `matrix`, (outputs / parts, inputs), on its own device, to its place."""
        self.levels.copy_(torch.tensor(LEVELS))  # here: a streamed layer was laid out in host memory since it was made
        borders = torch.tensor(_BORDERS, device=matrix.device)
        begin = part * matrix.numel()
        for piece in matrix.flatten().split(VALUES_AT_ONCE):
            runs = piece.float().view(-1, RUN)
            largest = runs.abs().amax(-1).clamp(min=SMALLEST)
            numbers = torch.bucketize(runs / largest[:, None], borders, out_int32=True).view(-1, 2)
            self.scales[begin // RUN :][: len(largest)].copy_(largest)
            self.weight[begin // 2 :][: len(numbers)].copy_(numbers[:, 0] << 4 | numbers[:, 1])
            begin += piece.numel()

    def plain(self) -> PlainProjection:
        """The projection by the unpacked matrix: another (outputs, inputs) of memory for as long as it lives."""
        packed, scales = self.weight.split(VALUES_AT_ONCE // 2), self.scales.split(VALUES_AT_ONCE // RUN)
        return PlainProjection(torch.cat(list(map(self._values, packed, scales))).view(self.extents))

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library."""
        return functional.linear(unquantised(activations), self.plain().weight)

    def _values(self, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        numbers = torch.stack((packed >> 4, packed & 15), dim=-1).int()
        return (self.levels[numbers].view(-1, RUN) * scales[:, None]).to(self.dtype).flatten()


def outline(projection: Projection) -> torch.Tensor | None:
    """What has the extents, dtype and device of the plain matrix that `projection` multiplies by, but not its memory.

    Of a plain one the matrix itself; None of others than these and those in four bits.
    """
    if isinstance(projection, Nf4Projection):
        return torch.empty(1, dtype=projection.dtype, device=projection.weight.device).expand(projection.extents)
    return projection.weight if isinstance(projection, PlainProjection) else None


def unpacked(projection: Projection) -> Projection:
    """`projection` as whatever multiplies by plain matrices takes it, if it is one in four bits; others as they are."""
    return projection.plain() if isinstance(projection, Nf4Projection) else projection
