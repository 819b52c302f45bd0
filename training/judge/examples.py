"""What the judge learns from: renders with what stands where, drawn without end by processes in the background.

No torch here: the processes stay small. Every chunk is decided by its name and number.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from training.chunks import ChunkProcesses
from training.world.layout import Placed
from training.world.lettering import Glyph
from training.world.render import render_placed
from training.world.scene import Pair, Scene, draw_scene
from training.world.vocabulary import BACKGROUNDS, COLOURS, CONTAINERS, GLYPHS, THINGS

CHUNK = 32
MAX_OBJECTS = 8
COLOUR_NAMES = tuple(COLOURS)


class Layer(IntEnum):
    """The maps that an object can be on.

    A thing and what it stands in share a centre, so that the one around has a map of its own.
    """

    NONE = -1
    THING = 0
    CONTAINER = 1
    GLYPH = 2


LABELS = {Layer.THING: THINGS, Layer.CONTAINER: CONTAINERS, Layer.GLYPH: tuple(GLYPHS)}


class Column(IntEnum):
    """The columns of an object's row; x and y are fractions of width and height, the radius of the shorter side."""

    LAYER = 0
    LABEL = 1
    COLOUR = 2
    X = 3
    Y = 4
    RADIUS = 5


@dataclass(frozen=True, slots=True)
class Examples:
    """Renders of one size.

    Attributes:
        pictures: (pictures, height, width, 3), 8-bit RGB.
        objects: (pictures, MAX_OBJECTS, columns); unused rows have the layer NONE.
        backgrounds: (pictures,), their places in BACKGROUNDS.
        scenes: what is on them.
    """

    pictures: NDArray[np.uint8]
    objects: NDArray[np.float32]
    backgrounds: NDArray[np.int64]
    scenes: tuple[Scene, ...]


def render_examples(name: str, number: int, side: int, count: int = CHUNK) -> Examples:
    """Chunk `number` of the stream `name`: `count` random scenes of all combinations, `side` pixels square."""
    rng = random.Random(f"judge {name} {number}")
    return examples_of([draw_scene(rng, lambda scene: True) for _ in range(count)], side, rng)


def examples_of(scenes: Iterable[Scene], side: int, rng: random.Random) -> Examples:
    """`scenes` rendered, each from a seed of `rng`."""
    kept = tuple(scenes)
    pictures = np.empty((len(kept), side, side, 3), np.uint8)
    objects = np.empty((len(kept), MAX_OBJECTS, len(Column)), np.float32)
    for index, scene in enumerate(kept):
        pictures[index], placed, glyphs = render_placed(scene, side, side, rng.getrandbits(32))
        objects[index] = object_rows(scene, placed, glyphs)
    backgrounds = np.array([BACKGROUNDS.index(scene.background) for scene in kept], np.int64)
    return Examples(pictures, objects, backgrounds, kept)


def object_rows(scene: Scene, placed: Iterable[Placed], glyphs: Iterable[Glyph]) -> NDArray[np.float32]:
    """What stands on a picture, (MAX_OBJECTS, columns)."""
    container = scene.subject.second if isinstance(scene.subject, Pair) and scene.subject.relation == "inside" else None
    rows: list[tuple[float, ...]] = []
    for one in placed:
        layer = Layer.CONTAINER if one.item == container else Layer.THING
        label, colour = LABELS[layer].index(one.item.thing), COLOUR_NAMES.index(one.item.colour)
        rows.append((layer, label, colour, one.x, one.y, one.radius))
    rows += [(Layer.GLYPH, GLYPHS.index(one.character), 0, one.x, one.y, one.height / 2) for one in glyphs]
    table = np.full((MAX_OBJECTS, len(Column)), Layer.NONE, np.float32)
    table[: len(rows)] = rows or table[:0]
    return table


class ExampleStream(ChunkProcesses[Examples]):
    """Processes that render chunk after chunk, within its `with` block.

    Args:
        name: of the stream; two names share no picture.
        side: of the pictures, in pixels.
        processes: how many.
    """

    def __init__(self, name: str, side: int, processes: int) -> None:
        super().__init__(partial(render_examples, name, side=side), processes)
