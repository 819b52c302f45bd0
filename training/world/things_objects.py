"""How the things of the house, the street and the sea look: one function each, drawn in the unit circle."""

from __future__ import annotations

from training.world.pen import Pen, arc, curve, mirrored, rounded


def house(pen: Pen) -> None:
    """A house with a roof, a door, two windows and a chimney."""
    shades = pen.shades
    pen.box(0.42, -0.86, 0.64, -0.3, shades.dark)
    pen.box(-0.74, -0.2, 0.74, 0.92, shades.body, 0.03)
    pen.box(-0.74, -0.2, 0.74, 0.04, shades.dark)
    pen.polygon(rounded([(0, -0.96), (1.0, -0.08), (-1.0, -0.08)], 0.08), shades.body)
    pen.box(-0.18, 0.36, 0.18, 0.92, shades.dark)
    for x in (-0.48, 0.48):
        pen.box(x - 0.15, 0.24, x + 0.15, 0.54, shades.paper)


def car(pen: Pen) -> None:
    """A car from the side, facing right."""
    shades = pen.shades
    cabin = rounded([(-0.64, -0.02), (-0.42, -0.56), (0.3, -0.56), (0.6, -0.02)], 0.13)
    pen.polygon(cabin, shades.body)
    pen.box(-0.98, -0.12, 0.98, 0.44, shades.body, 0.17)
    pen.polygon([(-0.44, -0.08), (-0.32, -0.4), (-0.08, -0.4), (-0.08, -0.08)], shades.paper)
    pen.polygon([(0.04, -0.08), (0.04, -0.4), (0.24, -0.4), (0.42, -0.08)], shades.paper)
    pen.box(0.84, 0.0, 0.98, 0.13, shades.light, 0.03)
    for x in (-0.52, 0.52):
        pen.circle(x, 0.42, 0.25, shades.dark)
        pen.circle(x, 0.42, 0.1, shades.paper)


def boat(pen: Pen) -> None:
    """A sailing boat."""
    shades = pen.shades
    pen.line([(0.0, -0.9), (0.0, 0.4)], 0.09, shades.dark)
    pen.polygon(rounded([(0.1, -0.86), (0.82, 0.26), (0.1, 0.26)], 0.05), shades.body)
    pen.polygon(rounded([(-0.1, -0.58), (-0.1, 0.26), (-0.66, 0.26)], 0.05), shades.light)
    pen.polygon(rounded([(-0.98, 0.38), (0.98, 0.38), (0.62, 0.88), (-0.62, 0.88)], 0.1), shades.body)
    pen.line([(-0.78, 0.53), (0.78, 0.53)], 0.07, shades.dark)


def rocket(pen: Pen) -> None:
    """A rocket that flies up."""
    shades = pen.shades
    pen.polygon(rounded([(-0.22, 0.56), (0.22, 0.56), (0, 1.02)], 0.05), shades.light)
    for side in (-1, 1):
        pen.polygon(
            rounded([(side * 0.3, 0.02), (side * 0.74, 0.5), (side * 0.7, 0.84), (side * 0.26, 0.58)], 0.07),
            shades.dark,
        )
    hull = curve((0, -1.0), (0.34, -0.76), (0.56, -0.1), (0.3, 0.64), 16)
    pen.polygon(mirrored(hull), shades.body)
    pen.circle(0, -0.24, 0.22, shades.dark)
    pen.circle(0, -0.24, 0.15, shades.paper)


def balloon(pen: Pen) -> None:
    """A toy balloon on a string."""
    shades = pen.shades
    string = curve((0, 0.5), (0.16, 0.7), (-0.16, 0.76), (0.04, 0.97))
    pen.line(string, 0.07, shades.dark)
    pen.polygon([(0, 0.36), (0.15, 0.6), (-0.15, 0.6)], shades.dark)
    right = [*arc(0, -0.32, 0.64, 0.66, 270, 360), *curve((0.64, -0.32), (0.64, 0.1), (0.28, 0.46), (0, 0.5))]
    pen.polygon(mirrored(right), shades.body)
    pen.line(arc(0, -0.32, 0.42, 0.44, 190, 245), 0.12, shades.light)


def umbrella(pen: Pen) -> None:
    """An open umbrella with a hooked handle."""
    shades = pen.shades
    handle = [(0, -0.9), (0, 0.66), *arc(0.17, 0.66, 0.17, 0.2, 180, 0)]
    pen.line(handle, 0.1, shades.dark)
    hem = [*arc(0.65, 0.08, 0.327, 0.16, 0, -180), *arc(0, 0.08, 0.327, 0.16, 0, -180)]
    hem += arc(-0.65, 0.08, 0.327, 0.16, 0, -180)
    pen.polygon([*arc(0, 0.08, 0.98, 0.88, 180, 360), *hem], shades.body)
    for side in (-1, 1):
        pen.line(curve((0, -0.78), (side * 0.2, -0.6), (side * 0.32, -0.3), (side * 0.325, 0.04)), 0.05, shades.dark)


