"""Every thing is itself, of its own colour, and stays in its circle."""

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from training.world.pen import Pen, Shades, luma, mixed
from training.world.things import FIGURES, draw_thing
from training.world.vocabulary import COLOURS, PASTEL_COLOURS, THINGS

SIDE_PX, RADIUS_PX = 240, 90
CIRCLE_PX = np.pi * RADIUS_PX**2
EMPTY, OUTLINE = (255, 0, 255), (1, 2, 3)


def drawn(thing: str, colour: str = "red", outline: tuple[int, int, int] | None = None) -> NDArray[np.uint8]:
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), EMPTY)
    pen = Pen(ImageDraw.Draw(canvas), SIDE_PX / 2, SIDE_PX / 2, RADIUS_PX, Shades.of(COLOURS[colour]))
    draw_thing(thing, pen, outline)
    return np.asarray(canvas)


def where(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (picture == np.array(colour)).all(axis=-1)
    return same


def test_every_thing_of_the_vocabulary_can_be_drawn_and_no_other() -> None:
    assert set(FIGURES) == set(THINGS)
    with pytest.raises(KeyError):
        drawn("unicorn")


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("thing", THINGS)
def test_its_colour_is_most_of_a_thing(thing: str, colour: str) -> None:
    picture = drawn(thing, colour)
    assert where(picture, COLOURS[colour]).sum() >= 0.6 * (~where(picture, EMPTY)).sum()


@pytest.mark.parametrize("outline", [None, OUTLINE])
@pytest.mark.parametrize("thing", THINGS)
def test_a_thing_fills_its_circle_and_does_not_leave_its_square(
    thing: str, outline: tuple[int, int, int] | None
) -> None:
    ink = ~where(drawn(thing, outline=outline), EMPTY)
    reach_px = np.abs(np.argwhere(ink) - (SIDE_PX - 1) / 2).max()
    assert 0.84 * RADIUS_PX <= reach_px <= RADIUS_PX + 1.5
    assert ink.sum() >= 0.38 * CIRCLE_PX


@pytest.mark.parametrize("outline", [None, OUTLINE])
def test_no_two_things_look_alike(outline: tuple[int, int, int] | None) -> None:
    pictures = {thing: drawn(thing, outline=outline) for thing in THINGS}
    for first, second in itertools.combinations(THINGS, 2):
        different = (pictures[first] != pictures[second]).any(axis=-1).sum()
        assert different >= 0.1 * CIRCLE_PX, (first, second)


@pytest.mark.parametrize("thing", THINGS)
def test_an_outline_runs_all_around_a_thing(thing: str) -> None:
    picture = drawn(thing, outline=OUTLINE)
    empty, line = where(picture, EMPTY), where(picture, OUTLINE)
    painted = ~empty & ~line
    beside = np.zeros_like(painted)
    beside[1:] |= painted[:-1]
    beside[:-1] |= painted[1:]
    beside[:, 1:] |= painted[:, :-1]
    beside[:, :-1] |= painted[:, 1:]
    assert line.sum() >= 0.05 * CIRCLE_PX
    assert not (beside & empty).any()


@pytest.mark.parametrize("colour", COLOURS)
def test_details_can_be_told_from_the_body(colour: str) -> None:
    shades = Shades.of(COLOURS[colour])
    for detail in (shades.dark, shades.light, shades.paper):
        assert np.abs(np.subtract(detail, shades.body)).max() >= 30
    assert luma(shades.ink) < luma(shades.paper)


@pytest.mark.parametrize("colour", PASTEL_COLOURS)
def test_a_little_noise_does_not_turn_highlights_into_shadows(colour: str) -> None:
    pastel = mixed(COLOURS[colour], (255, 255, 255), 0.45)
    for noise in (-8, 8):
        body = (min(pastel[0] + noise, 255), min(pastel[1] + noise, 255), min(pastel[2] + noise, 255))
        assert luma(Shades.of(body).light) > luma(body)
