"""Latents cut into image tokens and put together again: reshapes, without a loop over pictures.

A token holds its 2 x 2 latent positions row by row, and of each position all channels, as the model was trained.
"""

from __future__ import annotations

import torch

from zimage_ui.generator.fast.shapes import PATCH


def to_patches(latents: torch.Tensor) -> torch.Tensor:
    """(pictures, channels, height, width) as (pictures, image tokens, 4 * channels), in reading order."""
    pictures, channels, height, width = latents.shape
    cells = latents.view(pictures, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(pictures, -1, PATCH * PATCH * channels)


def from_patches(patches: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The inverse of `to_patches` for latents of `height` x `width`; contiguous."""
    pictures = patches.shape[0]
    cells = patches.reshape(pictures, height // PATCH, width // PATCH, PATCH, PATCH, -1)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(pictures, -1, height, width)