def cup(pen: Pen) -> None:
    """A cup with a handle, on a saucer."""
    shades = pen.shades
    pen.line(arc(0.52, -0.1, 0.34, 0.3, -80, 100), 0.16, shades.body)
    pen.box(-0.9, 0.66, 0.9, 0.82, shades.dark, 0.08)
    side = [(0.62, -0.58), *curve((0.62, -0.1), (0.62, 0.5), (0.3, 0.66), (0.2, 0.68))]
    pen.polygon(mirrored(side), shades.body)
    pen.box(-0.62, -0.68, 0.62, -0.46, shades.dark, 0.1)


def hat(pen: Pen) -> None:
    """A top hat with a band."""
    shades = pen.shades
    pen.polygon(rounded([(-0.58, -0.8), (0.58, -0.8), (0.5, 0.6), (-0.5, 0.6)], 0.08), shades.body)
    pen.box(-0.5, 0.14, 0.5, 0.4, shades.dark)
    pen.box(-0.98, 0.4, 0.98, 0.7, shades.body, 0.15)


def bell(pen: Pen) -> None:
    """A bell with its clapper."""
    shades = pen.shades
    pen.circle(0, -0.82, 0.14, shades.dark)
    pen.circle(0, 0.74, 0.21, shades.dark)
    right = curve((0, -0.8), (0.62, -0.8), (0.56, -0.16), (0.62, 0.16), 14)
    right += curve((0.62, 0.16), (0.66, 0.34), (0.88, 0.42), (0.88, 0.54), 6)
    pen.polygon(mirrored(right), shades.body)
    pen.box(-0.9, 0.46, 0.9, 0.68, shades.body, 0.11)
    pen.line([(-0.6, 0.36), (0.6, 0.36)], 0.07, shades.dark)
    pen.line(arc(0, -0.22, 0.4, 0.42, 190, 235), 0.1, shades.light)


def book(pen: Pen) -> None:
    """A closed book, standing upright and seen from its front, with its pages below."""
    shades = pen.shades
    pen.box(-0.74, -0.94, 0.74, 0.94, shades.dark, 0.12)
    pen.box(-0.6, 0.66, 0.78, 0.84, shades.paper, 0.04)
    pen.box(-0.5, -0.94, 0.74, 0.66, shades.body, 0.06)
    pen.box(-0.74, -0.94, -0.5, 0.7, shades.body, 0.1)
    pen.box(-0.54, -0.94, -0.47, 0.66, shades.dark)
    pen.box(-0.24, -0.6, 0.5, -0.2, shades.light, 0.05)


def kite(pen: Pen) -> None:
    """A kite with its spars and a tail with bows."""
    shades = pen.shades
    tail = curve((0, 0.4), (0.26, 0.68), (-0.36, 0.66), (-0.1, 0.97))
    pen.line(tail, 0.07, shades.dark)
    for x, y in ((0.03, 0.66), (-0.14, 0.88)):
        for side in (-1, 1):
            pen.polygon([(x, y), (x + side * 0.2, y - 0.1), (x + side * 0.2, y + 0.1)], shades.dark)
    pen.polygon(rounded([(0, -1.0), (0.78, -0.34), (0, 0.54), (-0.78, -0.34)], 0.05), shades.body)
    pen.polygon([(0, -0.92), (0, -0.34), (-0.7, -0.34)], shades.light)
    pen.line([(0, -0.92), (0, 0.46)], 0.05, shades.dark)
    pen.line([(-0.7, -0.34), (0.7, -0.34)], 0.05, shades.dark)


def crown(pen: Pen) -> None:
    """A crown with three points and jewels."""
    shades = pen.shades
    points = [(-0.78, 0.72), (-0.96, -0.46), (-0.46, 0.04), (0, -0.74), (0.46, 0.04), (0.96, -0.46), (0.78, 0.72)]
    pen.polygon(points, shades.body)
    pen.circle(0, -0.74, 0.15, shades.body)
    for side in (-0.86, 0.86):
        pen.circle(side, -0.46, 0.13, shades.body)
    pen.box(-0.78, 0.44, 0.78, 0.78, shades.dark, 0.05)
    for x in (-0.44, 0, 0.44):
        pen.circle(x, 0.61, 0.09, shades.light)
