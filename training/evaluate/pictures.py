"""Makes the pictures of cases with the product's own generator, in one process or, to keep a GPU busy, in several.

A small model leaves a GPU waiting for Python most of the time; several processes share it, and every picture comes out
as it does alone.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zimage_ui.generator.base import ModelInfo, WarmupProgress
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest

if TYPE_CHECKING:
    from training.evaluate.cases import Case

Picture = NDArray[np.uint8]
_EMBEDDING_CACHE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """How every picture is made.

    Attributes:
        model: folder of it.
        steps: of the sampler.
        side: of the picture, in pixels.
        seen_side: of what becomes of it, in pixels.
    """

    model: str
    steps: int
    side: int
    seen_side: int


class Painter:
    """A loaded generator that makes the pictures of cases, (seen_side, seen_side, 3) in 8-bit RGB."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._generator = ZImageGenerator(recipe.model, embedding_cache_bytes=_EMBEDDING_CACHE_BYTES)
        self.info: ModelInfo = self._generator.load(_hear_nothing)

    def paint(self, case: Case) -> Picture:
        """The picture of `case`."""
        side = self._recipe.side
        return resized(self.paint_size(case.prompt, case.seed, (side, side)), self._recipe.seen_side)

    def paint_size(self, prompt: str, seed: int, size: tuple[int, int]) -> Picture:
        """The picture of `prompt` in `size` (width, height), as it is."""
        width, height = size
        request = GenerationRequest(
            prompt=prompt,
            seed=seed,
            width=width,
            height=height,
            num_inference_steps=self._recipe.steps,
            guidance_scale=0.0,
            preview=False,
        )
        image = self._generator.generate(request).images[0]
        return np.frombuffer(image.pixels, np.uint8).reshape(image.height, image.width, 3)

    def close(self) -> None:
        """Release the device."""
        self._generator.close()


def resized(picture: Picture, side: int) -> Picture:
    """`picture` with sides of `side` pixels; the very same one if it has them."""
    if picture.shape[:2] == (side, side):
        return picture
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _hear_nothing(progress: WarmupProgress) -> None:
    """Loading the small model takes a second: nobody waits for its progress."""


def paint_all(
    recipe: Recipe, cases: Sequence[Case], workers: int, report: Callable[[str], None]
) -> tuple[list[Picture], ModelInfo]:
    """The pictures of `cases` in their order, and what made them.

    Args:
        recipe: how.
        cases: what.
        workers: processes that share the device; 1 is this process alone.
        report: hears how far it is.

    Raises:
        ModelError: the model cannot be loaded.
        GenerationError: a picture could not be made.
    """
    painter = Painter(recipe)
    try:
        made = map(painter.paint, cases) if workers <= 1 else _paint_with(workers, recipe, cases)
        pictures: list[Picture] = []
        for picture in made:
            pictures.append(picture)
            if len(pictures) % 100 == 0 or len(pictures) == len(cases):
                report(f"{len(pictures)} of {len(cases)} pictures")
        return pictures, painter.info
    finally:
        painter.close()


class _Process:
    """What a painting process keeps."""

    painter: Painter


def _paint_with(workers: int, recipe: Recipe, cases: Sequence[Case]) -> Iterator[Picture]:
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_prepare, initargs=(recipe,)
    ) as pool:
        yield from pool.map(_paint_here, cases, chunksize=4)


def _prepare(recipe: Recipe) -> None:
    import torch

    torch.set_num_threads(1)
    _Process.painter = Painter(recipe)


def _paint_here(case: Case) -> Picture:
    return _Process.painter.paint(case)
