"""Rendering in the background: processes that draw pictures and say them, as fast as the cores allow, for ever.

Chunks come in a fixed order and each is decided by its number, so that the same farm gives the same pictures however
many processes it has. Nothing here imports torch: the processes stay small.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.chunks import ChunkProcesses
from training.world.captions import Language, training_caption
from training.world.render import render
from training.world.scene import draw_training_scene

# Width and height of a picture.
Size = tuple[int, int]
# Each picture is said twice in each language.
SAID_IN: tuple[Language, ...] = ("en", "zh", "en", "zh")
MAX_TOKENS = 64


def _usual_shares() -> dict[Size, float]:
    # Larger pictures take longer to draw and to learn from.
    return {(256, 256): 0.58, (320, 192): 0.09, (192, 320): 0.09, (384, 384): 0.13, (512, 512): 0.11}


@dataclass(frozen=True, slots=True)
class Assortment:
    """What a farm makes.

    Attributes:
        shares: how often a chunk has this size.
        pictures: in a chunk.
    """

    shares: dict[Size, float] = field(default_factory=_usual_shares)
    pictures: int = 64

    @property
    def main_size(self) -> Size:
        """The most frequent size."""
        return max(self.shares, key=self.shares.__getitem__)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Pictures of one size with their captions.

    Attributes:
        pictures: (pictures, height, width, 3), 8-bit RGB.
        ids: (pictures, captions, MAX_TOKENS), padded at the right with 0.
        lengths: (pictures, captions), in tokens.
    """

    pictures: NDArray[np.uint8]
    ids: NDArray[np.int16]
    lengths: NDArray[np.int16]


class CaptionTokenizer:
    """The model's tokenizer: ids of a caption within the chat template's frame.

    transformers is needed to make it, and not where it goes to be used.

    Args:
        folder: of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer

        mark = "\uffff"
        template = AutoTokenizer.from_pretrained(folder)
        text = template.apply_chat_template(
            [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        self._before, self._after = text.split(mark)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, text: str) -> list[int]:
        """The ids of `text`."""
        return self._tokenizer.encode(f"{self._before}{text}{self._after}").ids


class Farm(ChunkProcesses[Chunk]):
    """Processes that render chunk after chunk, within its `with` block.

    Args:
        tokenizer: for the captions.
        processes: how many.
        assortment: what they make.
    """

    def __init__(self, tokenizer: CaptionTokenizer, processes: int, assortment: Assortment) -> None:
        super().__init__(_make_chunk_here, processes, _prepare, (tokenizer, assortment))


class _Process:
    """What a rendering process keeps."""

    tokenizer: CaptionTokenizer
    assortment: Assortment


def _prepare(tokenizer: CaptionTokenizer, assortment: Assortment) -> None:
    _Process.tokenizer, _Process.assortment = tokenizer, assortment


def _make_chunk_here(number: int) -> Chunk:
    return make_chunk(number, _Process.tokenizer, _Process.assortment)


def make_chunk(number: int, tokenizer: CaptionTokenizer, assortment: Assortment) -> Chunk:
    """The chunk of that number."""
    rng = random.Random(f"chunk {number}")
    width, height = rng.choices(list(assortment.shares), list(assortment.shares.values()))[0]
    pictures = np.empty((assortment.pictures, height, width, 3), np.uint8)
    ids = np.zeros((assortment.pictures, len(SAID_IN), MAX_TOKENS), np.int16)
    lengths = np.zeros((assortment.pictures, len(SAID_IN)), np.int16)
    for index in range(assortment.pictures):
        scene = draw_training_scene(rng)
        pictures[index] = render(scene, width, height, rng.getrandbits(32))
        for which, language in enumerate(SAID_IN):
            tokens = tokenizer(training_caption(scene, language, rng))[:MAX_TOKENS]
            ids[index, which, : len(tokens)] = tokens
            lengths[index, which] = len(tokens)
    return Chunk(pictures, ids, lengths)
