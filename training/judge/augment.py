"""Small damage to renders, so that the judge is as sure of generated pictures, which are never quite as clean.

A shift and a scale, blur, lower resolution, noise in blocks of one to eight pixels (what codecs and autoencoders
leave), contrast, brightness and tint; never so much that a colour of the vocabulary becomes another.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from training.judge.examples import Column, Layer

_SCALE, _SHIFT = 0.05, 0.02
_BLUR = (1.0, 2.0, 1.0)
_NOISE, _BLOCK_NOISE, _BLOCKS = 0.06, 0.05, (2, 4, 8)
_CONTRAST, _BRIGHTNESS, _TINT = 0.06, 0.05, 0.02
_COARSE_SHARE, _COARSE_BOUNDS = 0.2, (0.5, 0.9)


def augment(pictures: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Damaged copies of `pictures` (n, 3, height, width) in -1..1, and their `objects` where they are now."""
    pictures, objects = _moved(pictures, objects)
    pictures = _blurred(pictures)
    if float(torch.rand(())) < _COARSE_SHARE:
        pictures = _coarsened(pictures)
    pictures = _tinted(pictures)
    return (pictures + _noise_like(pictures)).clamp(-1, 1), objects


def _spread(pictures: Tensor, shape: tuple[int, ...], bound: float) -> Tensor:
    """Uniform numbers from -bound to bound, a row for each picture."""
    return (torch.rand((len(pictures), *shape), device=pictures.device) * 2 - 1) * bound


def _moved(pictures: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled and shifted; the edge is repeated where nothing was. All objects stay on the picture."""
    scale = 1 + _spread(pictures, (), _SCALE)
    shift = _spread(pictures, (2,), 2 * _SHIFT)
    matrix = torch.zeros((len(pictures), 2, 3), device=pictures.device)
    matrix[:, 0, 0] = matrix[:, 1, 1] = scale
    matrix[:, :, 2] = shift
    grid = functional.affine_grid(matrix, list(pictures.shape), align_corners=False)
    moved = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
    there = objects.clone()
    # The grid says where each new place was read, in -1..1: here the other way round, in 0..1.
    for column, axis in ((Column.X, 0), (Column.Y, 1)):
        there[..., column] = ((2 * objects[..., column] - 1 - shift[:, axis, None]) / scale[:, None] + 1) / 2
    there[..., Column.RADIUS] = objects[..., Column.RADIUS] / scale[:, None]
    return moved, torch.where(objects[..., Column.LAYER, None] == Layer.NONE, objects, there)


def _blurred(pictures: Tensor) -> Tensor:
    """Each mixed with its blurred self by a share of its own."""
    line = torch.tensor(_BLUR, device=pictures.device) / sum(_BLUR)
    kernel = torch.outer(line, line).expand(3, 1, 3, 3)
    blurred = functional.conv2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    return torch.lerp(pictures, blurred, torch.rand((len(pictures), 1, 1, 1), device=pictures.device))


def _coarsened(pictures: Tensor) -> Tensor:
    size = pictures.shape[-2:]
    low, high = _COARSE_BOUNDS
    factor = low + (high - low) * float(torch.rand(()))
    small = functional.interpolate(pictures, scale_factor=factor, mode="bilinear", antialias=True)
    return functional.interpolate(small, size, mode="bilinear")


def _tinted(pictures: Tensor) -> Tensor:
    contrast = 1 + _spread(pictures, (1, 1, 1), _CONTRAST) + _spread(pictures, (3, 1, 1), _TINT)
    return pictures * contrast + _spread(pictures, (1, 1, 1), _BRIGHTNESS)


def _noise_like(pictures: Tensor) -> Tensor:
    strength = torch.rand((2, len(pictures), 1, 1, 1), device=pictures.device)
    block = _BLOCKS[int(torch.randint(len(_BLOCKS), ()))]
    count, channels, height, width = pictures.shape
    coarse = torch.randn((count, channels, height // block, width // block), device=pictures.device)
    blocks = functional.interpolate(coarse, (height, width), mode="bilinear")
    return _NOISE * strength[0] * torch.randn_like(pictures) + _BLOCK_NOISE * strength[1] * blocks
