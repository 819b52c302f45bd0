"""Drawing in the unit circle of a thing: filled shapes and strokes, and the same shapes made fatter for an outline.

Coordinates are units: the thing's centre is (0, 0), y points down, and everything lies in the square from -1 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from PIL import ImageDraw

Rgb: TypeAlias = tuple[int, int, int]
Point: TypeAlias = tuple[float, float]
Path: TypeAlias = list[Point]

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_INK, _PALE_INK = (50, 52, 60), (128, 132, 140)
_PAPER, _GLASS = (238, 243, 246), (176, 200, 218)
_DARK_LUMA, _LIGHT_LUMA = 60, 238


def mixed(colour: Rgb, other: Rgb, share: float) -> Rgb:
    """`colour` with `share` (0 to 1) of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def luma(colour: Rgb) -> float:
    """How light a colour is, 0 to 255 (weights of ITU-R BT.601)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


@dataclass(frozen=True, slots=True)
class Shades:
    """The colours of one thing.

    Attributes:
        body: its own colour.
        dark: a darker shade of it for parts and details; lighter where the body is nearly black.
        light: a lighter shade of it for highlights; darker where the body is nearly white.
        ink: eyes and other small dark marks.
        paper: windows, pages and other small pale parts.
    """

    body: Rgb
    dark: Rgb
    light: Rgb
    ink: Rgb
    paper: Rgb

    @classmethod
    def of(cls, body: Rgb) -> Shades:
        """The shades that go with `body`."""
        if luma(body) < _DARK_LUMA:
            return cls(body, mixed(body, _WHITE, 0.3), mixed(body, _WHITE, 0.42), _PALE_INK, _PAPER)
        if luma(body) > _LIGHT_LUMA:
            return cls(body, mixed(body, (96, 112, 132), 0.5), mixed(body, (120, 150, 180), 0.28), _INK, _GLASS)
        return cls(body, mixed(body, _BLACK, 0.34), mixed(body, _WHITE, 0.48), _INK, _PAPER)


@dataclass(frozen=True, slots=True)
class Pen:
    """Draws a thing of radius `radius` around (`x`, `y`), all in pixels of the canvas.

    Attributes:
        draw: the canvas.
        x: centre, pixels.
        y: centre, pixels.
        radius: pixels of one unit.
        shades: the thing's colours.
        fat: pixels by which each shape grows, 0 for none.
        only: the one colour to draw with, whatever is asked for; None draws as asked.
    """

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    shades: Shades
    fat: float = 0.0
    only: Rgb | None = None

    def polygon(self, points: Sequence[Point], colour: Rgb) -> None:
        """A filled polygon."""
        pixels = self._pixels(points)
        self.draw.polygon(pixels, fill=self.only or colour)
        if self.fat:
            self._stroke([*pixels, pixels[0]], self.fat, self.only or colour)

    def ellipse(self, x: float, y: float, width: float, height: float, colour: Rgb) -> None:
        """A filled ellipse around (x, y) with these half axes."""
        centre_x, centre_y = self.x + x * self.radius, self.y + y * self.radius
        half_x, half_y = width * self.radius + self.fat, height * self.radius + self.fat
        box = (centre_x - half_x, centre_y - half_y, centre_x + half_x, centre_y + half_y)
        self.draw.ellipse(box, fill=self.only or colour)

    def circle(self, x: float, y: float, radius: float, colour: Rgb) -> None:
        """A filled circle."""
        self.ellipse(x, y, radius, radius, colour)

    def line(self, points: Sequence[Point], width: float, colour: Rgb) -> None:
        """A stroke of that width with round ends."""
        pixels = self._pixels(points)
        self._stroke(pixels, width * self.radius / 2 + self.fat, self.only or colour)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Rgb, corner: float = 0.0) -> None:
        """A filled rectangle, its corners rounded with radius `corner`."""
        x0, y0 = self.x + left * self.radius - self.fat, self.y + top * self.radius - self.fat
        x1, y1 = self.x + right * self.radius + self.fat, self.y + bottom * self.radius + self.fat
        rounding = corner * self.radius + self.fat
        if rounding:
            self.draw.rounded_rectangle((x0, y0, x1, y1), rounding, fill=self.only or colour)
        else:
            self.draw.rectangle((x0, y0, x1, y1), fill=self.only or colour)

    def _stroke(self, pixels: Path, half: float, colour: Rgb) -> None:
        """A line `2 * half` pixels wide with a disc at each point: Pillow's own joints leave notches."""
        self.draw.line(pixels, fill=colour, width=max(1, round(2 * half)))
        reach = max(half - 0.5, 0.0)  # Pillow's ellipses include the far edge of their box
        for x, y in pixels:
            self.draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _pixels(self, points: Sequence[Point]) -> Path:
        return [(self.x + x * self.radius, self.y + y * self.radius) for x, y in points]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Path:
    """Points on the ellipse around (x, y) with these half axes, from angle `start` to `end` (degrees, clockwise)."""
    count = max(3, round(abs(end - start) / 6))
    angles = (math.radians(start + (end - start) * i / count) for i in range(count + 1))
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


def curve(start: Point, pull_start: Point, pull_end: Point, end: Point, count: int = 12) -> Path:
    """Points on a cubic Bézier curve."""
    path = []
    for i in range(count + 1):
        t = i / count
        weights = ((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3)
        points = (start, pull_start, pull_end, end)
        path.append(
            (
                sum(w * p[0] for w, p in zip(weights, points, strict=True)),
                sum(w * p[1] for w, p in zip(weights, points, strict=True)),
            )
        )
    return path


def rounded(points: Sequence[Point], radius: float) -> Path:
    """A closed polygon with its corners cut round: each by a curve that begins and ends `radius` before it."""
    path: Path = []
    for i, corner in enumerate(points):
        before, after = points[i - 1], points[(i + 1) % len(points)]
        begin, end = _towards(corner, before, radius), _towards(corner, after, radius)
        path += curve(begin, _between(begin, corner), _between(end, corner), end, 6)
    return path


def mirrored(path: Sequence[Point]) -> Path:
    """The right half of a symmetric outline (top to bottom), closed by its reflection."""
    return [*path, *((-x, y) for x, y in reversed(path))]


def turned(path: Sequence[Point], degrees: float) -> Path:
    """The points turned clockwise around (0, 0)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return [(x * cos - y * sin, x * sin + y * cos) for x, y in path]


def _towards(start: Point, end: Point, distance: float) -> Point:
    length = math.dist(start, end)
    share = min(distance / length, 0.5) if length else 0.0
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _between(start: Point, end: Point) -> Point:
    """Two thirds of the way: the pull of a cubic curve that equals a quadratic one."""
    return start[0] + (end[0] - start[0]) * 2 / 3, start[1] + (end[1] - start[1]) * 2 / 3
