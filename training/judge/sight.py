"""What the judge sees on a picture: the network's maps read as things, letters and a background."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from training.judge.examples import COLOUR_NAMES, LABELS, Layer
from training.judge.network import JudgeNetwork, Output
from training.pixels import to_floats
from training.world.vocabulary import BACKGROUNDS

# Letters stand twice as far from one another, in fractions of the picture.
_GLYPH_DISTANCE = 0.06
# A centre is believed from this probability on.
_BELIEVED = 0.4
# Two centres closer than this share of the larger radius are one thing, if neither stands inside the other.
_SAME_PLACE = 0.5
# How much larger a container is than what stands in it, at the least.
_CONTAINS = 1.5


@dataclass(frozen=True, slots=True)
class SeenThing:
    """A thing; x and y are fractions of width and height, the radius is one of the shorter side."""

    thing: str
    colour: str
    x: float
    y: float
    radius: float
    score: float


@dataclass(frozen=True, slots=True)
class SeenGlyph:
    """A letter or digit and its centre, in fractions of width and height."""

    character: str
    x: float
    y: float
    score: float


@dataclass(frozen=True, slots=True)
class Sight:
    """All that is seen on one picture; the text is read from left to right."""

    things: tuple[SeenThing, ...]
    glyphs: tuple[SeenGlyph, ...]
    background: str

    @property
    def text(self) -> str:
        """The letters as they are read."""
        return "".join(glyph.character for glyph in sorted(self.glyphs, key=lambda glyph: glyph.x))


def look(network: JudgeNetwork, pictures: Sequence[NDArray[np.uint8]], batch: int = 64) -> list[Sight]:
    """What `network` sees on `pictures` (height, width, 3) of one size.

    Args:
        network: the judge's.
        pictures: 8-bit RGB.
        batch: how many at a time.
    """
    device = next(network.parameters()).device
    seen: list[Sight] = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            stacked = torch.from_numpy(np.stack(pictures[start : start + batch])).to(device)
            seen += read_output(network(to_floats(stacked)))
    return seen


def read_output(output: Output) -> list[Sight]:
    """What `output` says of each picture of its batch."""
    peaks = {layer: _peaks(heat.float()) for layer, heat in output.heat.items()}
    backgrounds = output.background.argmax(1).tolist()
    return [
        Sight(
            _distinct(_things(output, peaks, index)),
            _one_a_place(_glyphs(output, peaks[Layer.GLYPH], index)),
            BACKGROUNDS[background],
        )
        for index, background in enumerate(backgrounds)
    ]


@dataclass(frozen=True, slots=True)
class _Peak:
    label: int
    row: int
    column: int
    score: float


def _peaks(heat: Tensor) -> list[list[_Peak]]:
    """The believed local maxima of each picture."""
    scores = heat.sigmoid()
    highest = functional.max_pool2d(scores, 3, 1, 1) == scores
    found: list[list[_Peak]] = [[] for _ in range(len(heat))]
    places = (highest & (scores >= _BELIEVED)).nonzero()
    values = scores[tuple(places.T)].tolist()
    for (picture, label, row, column), score in zip(places.tolist(), values, strict=True):
        found[picture].append(_Peak(label, row, column, score))
    return found


def _things(output: Output, peaks: dict[Layer, list[list[_Peak]]], index: int) -> Iterable[tuple[Layer, SeenThing]]:
    for layer, colours in output.colours.items():
        rows, columns = colours.shape[-2:]
        for peak in peaks[layer][index]:
            colour = int(colours[index, :, peak.row, peak.column].argmax())
            radius = math.exp(float(output.log_radii[layer][index, peak.row, peak.column]))
            yield (
                layer,
                SeenThing(
                    LABELS[layer][peak.label],
                    COLOUR_NAMES[colour],
                    (peak.column + 0.5) / columns,
                    (peak.row + 0.5) / rows,
                    radius,
                    peak.score,
                ),
            )


def _glyphs(output: Output, peaks: list[list[_Peak]], index: int) -> Iterable[SeenGlyph]:
    rows, columns = output.heat[Layer.GLYPH].shape[-2:]
    for peak in peaks[index]:
        yield SeenGlyph(
            LABELS[Layer.GLYPH][peak.label], (peak.column + 0.5) / columns, (peak.row + 0.5) / rows, peak.score
        )


def _distinct(found: Iterable[tuple[Layer, SeenThing]]) -> tuple[SeenThing, ...]:
    """The surest first; of several readings of one thing only the surest."""
    kept: list[tuple[Layer, SeenThing]] = []
    for layer, thing in sorted(found, key=lambda pair: -pair[1].score):
        if not any(_is_same(layer, thing, other_layer, other) for other_layer, other in kept):
            kept.append((layer, thing))
    return tuple(thing for _, thing in kept)


def _is_same(layer: Layer, thing: SeenThing, other_layer: Layer, other: SeenThing) -> bool:
    larger, smaller = max(thing.radius, other.radius), min(thing.radius, other.radius)
    if math.hypot(thing.x - other.x, thing.y - other.y) >= _SAME_PLACE * larger:
        return False
    return layer is other_layer or larger < _CONTAINS * smaller


def _one_a_place(found: Iterable[SeenGlyph]) -> tuple[SeenGlyph, ...]:
    """The surest first; of several readings of one letter only the surest."""
    kept: list[SeenGlyph] = []
    for glyph in sorted(found, key=lambda one: -one.score):
        if all(math.hypot(glyph.x - other.x, glyph.y - other.y) >= _GLYPH_DISTANCE for other in kept):
            kept.append(glyph)
    return tuple(kept)
