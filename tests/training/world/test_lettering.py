"""Letters stand in a regular grid, fit their cells and can be told apart."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.world.lettering import draw_lettering, glyph_mask, letter_colour, place_glyphs
from training.world.pen import luma
from training.world.render import render_placed
from training.world.scene import Lettering, Scene
from training.world.vocabulary import COLOURS, GLYPHS, SURFACES

CAP_HEIGHT_PX = 90
SIZES = [(256, 256), (320, 192), (192, 320), (384, 384), (512, 512)]


def mask(character: str) -> NDArray[np.float32]:
    """The letter in the middle of a cell, 0 to 1."""
    cell = Image.new("L", (100, 130))
    letter = glyph_mask(character, CAP_HEIGHT_PX)
    cell.paste(letter, ((100 - letter.width) // 2, 20))
    return np.asarray(cell, np.float32) / 255


def test_every_two_characters_differ() -> None:
    masks = {character: mask(character) for character in GLYPHS}
    for first, second in itertools.combinations(GLYPHS, 2):
        different = np.abs(masks[first] - masks[second]).sum()
        assert different >= 0.1 * min(masks[first].sum(), masks[second].sum()), (first, second)


@pytest.mark.parametrize(("first", "second"), [("0", "O"), ("1", "I")])
def test_zero_and_one_are_not_taken_for_letters(first: str, second: str) -> None:
    assert np.abs(mask(first) - mask(second)).sum() >= 0.25 * mask(second).sum()


@pytest.mark.parametrize("character", GLYPHS)
def test_a_letter_is_heavy_and_fits_its_cell(character: str) -> None:
    letter = glyph_mask(character, CAP_HEIGHT_PX)
    assert letter.width <= CAP_HEIGHT_PX / 1.3
    assert CAP_HEIGHT_PX <= letter.height <= CAP_HEIGHT_PX * (1.25 if character == "Q" else 1)
    assert np.asarray(letter).mean() >= 0.35 * 255


def test_there_are_two_sizes_of_letters() -> None:
    heights = [place_glyphs(Lettering("sign", "red", "ABCDEF"[:n]), 256, 256)[0].height for n in range(1, 7)]
    assert heights[0] == heights[1] == heights[2] > heights[3] == heights[4] == heights[5]
    assert 27 <= heights[5] * 256 / 1.32 <= 31


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_grid_is_regular_and_centred(width: int, height: int) -> None:
    glyphs = place_glyphs(Lettering("sign", "red", "GARDEN"), width, height)
    assert "".join(glyph.character for glyph in glyphs) == "GARDEN"
    assert np.ptp(np.diff([glyph.x for glyph in glyphs])) < 1e-9
    assert np.mean([glyph.x for glyph in glyphs]) == pytest.approx(0.5)
    assert {glyph.y for glyph in glyphs} == {0.5}


@pytest.mark.parametrize("surface", SURFACES)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_letters_are_where_the_glyphs_say(surface: str, width: int, height: int) -> None:
    lettering = Lettering(surface, "blue", "WHEN")
    with_word, bare = Image.new("RGB", (width, height)), Image.new("RGB", (width, height))
    glyphs = draw_lettering(with_word, lettering, COLOURS["blue"])
    draw_lettering(bare, Lettering(surface, "blue", ""), COLOURS["blue"])
    ink = (np.asarray(with_word) != np.asarray(bare)).any(axis=-1)
    for glyph in glyphs:
        half_x, half_y = glyph.height / 2 * min(width, height) / 1.32 + 1, glyph.height / 2 * min(width, height) + 1
        left, right = round(glyph.x * width - half_x), round(glyph.x * width + half_x)
        top, bottom = round(glyph.y * height - half_y), round(glyph.y * height + half_y)
        assert ink[top:bottom, left:right].mean() > 0.3
        ink[top:bottom, left:right] = False
    assert not ink.any()


@pytest.mark.parametrize("colour", COLOURS)
def test_the_word_contrasts_with_its_board(colour: str) -> None:
    board = COLOURS[colour]
    assert abs(luma(letter_colour(board)) - luma(board)) >= 85


@pytest.mark.parametrize("surface", SURFACES)
def test_without_a_text_there_is_the_board_alone(surface: str) -> None:
    empty = Scene(Lettering(surface, "red", ""), "white")
    picture, placed, glyphs = render_placed(empty, 256, 256, 1)
    written = render_placed(replace(empty, subject=Lettering(surface, "red", "A")), 256, 256, 1)[0]
    assert (placed, glyphs) == ((), ())
    colours = {tuple(picture[row, column]) for row in range(100, 156, 5) for column in range(100, 156, 5)}
    assert len(colours) == 1
    assert (picture != written).any(axis=-1).mean() > 0.02


def test_a_sign_has_posts_and_a_poster_has_none() -> None:
    def below(surface: str) -> NDArray[np.uint8]:
        canvas = Image.new("RGB", (256, 256))
        draw_lettering(canvas, Lettering(surface, "red", "A"), COLOURS["red"])
        return np.asarray(canvas)[-8:]

    assert below("sign").any()
    assert not below("poster").any()
