"""Pictures as networks take them."""

from __future__ import annotations

from torch import Tensor


def to_floats(pictures: Tensor) -> Tensor:
    """8-bit pictures (n, height, width, 3) to (n, 3, height, width) in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
