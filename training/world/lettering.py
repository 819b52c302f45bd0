"""Words on signs and posters: heavy capitals, each in its own cell of a regular grid.

The letters are those of Pillow's bundled font (Aileron), made bold by a stroke, so that they are the same on every
machine. Some are changed: I has serifs, zero a slash, and the widest are condensed to the width of a cell.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from training.world.pen import Pen, Rgb, Shades, luma, mixed
from training.world.scene import Lettering

_BOARD_WIDTH = 0.86
_BOARD_HEIGHTS = {"sign": 0.44, "poster": 0.66}
# Fractions of the short side: width and height of a cell, width and cap height of its letter.
_LARGE_CELL, _SMALL_CELL = 0.25, 0.124
_LETTER_WIDTH_SHARE, _CAP_HEIGHT_TO_WIDTH = 0.9, 1.32
_LONGEST_LARGE = 3
_PALE, _DARK = (250, 250, 250), (26, 26, 30)
_PALE_BELOW_LUMA = 150
_STROKE_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Glyph:
    """A letter and where it stands.

    Attributes:
        character: the capital or digit.
        x: its centre, fraction of the picture's width.
        y: its centre, fraction of the picture's height.
        height: of a capital, fraction of the shorter side.
    """

    character: str
    x: float
    y: float
    height: float


def letter_colour(board: Rgb) -> Rgb:
    """White or near-black: what can be read on a board of that colour."""
    return _PALE if luma(board) < _PALE_BELOW_LUMA else _DARK


def place_glyphs(lettering: Lettering, width: int, height: int) -> tuple[Glyph, ...]:
    """Where the letters of a word stand on a picture of that size, in pixels: one row of equal cells, centred."""
    cell = _LARGE_CELL if len(lettering.text) <= _LONGEST_LARGE else _SMALL_CELL
    cap_height = cell * _LETTER_WIDTH_SHARE * _CAP_HEIGHT_TO_WIDTH
    step = cell * min(width, height) / width
    first = 0.5 - step * (len(lettering.text) - 1) / 2
    return tuple(Glyph(character, first + i * step, 0.5, cap_height) for i, character in enumerate(lettering.text))


def draw_lettering(
    canvas: Image.Image, lettering: Lettering, colour: Rgb, outline: Rgb | None = None
) -> tuple[Glyph, ...]:
    """Draws the board in that colour, and the word on it; returns where its letters stand."""
    width, height = canvas.size
    short = min(width, height)
    pen = Pen(ImageDraw.Draw(canvas), width / 2, height / 2, short, Shades.of(colour))
    text_colour = letter_colour(colour)
    draw_board = _draw_sign if lettering.surface == "sign" else _draw_poster
    draw_board(pen, (height / short - 1) / 2 + 0.52, mixed(colour, text_colour, 0.75), outline)
    glyphs = place_glyphs(lettering, width, height)
    for glyph in glyphs:
        mask = glyph_mask(glyph.character, round(glyph.height * short))
        # The tail of a Q hangs below the line on which all letters stand.
        corner = round(glyph.x * width - mask.width / 2), round((glyph.y * height) - glyph.height * short / 2)
        canvas.paste(text_colour, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)
    return glyphs


def _draw_sign(pen: Pen, ground: float, trim: Rgb, outline: Rgb | None) -> None:
    """A board with round corners on two posts that reach down to `ground`."""
    half_width, half_height = _BOARD_WIDTH / 2, _BOARD_HEIGHTS["sign"] / 2
    rim = 0.016
    if outline is not None:
        for x in (-0.27, 0.27):
            pen.box(x - 0.03 - rim, 0, x + 0.03 + rim, ground, outline)
        pen.box(-half_width - rim, -half_height - rim, half_width + rim, half_height + rim, outline, 0.06 + rim)
    for x in (-0.27, 0.27):
        pen.box(x - 0.03, 0, x + 0.03, ground, pen.shades.dark)
    pen.box(-half_width, -half_height, half_width, half_height, pen.shades.body, 0.06)
    for x in (-0.27, 0.27):
        for y in (-half_height + 0.035, half_height - 0.035):
            pen.circle(x, y, 0.012, trim)


def _draw_poster(pen: Pen, _ground: float, trim: Rgb, outline: Rgb | None) -> None:
    """A sheet with sharp corners and a thin frame printed on it."""
    half_width, half_height = _BOARD_WIDTH / 2, _BOARD_HEIGHTS["poster"] / 2
    if outline is not None:
        rim = 0.016
        pen.box(-half_width - rim, -half_height - rim, half_width + rim, half_height + rim, outline)
    pen.box(-half_width, -half_height, half_width, half_height, pen.shades.body)
    inset, line = 0.018, 0.009
    pen.box(-half_width + inset, -half_height + inset, half_width - inset, half_height - inset, trim)
    inset += line
    pen.box(-half_width + inset, -half_height + inset, half_width - inset, half_height - inset, pen.shades.body)


@functools.lru_cache(maxsize=512)
def glyph_mask(character: str, cap_height: int) -> Image.Image:
    """A heavy capital or digit of that height in pixels as a mask, cropped to its ink and at most a letter wide."""
    stroke = max(1, round(cap_height * _STROKE_SHARE))
    if character == "I":
        return _serifed_bar(_ink_of("I", cap_height, stroke).width, cap_height)
    mask = _ink_of(character, cap_height, stroke)
    if character == "0":
        _slash(mask, 2.2 * stroke)
    height = mask.height if character == "Q" else cap_height
    return mask.resize((min(mask.width, round(cap_height / _CAP_HEIGHT_TO_WIDTH)), height), Image.Resampling.BOX)


def _ink_of(character: str, cap_height: int, stroke: int) -> Image.Image:
    """A character of the bundled font, made bold, as a mask cropped to its ink."""
    font = _font(round((cap_height - 2 * stroke) / _cap_height_of_font()))
    mask = Image.new("L", (3 * cap_height, 3 * cap_height))
    ImageDraw.Draw(mask).text((cap_height, cap_height), character, fill=255, font=font, stroke_width=stroke)
    return mask.crop(mask.getbbox())


def _slash(mask: Image.Image, thickness: float) -> None:
    """Puts a stroke through a zero."""
    width, height = mask.size
    line = (width * 0.32, height * 0.7, width * 0.68, height * 0.3)
    ImageDraw.Draw(mask).line(line, fill=255, width=round(thickness))


def _serifed_bar(stem: int, height: int) -> Image.Image:
    """A capital I with bars above and below, so that nobody takes it for a one."""
    width, bar = round(height * 0.5), round(stem * 0.85)
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    left = (width - stem) // 2
    draw.rectangle((left, 0, left + stem - 1, height), fill=255)
    draw.rectangle((0, 0, width, bar - 1), fill=255)
    draw.rectangle((0, height - bar, width, height), fill=255)
    return mask


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType: install a Pillow wheel from PyPI")
    return font


@functools.lru_cache(maxsize=1)
def _cap_height_of_font() -> float:
    """Cap height as a fraction of the font's size."""
    _, top, _, bottom = _font(1000).getbbox("H")
    return (bottom - top) / 1000
