"""The sceneries behind the things: calm, nearly the same each time, and with nothing that looks like a thing.

What a caption does not tell is fixed: roofs, windows, stars and hills stand where they always stand, and only drift a
little. In few steps a model paints sharply what is certain, and blurs what could be anywhere.

Everything is placed by fractions of width and height, and sized by fractions of the shorter side: a scenery is the same
at every resolution.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from PIL import Image, ImageDraw

from training.world.pen import Path, Rgb, mixed

_JITTER_SIGMA = 1.0
# How far hills slide (radians of their waves), and clouds, suns and horizons drift (fractions of width and height).
_SLIDE, _DRIFT = 0.2, 0.008
_OUTLINE_SHARE = 0.009
_FAINTNESS = 0.4


@dataclass(frozen=True, slots=True)
class Ground:
    """The canvas of a scenery.

    Attributes:
        canvas: the picture.
        draw: draws on it.
        rng: the chance in it, which is small.
        fixed: draws the same numbers for every picture of a scenery.
        taken: what stands in front: centres (fractions of width and height) and radii (fractions of the short side).
        outline: colour of the lines around hills and clouds; None draws none.
        offset: what is added to every colour (the jitter of this picture).
    """

    canvas: Image.Image
    draw: ImageDraw.ImageDraw
    rng: random.Random
    fixed: random.Random
    taken: Sequence[tuple[float, float, float]]
    outline: Rgb | None
    offset: tuple[float, float, float]

    @property
    def short(self) -> int:
        """The shorter side in pixels."""
        return min(self.canvas.size)

    def tone(self, colour: Rgb) -> Rgb:
        """`colour` with the jitter of this picture."""
        red, green, blue = (min(max(round(c + o), 0), 255) for c, o in zip(colour, self.offset, strict=True))
        return red, green, blue

    def drift(self) -> float:
        """A little way, as a fraction of width or height."""
        return self.rng.uniform(-_DRIFT, _DRIFT)

    def is_taken(self, x: float, y: float, radius: float) -> bool:
        """Whether a thing stands in front of that disc."""
        width, height = self.canvas.size
        return any(
            math.hypot((x - other_x) * width, (y - other_y) * height) < (radius + other_radius) * self.short
            for other_x, other_y, other_radius in self.taken
        )

    def sky(self, stops: Sequence[tuple[float, Rgb]]) -> None:
        """A vertical gradient over the whole picture: colours at fractions of its height."""
        width, height = self.canvas.size
        rows = (np.arange(height) + 0.5) / height
        places = [place for place, _ in stops]
        toned = [self.tone(colour) for _, colour in stops]
        column = np.stack([np.interp(rows, places, [colour[i] for colour in toned]) for i in range(3)], axis=-1)
        strip = Image.fromarray(np.rint(column).astype(np.uint8)[:, None, :])
        self.canvas.paste(strip.resize((width, height), Image.Resampling.NEAREST))

    def land(self, ridge: Path, colour: Rgb) -> None:
        """Everything below a ridge (fractions of width and height, left to right)."""
        width, height = self.canvas.size
        line = [(x * width, y * height) for x, y in ridge]
        self.draw.polygon([*line, (width, height), (0, height)], fill=self.tone(colour))
        if self.outline is not None:
            self.draw.line(line, fill=self._line_colour(colour), width=self._outline_px(), joint="curve")

    def disc(self, x: float, y: float, radius: float, colour: Rgb, outlined: bool = True) -> None:
        """A disc; centre in fractions of width and height, radius in fractions of the short side."""
        width, height = self.canvas.size
        around = self._line_colour(colour) if outlined else None
        for extra, fill in ((self._outline_px(), around), (0, self.tone(colour))):
            reach = radius * self.short + extra
            if fill is not None:
                box = (x * width - reach, y * height - reach, x * width + reach, y * height + reach)
                self.draw.ellipse(box, fill=fill)

    def cloud(self, x: float, y: float, size: float, colour: Rgb) -> None:
        """A flat bank of cloud, `size` (fraction of the short side) wide on either side of its centre."""
        width, height = self.canvas.size
        unit = size * self.short
        for extra, fill in ((self._outline_px(), self._line_colour(colour)), (0, self.tone(colour))):
            if fill is None:
                continue
            for left, right, top, bottom in ((-1, 1, -0.18, 0.18), (-0.55, 0.35, -0.42, 0.1), (0.0, 0.7, -0.3, 0.1)):
                box = (
                    x * width + left * unit - extra,
                    y * height + top * unit - extra,
                    x * width + right * unit + extra,
                    y * height + bottom * unit + extra,
                )
                self.draw.rounded_rectangle(box, (bottom - top) * unit / 2 + extra, fill=fill)

    def _line_colour(self, colour: Rgb) -> Rgb | None:
        """The outline of something of that colour: fainter than those of things, which stand in front."""
        return None if self.outline is None else mixed(self.outline, self.tone(colour), _FAINTNESS)

    def _outline_px(self) -> int:
        return max(1, round(_OUTLINE_SHARE * self.short))


def draw_scenery(
    canvas: Image.Image,
    scenery: str,
    rng: random.Random,
    outline: Rgb | None = None,
    taken: Sequence[tuple[float, float, float]] = (),
) -> None:
    """Fills `canvas` with a scenery, behind things that will stand at the places `taken` (see `Ground`).

    Raises:
        KeyError: there is no such scenery.
    """
    offset = (rng.gauss(0, _JITTER_SIGMA), rng.gauss(0, _JITTER_SIGMA), rng.gauss(0, _JITTER_SIGMA))
    ground = Ground(canvas, ImageDraw.Draw(canvas), rng, random.Random(scenery), taken, outline, offset)
    SCENERIES[scenery](ground)


def _hills(ground: Ground, level: float, swing: float, waves: float, phase: float) -> Path:
    """A soft ridge around `level` that swings by `swing` (fractions of the height) in so many waves."""
    phase += ground.rng.uniform(-_SLIDE, _SLIDE)
    xs = [i / 48 for i in range(49)]
    return [
        (
            x,
            level
            - swing
            * (0.7 * math.sin(2 * math.pi * waves * x + phase) + 0.3 * math.sin(4.6 * math.pi * waves * x + 2 * phase)),
        )
        for x in xs
    ]


def _day(ground: Ground) -> None:
    """A blue sky with a few soft clouds."""
    ground.sky(((0.0, (96, 176, 238)), (1.0, (198, 231, 250))))
    for x, y, size in ((0.2, 0.15, 0.17), (0.77, 0.28, 0.15), (0.23, 0.7, 0.14), (0.8, 0.85, 0.18)):
        pale = mixed((170, 212, 244), (255, 255, 255), 0.45 + 0.3 * y)
        ground.cloud(x + ground.drift(), y + ground.drift(), size, pale)


def _sunset(ground: Ground) -> None:
    """A low sun in a sky from purple to yellow, over dusky hills."""
    horizon = 0.765 + ground.drift()
    ground.sky(((0.0, (112, 76, 150)), (0.36, (228, 110, 132)), (0.6, (250, 158, 100)), (horizon, (255, 214, 130))))
    x = 0.66 + ground.drift()
    ground.disc(x, horizon - 0.02, 0.2, (255, 208, 128), outlined=False)
    ground.disc(x, horizon - 0.02, 0.14, (255, 232, 160))
    ground.land(_hills(ground, horizon, 0.03, 1.05, 0.6), (166, 88, 128))
    ground.land(_hills(ground, horizon + 0.09, 0.03, 0.9, 3.4), (118, 66, 118))


def _night(ground: Ground) -> None:
    """A dark blue sky with stars and a pale moon at the top right, or left if a thing is there, over dark hills."""
    rng = ground.fixed
    ground.sky(((0.0, (13, 18, 48)), (0.8, (38, 50, 98)), (1.0, (52, 62, 112))))
    for _ in range(46):
        size, light = rng.uniform(0.0022, 0.0055), rng.uniform(0.4, 0.95)
        ground.disc(rng.random(), rng.random() * 0.8, size, mixed((30, 38, 80), (250, 246, 225), light), outlined=False)
    x, y = 0.88 + ground.drift(), 0.12
    if ground.is_taken(x, y, 0.06) and not ground.is_taken(1 - x, y, 0.06):
        x = 1 - x
    ground.disc(x, y, 0.085, (44, 54, 98), outlined=False)
    ground.disc(x, y, 0.06, (232, 230, 212))
    ground.disc(x - 0.014, y + 0.01, 0.013, (212, 210, 196), outlined=False)
    ground.disc(x + 0.018, y - 0.016, 0.009, (212, 210, 196), outlined=False)
    ground.land(_hills(ground, 0.84, 0.04, 1.05, 1.2), (25, 32, 68))
    ground.land(_hills(ground, 0.92, 0.03, 0.9, 4.0), (16, 21, 48))


def _sea(ground: Ground) -> None:
    """A pale sky over blue water with bands of waves."""
    horizon = 0.43 + ground.drift()
    ground.sky(((0.0, (146, 208, 240)), (horizon, (202, 231, 243))))
    ground.cloud(0.24 + ground.drift(), 0.16 + ground.drift(), 0.16, (208, 234, 247))
    ground.land([(0, horizon), (1, horizon)], (58, 146, 204))
    for i, colour in enumerate(((48, 132, 194), (40, 118, 184), (33, 104, 172))):
        level = horizon + 0.13 + 0.17 * i
        ground.land(_waves(ground, level, 0.007 + 0.003 * i, 9 - 2 * i), colour)


def _waves(ground: Ground, level: float, height: float, count: int) -> Path:
    """The crests of waves: arcs side by side."""
    phase = 0.3 * count + ground.rng.uniform(-_SLIDE, _SLIDE) / 2
    xs = [i / 120 for i in range(121)]
    return [(x, level - height * 2 * abs(math.sin(math.pi * (count * x + phase)))) for x in xs]


def _meadow(ground: Ground) -> None:
    """Green hills under a light sky, with small pale flowers in the grass."""
    rng = ground.fixed
    ground.sky(((0.0, (142, 210, 244)), (0.55, (206, 236, 246))))
    ground.cloud(0.76 + ground.drift(), 0.15 + ground.drift(), 0.15, (216, 240, 248))
    ground.land(_hills(ground, 0.5, 0.04, 1.0, 0.4), (150, 208, 116))
    ground.land(_hills(ground, 0.63, 0.035, 0.9, 2.6), (122, 190, 94))
    ground.land(_hills(ground, 0.79, 0.03, 0.8, 4.6), (98, 172, 78))
    for _ in range(16):
        x, y = rng.random(), rng.uniform(0.84, 0.98)
        ground.disc(x, y, rng.uniform(0.005, 0.008), rng.choice(((246, 250, 226), (240, 236, 160))), outlined=False)


def _snow(ground: Ground) -> None:
    """White hills under a pale sky with snowflakes."""
    rng = ground.fixed
    ground.sky(((0.0, (166, 188, 210)), (0.65, (216, 226, 236))))
    ground.land(_hills(ground, 0.58, 0.045, 1.05, 5.2), (218, 228, 238))
    ground.land(_hills(ground, 0.7, 0.04, 0.9, 1.9), (232, 239, 246))
    ground.land(_hills(ground, 0.83, 0.03, 0.8, 3.9), (246, 249, 252))
    for _ in range(44):
        ground.disc(rng.random(), rng.random() * 0.7, rng.uniform(0.004, 0.009), (250, 252, 254), outlined=False)


def _city(ground: Ground) -> None:
    """Two rows of houses in gray haze, with lit windows, and a street."""
    ground.sky(((0.0, (176, 188, 200)), (0.75, (222, 226, 228))))
    _skyline(ground, 0.42, (184, 192, 202), None)
    _skyline(ground, 0.56, (146, 155, 168), (216, 208, 172))
    ground.land([(0, 0.86), (1, 0.86)], (104, 110, 120))
    start = ground.drift() - 0.05
    for i in range(6):
        x = start + i * 0.2
        ground.draw.polygon(
            _scaled(ground, ((x, 0.925), (x + 0.1, 0.925), (x + 0.1, 0.94), (x, 0.94))),
            fill=ground.tone((168, 172, 178)),
        )


def _skyline(ground: Ground, top: float, colour: Rgb, window: Rgb | None) -> None:
    """A row of flat roofs at heights around `top`; with windows of that colour."""
    rng = ground.fixed
    x, roofs = -rng.uniform(0.02, 0.06), []
    while x < 1:
        right = x + rng.uniform(0.1, 0.17)
        roofs.append((x, right, top + rng.uniform(-0.08, 0.1)))
        x = right
    ground.land([(edge, roof) for left, right, roof in roofs for edge in (left, right)], colour)
    if window is None:
        return
    for left, right, roof in roofs:
        for row in range(int((0.82 - roof) / 0.07)):
            for column in (0.2, 0.6):
                if rng.random() < 0.6:
                    x0, y0 = left + (right - left) * column, roof + 0.03 + 0.07 * row
                    x1, y1 = x0 + (right - left) * 0.22, y0 + 0.032
                    fill = ground.tone(mixed(colour, window, rng.uniform(0.4, 0.8)))
                    ground.draw.polygon(_scaled(ground, ((x0, y0), (x1, y0), (x1, y1), (x0, y1))), fill=fill)


def _scaled(ground: Ground, points: Sequence[tuple[float, float]]) -> Path:
    width, height = ground.canvas.size
    return [(x * width, y * height) for x, y in points]


def _desert(ground: Ground) -> None:
    """Sand dunes and far table mountains under a pale, warm sky."""
    ground.sky(((0.0, (138, 198, 220)), (0.3, (218, 218, 190)), (0.58, (250, 214, 146))))
    ground.land(_mesas(0.5 + ground.drift()), (226, 178, 132))
    ground.land(_hills(ground, 0.6, 0.03, 0.9, 1.0), (238, 202, 138))
    ground.land(_hills(ground, 0.72, 0.035, 0.8, 3.2), (228, 186, 118))
    ground.land(_hills(ground, 0.86, 0.03, 0.75, 5.4), (214, 168, 100))


def _mesas(level: float) -> Path:
    """Two table mountains on a plain."""
    ridge: Path = [(0.0, level + 0.08)]
    for left, top, wide in ((0.09, level - 0.06, 0.16), (0.6, level - 0.02, 0.21)):
        ridge += [(left, level + 0.08), (left + 0.035, top), (left + wide, top), (left + wide + 0.035, level + 0.08)]
    return [*ridge, (1.0, level + 0.08)]


SCENERIES: Mapping[str, Callable[[Ground], None]] = MappingProxyType(
    {
        "day": _day,
        "sunset": _sunset,
        "night": _night,
        "sea": _sea,
        "meadow": _meadow,
        "snow": _snow,
        "city": _city,
        "desert": _desert,
    }
)
