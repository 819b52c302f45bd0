"""Pictures to measure encoders with: from what a model paints to what is hard or easy for a compressor."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]


def painted(side: int, seed: int = 0) -> Pixels:
    """Like a photograph: structure at every scale, falling with frequency, and the grain of a decoder."""
    random = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    cells = 2
    while cells <= min(256, side):
        coarse = random.normal(size=(3, cells, cells)).astype(np.float32) / cells**0.75
        layers = [np.asarray(Image.fromarray(layer).resize((side, side), Image.Resampling.BICUBIC)) for layer in coarse]
        total += np.stack(layers, axis=-1)
        cells *= 2
    total = (total - total.min()) / np.ptp(total) * 255
    return (total + random.normal(scale=1.5, size=total.shape)).clip(0, 255).astype(np.uint8)


def gradient(side: int) -> Pixels:
    """Smooth ramps."""
    ramp = np.linspace(0, 255, side)
    across, down = np.meshgrid(ramp, ramp)
    return np.stack([across, down, (across + down) / 2], axis=-1).astype(np.uint8)


def flat(side: int) -> Pixels:
    """One colour."""
    return np.full((side, side, 3), 77, np.uint8)


def noise(side: int, seed: int = 0) -> Pixels:
    """Nothing to compress."""
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def text(side: int) -> Pixels:
    """Dark letters on white."""
    picture = Image.new("RGB", (side, side), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(18)
    for top in range(0, side, 22):
        pen.text((5, top), "The quick brown fox jumps over the lazy dog 0123456789 " * 3, fill=(20, 20, 60), font=font)
    return np.asarray(picture)


KINDS = {"painted": painted, "text": text, "gradient": gradient, "flat": flat, "noise": noise}
