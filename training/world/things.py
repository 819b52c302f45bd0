"""Which function draws which thing, and how a thing gets onto the canvas, with or without an outline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from training.world import things_nature as nature
from training.world import things_objects as objects
from training.world import things_shapes as shapes
from training.world.pen import Pen, Rgb

_OUTLINE_SHARE = 0.09

FIGURES: Mapping[str, Callable[[Pen], None]] = MappingProxyType(
    {
        "circle": shapes.circle,
        "square": shapes.square,
        "triangle": shapes.triangle,
        "star": shapes.star,
        "heart": shapes.heart,
        "ring": shapes.ring,
        "diamond": shapes.diamond,
        "cross": shapes.cross,
        "hexagon": shapes.hexagon,
        "arrow": shapes.arrow,
        "sun": nature.sun,
        "moon": nature.moon,
        "cloud": nature.cloud,
        "tree": nature.tree,
        "house": objects.house,
        "car": objects.car,
        "boat": objects.boat,
        "fish": nature.fish,
        "bird": nature.bird,
        "cat": nature.cat,
        "flower": nature.flower,
        "apple": nature.apple,
        "balloon": objects.balloon,
        "umbrella": objects.umbrella,
        "cup": objects.cup,
        "mountain": nature.mountain,
        "mushroom": nature.mushroom,
        "rocket": objects.rocket,
        "butterfly": nature.butterfly,
        "hat": objects.hat,
        "leaf": nature.leaf,
        "drop": nature.drop,
        "bell": objects.bell,
        "book": objects.book,
        "kite": objects.kite,
        "crown": objects.crown,
    }
)


def draw_thing(thing: str, pen: Pen, outline: Rgb | None = None) -> None:
    """Draws `thing` with `pen`; with an `outline` of that colour it shrinks a little, so that both stay in its circle.

    Raises:
        KeyError: there is no such thing.
    """
    figure = FIGURES[thing]
    if outline is not None:
        width = _OUTLINE_SHARE * pen.radius
        pen = replace(pen, radius=pen.radius - width)
        figure(replace(pen, fat=width, only=outline))
    figure(pen)
