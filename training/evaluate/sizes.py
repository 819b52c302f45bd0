"""The model at every size it is offered in: one sheet, to look at. The judge knows squares only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from training.evaluate.pictures import Painter, Recipe
from zimage_ui.generator.profiles import MINI

PROMPTS = (
    "a red circle on a blue background",
    "海上的白色小船",
    "three pink balloons at sunset",
    "雪地里的绿色圣诞树旁边有一座红房子",
    'a green sign that says "OPEN"',
    "夜晚，一只橙色的猫",
)
_GAP = 8


def write_size_sheet(recipe: Recipe, seed: int, path: Path) -> None:
    """Paint `PROMPTS` at each size of the small model's profile and write them to `path` (PNG), a row for a size.

    Raises:
        ModelError: the model cannot be loaded.
        GenerationError: a picture could not be made.
    """
    painter = Painter(recipe)
    try:
        rows = [[painter.paint_size(prompt, seed, size) for prompt in PROMPTS] for size in MINI.sizes]
    finally:
        painter.close()
    # At half of its size each: 320x192 is then still as large as it looks on a phone.
    strips = [np.concatenate([_framed(picture) for picture in row], axis=1) for row in rows]
    width = max(strip.shape[1] for strip in strips)
    filled = [np.pad(strip, ((0, 0), (0, width - strip.shape[1]), (0, 0)), constant_values=255) for strip in strips]
    Image.fromarray(np.concatenate(filled)).save(path, optimize=True)


def _framed(picture: np.ndarray) -> np.ndarray:
    """Half as large, with a white gap to the right and below."""
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    small = np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))
    return np.pad(small, ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
