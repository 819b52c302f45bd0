"""Matrices kept in four bits and unpacked to sixteen for each product: for cards that are short of memory.

NF4 (Dettmers et al., QLoRA, 2023): each run of 64 values has its largest for a scale, and a value is rounded to the
nearest of sixteen levels, which lie as close to each other as normally distributed values do. With the scales that is
4.5 bits a value. Activations are not rounded, so the product is that of the exact mode by other weights: whatever
multiplies or attends fastest there does so here, and unpacking comes on top.

bitsandbytes rounds and unpacks, an optional library; by the operators that its own layers call, which torch can record
and a compiler leaves alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.nn import functional

from zimage_ui.errors import SettingsError
from zimage_ui.generator.fast.projections import PlainProjection, Projection, RoundedProjection, unquantised
from zimage_ui.generator.fast.quantised_rows import Activations

# As in pyproject.toml.
_REQUIREMENT = "bitsandbytes>=0.49,<1"
# Values with one scale.
RUN = 64
_KIND = "nf4"


@dataclass(frozen=True, slots=True)
class Nf4Projection(RoundedProjection):
    """By NF4: outputs times inputs of each part is a multiple of `RUN`.

    `weight` is (outputs * inputs / 2, 1), uint8: two values each; `scales` is (outputs * inputs / RUN,).

    Attributes:
        extents: (outputs, inputs).
    """

    extents: tuple[int, int]

    @classmethod
    def unfilled(cls, outputs: int, inputs: int, parts: int, dtype: torch.dtype, device: torch.device) -> Self:
        """The same for a matrix whose values are anything yet; `parts` does not matter."""
        weight = torch.empty(outputs * inputs // 2, 1, dtype=torch.uint8, device=device)
        return cls(weight, torch.empty(outputs * inputs // RUN, device=device), dtype, (outputs, inputs))

    @property
    def form(self) -> torch.dtype:
        """The product's dtype."""
        return self.dtype

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """`values` in the product's dtype."""
        return values.to(self.dtype)

    def fill(self, part: int, matrix: torch.Tensor) -> None:
        """Round `matrix`, (outputs / parts, inputs), on its own device, to its place."""
        values, scales = _operators().quantize_4bit(matrix.contiguous(), RUN, _KIND, torch.uint8)
        for whole, piece in ((self.weight, values), (self.scales, scales)):
            whole[part * len(piece) : (part + 1) * len(piece)].copy_(piece)

    def plain(self) -> PlainProjection:
        """The projection by the unpacked matrix: another (outputs, inputs) of memory for as long as it lives."""
        # By runs: for a CPU its operator takes no rows that end within one (0.50).
        runs = len(self.scales), RUN
        values = _operators().dequantize_4bit(self.weight, self.scales, RUN, _KIND, runs, self.dtype)
        return PlainProjection(values.view(self.extents))

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library."""
        return functional.linear(unquantised(activations), self.plain().weight)


def unpacked(projection: Projection) -> Projection:
    """`projection` as whatever multiplies by plain matrices takes it, if it is one in four bits; others as they are."""
    return projection.plain() if isinstance(projection, Nf4Projection) else projection


def check_bitsandbytes(device: torch.device) -> None:
    """Round something with it.

    Raises:
        SettingsError: it is not installed, or has nothing for this device or this version of CUDA.
    """
    try:
        Nf4Projection.of(torch.zeros(RUN, RUN, device=device)).plain()
    except ImportError as error:
        raise SettingsError(
            f"ZIMAGE_PRECISION = nf4 needs bitsandbytes, which cannot be imported ({error}).",
            f"{sys.executable} -m pip install '{_REQUIREMENT}' brings it; exact needs nothing.",
        ) from error
    except (RuntimeError, NotImplementedError) as error:
        raise SettingsError(
            f"ZIMAGE_PRECISION = nf4 cannot be used on {device}: bitsandbytes fails with "
            f"{(str(error).strip() or type(error).__name__).splitlines()[0]}",
            f"{sys.executable} -m bitsandbytes says more; exact needs nothing of it.",
        ) from error


def _operators() -> Any:
    import bitsandbytes  # noqa: F401  # registers them

    return torch.ops.bitsandbytes
