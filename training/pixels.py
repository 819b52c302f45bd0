"""Pictures as networks take them."""

from __future__ import annotations

from torch import Tensor


def to_bytes(pictures: Tensor) -> Tensor:
    """Pictures (n, 3, height, width) in -1..1, cut to it, to 8-bit ones (n, height, width, 3)."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def to_floats(pictures: Tensor) -> Tensor:
    """8-bit pictures (n, height, width, 3) to (n, 3, height, width) in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1
