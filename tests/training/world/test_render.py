"""A scene becomes the same clean picture each time, at every size and in every style."""

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.world.pen import mixed
from training.world.render import render, render_placed
from training.world.scene import Group, Item, Lettering, Pair, Scene, Single
from training.world.vocabulary import COLOURS, PASTEL_COLOURS, SCENERIES, SCENERY_COLOURS, SIZES, THINGS

PICTURE_SIZES = [(256, 256), (320, 192), (192, 320), (384, 384), (512, 512)]
CAR = Scene(Single(Item("car", "red"), "top left"), "blue")
SCENES = [
    CAR,
    Scene(Pair(Item("star", "yellow"), "inside", Item("ring", "black")), "pink", "outline"),
    Scene(Group(Item("cat", "cyan"), 4), "purple", "pastel"),
    Scene(Lettering("sign", "white", "OPEN"), "city"),
    *(Scene(None, scenery) for scenery in SCENERIES),
]


def distance(picture: NDArray[np.uint8], colour: tuple[int, int, int]) -> NDArray[np.int64]:
    furthest: NDArray[np.int64] = np.abs(picture.astype(np.int64) - colour).max(axis=-1)
    return furthest


@pytest.mark.parametrize(("width", "height"), PICTURE_SIZES)
@pytest.mark.parametrize("scene", SCENES[:5])
def test_the_picture_has_the_size_asked_for(scene: Scene, width: int, height: int) -> None:
    picture = render(scene, width, height, 3)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8
    assert picture.flags.writeable  # torch warns about arrays that are not


@pytest.mark.parametrize("scene", SCENES)
def test_the_seed_decides_all_that_is_left_to_chance(scene: Scene) -> None:
    first = render(scene, 128, 128, 11)
    assert np.array_equal(first, render(scene, 128, 128, 11))
    assert not np.array_equal(first, render(scene, 128, 128, 12))


@pytest.mark.parametrize("scene", SCENES)
def test_a_larger_picture_shows_the_same(scene: Scene) -> None:
    small = render(scene, 192, 192, 5).astype(int)
    halved = np.asarray(Image.fromarray(render(scene, 384, 384, 5)).reduce(2)).astype(int)
    assert np.abs(small - halved).mean() < 3


@pytest.mark.parametrize("colour", COLOURS)
def test_the_thing_and_the_background_have_their_colours(colour: str) -> None:
    other = "white" if colour != "white" else "blue"
    picture = render(Scene(Single(Item("circle", colour, "big")), other), 128, 128, 1)
    assert distance(picture[64:65, 64:65], COLOURS[colour]).max() <= 15
    assert distance(picture[:8], COLOURS[other]).max() <= 15


def test_what_is_placed_is_there() -> None:
    picture, placed, glyphs = render_placed(CAR, 320, 192, 2)
    assert glyphs == ()
    (car,) = placed
    assert car.item == Item("car", "red")
    red_y, red_x = np.nonzero(distance(picture, COLOURS["red"]) < 40)
    assert np.mean(red_x) / 320 == pytest.approx(car.x, abs=0.02)
    assert np.mean(red_y) / 192 == pytest.approx(car.y, abs=0.06)
    assert np.ptp(red_x) == pytest.approx(2 * car.radius * 192, abs=6)


def test_letters_are_placed() -> None:
    _, placed, glyphs = render_placed(Scene(Lettering("poster", "red", "CAFE"), "white"), 256, 256, 2)
    assert placed == ()
    assert [glyph.character for glyph in glyphs] == list("CAFE")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("style", ["flat", "outline"])
@pytest.mark.parametrize("position", ["top left", "bottom right"])
def test_no_thing_touches_the_edge_of_the_picture(size: str, style: str, position: str) -> None:
    for seed, thing in enumerate(THINGS):
        picture = render(Scene(Single(Item(thing, "red", size), position), "white", style), 192, 128, seed)
        edge = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
        assert np.ptp(edge, axis=0).max() == 0, thing


@pytest.mark.parametrize(
    ("background", "is_light"), [("white", False), ("black", True), ("day", False), ("night", True)]
)
def test_an_outline_stands_out_from_the_background(background: str, is_light: bool) -> None:
    scene = Scene(Single(Item("circle", "red", "big")), background)
    flat = render(scene, 256, 256, 4).astype(int)
    outlined = render(Scene(scene.subject, background, "outline"), 256, 256, 4).astype(int)
    changed = outlined[64:192, 64:192].reshape(-1, 3)[(flat != outlined).any(axis=-1)[64:192, 64:192].ravel()]
    extreme = changed.min(axis=-1).max() if is_light else changed.max(axis=-1).min()
    assert extreme > 225 if is_light else extreme < 60


@pytest.mark.parametrize("scenery", SCENERIES)
def test_the_outline_style_can_be_seen_on_a_scenery_without_things(scenery: str) -> None:
    flat, outlined = render(Scene(None, scenery), 256, 256, 6), render(Scene(None, scenery, "outline"), 256, 256, 6)
    assert 0.003 < (distance(flat, (0, 0, 0)) != distance(outlined, (0, 0, 0))).mean() < 0.1


@pytest.mark.parametrize("colour", PASTEL_COLOURS)
def test_pastel_is_nearly_half_white(colour: str) -> None:
    other = PASTEL_COLOURS[PASTEL_COLOURS.index(colour) - 4]
    picture = render(Scene(Single(Item("square", colour, "big")), other, "pastel"), 128, 128, 8)
    assert distance(picture[64:65, 64:65], mixed(COLOURS[colour], (255, 255, 255), 0.45)).max() <= 15
    assert distance(picture[:8], mixed(COLOURS[other], (255, 255, 255), 0.45)).max() <= 15


def test_sceneries_differ_from_one_another() -> None:
    pictures = [np.mean([render(Scene(None, name), 64, 64, seed) for seed in range(4)], axis=0) for name in SCENERIES]
    for i, first in enumerate(pictures):
        for second in pictures[:i]:
            assert np.abs(first - second).mean() > 15


@pytest.mark.parametrize("scenery", SCENERIES)
def test_a_thing_can_be_seen_anywhere_in_a_scenery(scenery: str) -> None:
    picture = np.concatenate([render(Scene(None, scenery), 128, 128, seed) for seed in range(4)])
    for colour, rgb in COLOURS.items():
        if colour not in SCENERY_COLOURS[scenery]:
            assert (distance(picture, rgb) < 40).mean() < 0.1, colour


@pytest.mark.parametrize("scenery", SCENERIES)
def test_a_scenery_is_nearly_the_same_each_time(scenery: str) -> None:
    pictures = np.stack([render(Scene(None, scenery), 128, 128, seed) for seed in range(8)]).astype(float)
    assert pictures.std(axis=0).mean() < 5


@pytest.mark.parametrize(("position", "is_on_the_right"), [("centre", True), ("top left", True), ("top right", False)])
def test_the_moon_of_the_night_makes_room_for_things(position: str, is_on_the_right: bool) -> None:
    picture = render(Scene(Single(Item("circle", "red", "big"), position), "night"), 256, 256, 9)
    _, xs = np.nonzero(distance(picture, (232, 230, 212)) < 8)
    assert bool(xs.mean() > 128) is is_on_the_right


def test_white_is_white() -> None:
    for seed in range(20):
        assert render(Scene(Single(Item("circle", "red")), "white"), 64, 64, seed)[:8].min() >= 248
