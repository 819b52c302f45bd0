"""How the plain shapes look: one function each, drawn in the unit circle."""

from __future__ import annotations

import math

from training.world.pen import Pen, arc, curve, mirrored, rounded


def circle(pen: Pen) -> None:
    """A disc."""
    pen.circle(0, 0, 0.96, pen.shades.body)


def square(pen: Pen) -> None:
    """A square with barely rounded corners."""
    pen.box(-0.85, -0.85, 0.85, 0.85, pen.shades.body, 0.05)


def triangle(pen: Pen) -> None:
    """A triangle standing on its base."""
    pen.polygon(rounded([(0, -0.98), (1.02, 0.8), (-1.02, 0.8)], 0.09), pen.shades.body)


def star(pen: Pen) -> None:
    """A star with five points."""
    corners = [
        (length * math.sin(math.radians(angle)), 0.05 - length * math.cos(math.radians(angle)))
        for angle, length in ((36 * i, 0.48 if i % 2 else 1.05) for i in range(10))
    ]
    pen.polygon(rounded(corners, 0.07), pen.shades.body)


def heart(pen: Pen) -> None:
    """A heart."""
    right = curve((0, -0.5), (0.18, -1.02), (0.98, -1.05), (0.98, -0.28), 16)
    right += curve((0.98, -0.28), (0.98, 0.3), (0.3, 0.62), (0, 0.95), 12)
    pen.polygon(mirrored(right), pen.shades.body)


def ring(pen: Pen) -> None:
    """A ring, its hole open."""
    pen.line(arc(0, 0, 0.79, 0.79, 0, 360), 0.34, pen.shades.body)


def diamond(pen: Pen) -> None:
    """A square standing on its corner, a little narrow."""
    pen.polygon(rounded([(0, -1.0), (0.8, 0), (0, 1.0), (-0.8, 0)], 0.08), pen.shades.body)


def cross(pen: Pen) -> None:
    """A plus sign with thick arms."""
    pen.box(-0.31, -0.94, 0.31, 0.94, pen.shades.body, 0.05)
    pen.box(-0.94, -0.31, 0.94, 0.31, pen.shades.body, 0.05)


def hexagon(pen: Pen) -> None:
    """A regular hexagon with a flat top."""
    corners = [(math.cos(math.radians(60 * i)), math.sin(math.radians(60 * i))) for i in range(6)]
    pen.polygon(rounded(corners, 0.05), pen.shades.body)


def arrow(pen: Pen) -> None:
    """A thick arrow that points to the right."""
    corners = [(0.98, 0), (0.2, -0.82), (0.2, -0.36), (-0.95, -0.36), (-0.95, 0.36), (0.2, 0.36), (0.2, 0.82)]
    pen.polygon(rounded(corners, 0.06), pen.shades.body)
