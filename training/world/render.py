"""Draws a scene: background, then things or lettering, three times as large as asked and then reduced.

The seed decides everything that is left to chance: where exactly things stand, the details of a scenery, and a little
noise in every colour. The same scene, size and seed give the same picture.
"""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.world.layout import Placed, place
from training.world.lettering import Glyph, draw_lettering
from training.world.pen import Pen, Rgb, Shades, mixed
from training.world.scene import Lettering, Scene
from training.world.sceneries import draw_scenery
from training.world.things import draw_thing
from training.world.vocabulary import COLOURS

_OVERSAMPLING = 3
_JITTER_SIGMA, _WHITE_JITTER_SIGMA = 2.0, 0.7
_PASTEL_WHITE = 0.45
_DARK_OUTLINE, _PALE_OUTLINE = (34, 34, 42), (236, 238, 242)
_DARK_BACKGROUNDS = ("black", "night")


def render(scene: Scene, width: int, height: int, seed: int) -> NDArray[np.uint8]:
    """The picture of a scene, (height, width, 3), sizes in pixels."""
    return render_placed(scene, width, height, seed)[0]


def render_placed(
    scene: Scene, width: int, height: int, seed: int
) -> tuple[NDArray[np.uint8], tuple[Placed, ...], tuple[Glyph, ...]]:
    """The picture of a scene, (height, width, 3), with the things and the letters that stand on it, and where."""
    rng = random.Random(seed)
    placed = place(scene, width, height, rng)
    outline = _outline(scene)
    canvas = Image.new("RGB", (width * _OVERSAMPLING, height * _OVERSAMPLING), _background(scene, rng))
    if scene.is_scenic:
        draw_scenery(canvas, scene.background, rng, outline, [(one.x, one.y, one.radius) for one in placed])
    glyphs: tuple[Glyph, ...] = ()
    if isinstance(scene.subject, Lettering):
        glyphs = draw_lettering(canvas, scene.subject, _tint(scene.subject.colour, scene, rng), outline)
    draw = ImageDraw.Draw(canvas)
    short = min(canvas.size)
    for thing in placed:
        shades = Shades.of(_tint(thing.item.colour, scene, rng))
        pen = Pen(draw, thing.x * canvas.width, thing.y * canvas.height, thing.radius * short, shades)
        draw_thing(thing.item.thing, pen, outline)
    return np.array(canvas.reduce(_OVERSAMPLING)), placed, glyphs


def _outline(scene: Scene) -> Rgb | None:
    if scene.style != "outline":
        return None
    return _PALE_OUTLINE if scene.background in _DARK_BACKGROUNDS else _DARK_OUTLINE


def _background(scene: Scene, rng: random.Random) -> Rgb:
    """The plain colour behind all; a scenery covers it."""
    return (0, 0, 0) if scene.is_scenic else _tint(scene.background, scene, rng)


def _tint(colour: str, scene: Scene, rng: random.Random) -> Rgb:
    """A colour of the vocabulary as it is in this style, with a little noise."""
    rgb = COLOURS[colour]
    if scene.style == "pastel":
        rgb = mixed(rgb, (255, 255, 255), _PASTEL_WHITE)
    sigma = _WHITE_JITTER_SIGMA if rgb == COLOURS["white"] else _JITTER_SIGMA
    red, green, blue = (min(max(round(channel + rng.gauss(0, sigma)), 0), 255) for channel in rgb)
    return red, green, blue
