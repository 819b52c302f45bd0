"""Where everything in a scene goes: centres and radii, with a little chance in them.

Centres are fractions of width and height, radii fractions of the shorter side, so that one layout fits every size.
Nothing reaches beyond the picture.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from training.world.scene import Group, Item, Pair, Scene, Single

_SINGLE_RADII = {"small": 0.115, "medium": 0.19, "big": 0.29}
_PAIR_RADII = {"small": 0.095, "medium": 0.15, "big": 0.2}
_GROUP_RADII = {"small": 0.075, "medium": 0.105, "big": 0.135}
_INSIDE_RADII = (0.105, 0.33)

_NEAR, _FAR = 0.24, 0.76
_COLUMNS = {"left": _NEAR, "right": _FAR}
_ROWS = {"top": _NEAR, "bottom": _FAR}
# First and second item of each relation; "next to" stands like the first, so that it has one meaning.
_PAIRS = {
    "left of": ((0.27, 0.5), (0.73, 0.5)),
    "right of": ((0.73, 0.5), (0.27, 0.5)),
    "next to": ((0.27, 0.5), (0.73, 0.5)),
    "above": ((0.5, 0.27), (0.5, 0.73)),
    "below": ((0.5, 0.73), (0.5, 0.27)),
    "inside": ((0.5, 0.5), (0.5, 0.5)),
}
_GROUPS = {
    2: ((0.29, 0.5), (0.71, 0.5)),
    3: ((0.5, 0.28), (0.27, 0.7), (0.73, 0.7)),
    4: ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72)),
}
_MARGIN = 0.02
_CENTRE_SPREAD, _RADIUS_SPREAD = 0.012, 0.05


@dataclass(frozen=True, slots=True)
class Placed:
    """An item and where it is: centre as fractions of width and height, radius as a fraction of the shorter side."""

    item: Item
    x: float
    y: float
    radius: float


def place(scene: Scene, width: int, height: int, rng: random.Random) -> tuple[Placed, ...]:
    """The items of `scene` on a picture of that size, those behind first; lettering places itself and is not here."""
    return tuple(_settle(placed, width, height, rng) for placed in _plan(scene))


def _plan(scene: Scene) -> Iterable[Placed]:
    match scene.subject:
        case Single(item, position):
            yield Placed(item, *_point(position), _SINGLE_RADII[item.size])
        case Group(item, count):
            for x, y in _GROUPS[count]:
                yield Placed(item, x, y, _GROUP_RADII[item.size])
        case Pair(first, relation, second):
            ahead, behind = _PAIRS[relation]
            inside = relation == "inside"
            radii = _INSIDE_RADII if inside else (_PAIR_RADII[first.size], _PAIR_RADII[second.size])
            yield Placed(second, *behind, radii[1])
            yield Placed(first, *ahead, radii[0])


def _point(position: str) -> tuple[float, float]:
    words = position.split()
    return (
        next((_COLUMNS[word] for word in words if word in _COLUMNS), 0.5),
        next((_ROWS[word] for word in words if word in _ROWS), 0.5),
    )


def _settle(placed: Placed, width: int, height: int, rng: random.Random) -> Placed:
    """`placed`, moved and resized by chance, and kept whole within the picture."""
    short = min(width, height)
    radius = placed.radius * (1 + rng.uniform(-_RADIUS_SPREAD, _RADIUS_SPREAD))
    room_x, room_y = (radius + _MARGIN) * short / width, (radius + _MARGIN) * short / height
    return Placed(
        placed.item,
        min(max(placed.x + rng.gauss(0, _CENTRE_SPREAD), room_x), 1 - room_x),
        min(max(placed.y + rng.gauss(0, _CENTRE_SPREAD), room_y), 1 - room_y),
        radius,
    )
