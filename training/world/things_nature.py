"""How the sky, the land, animals and plants look: one function each, drawn in the unit circle."""

from __future__ import annotations

import math

from training.world.pen import Pen, arc, curve, mirrored, rounded, turned


def sun(pen: Pen) -> None:
    """A disc with twelve rays."""
    for i in range(12):
        pen.polygon(turned([(0.56, -0.17), (1.0, 0), (0.56, 0.17)], 30 * i), pen.shades.body)
    pen.circle(0, 0, 0.64, pen.shades.dark)
    pen.circle(0, 0, 0.58, pen.shades.body)


def moon(pen: Pen) -> None:
    """A crescent, open to the right: a disc less a smaller one."""
    reach, bite, apart, shift = 0.95, 0.75, 0.45, 0.14
    tip_x = (apart**2 + reach**2 - bite**2) / (2 * apart)
    tip_y = math.sqrt(reach**2 - tip_x**2)
    outer, inner = math.degrees(math.atan2(tip_y, tip_x)), math.degrees(math.atan2(tip_y, tip_x - apart))
    edge = arc(shift, 0, reach, reach, outer, 360 - outer)
    pen.polygon([*edge, *arc(shift + apart, 0, bite, bite, 360 - inner, inner)], pen.shades.body)
    pen.circle(-0.52, 0.14, 0.1, pen.shades.dark)
    pen.circle(-0.36, -0.38, 0.07, pen.shades.dark)


def cloud(pen: Pen) -> None:
    """Four puffs on a flat base."""
    shades = pen.shades
    pen.box(-0.98, 0.06, 0.98, 0.6, shades.body, 0.27)
    pen.circle(-0.5, 0.08, 0.4, shades.body)
    pen.circle(0.02, -0.18, 0.52, shades.body)
    pen.circle(0.55, 0.1, 0.37, shades.body)
    pen.line(arc(0.02, -0.18, 0.34, 0.34, 195, 290), 0.09, shades.light)


def drop(pen: Pen) -> None:
    """A drop of water with a highlight."""
    right = curve((0, -1.0), (0.1, -0.6), (0.7, -0.1), (0.7, 0.3), 12)
    right += arc(0, 0.28, 0.7, 0.7, 0, 90)
    pen.polygon(mirrored(right), pen.shades.body)
    pen.line(arc(0, 0.28, 0.45, 0.45, 100, 170), 0.12, pen.shades.light)


def leaf(pen: Pen) -> None:
    """A pointed leaf with its stalk at the lower left and veins."""
    shades = pen.shades
    right = curve((0, -1.12), (0.84, -0.7), (0.82, 0.28), (0, 0.74), 16)
    pen.line(turned([(0, 0.6), (0, 1.14)], 42), 0.13, shades.dark)
    pen.polygon(turned(mirrored(right), 42), shades.body)
    pen.line(turned([(0, -0.72), (0, 0.6)], 42), 0.08, shades.dark)
    for y in (-0.2, 0.2):
        for side in (-0.3, 0.3):
            pen.line(turned([(0, y + 0.16), (side, y - 0.16)], 42), 0.06, shades.dark)


def mountain(pen: Pen) -> None:
    """Two peaks, the higher one with snow."""
    shades = pen.shades
    pen.polygon(rounded([(0.42, -0.28), (1.02, 0.76), (-0.2, 0.76)], 0.06), shades.dark)
    pen.polygon(rounded([(-0.24, -0.9), (0.72, 0.76), (-1.02, 0.76)], 0.06), shades.body)
    snow = [(-0.24, -0.84), (0.06, -0.36), (-0.09, -0.24), (-0.24, -0.38), (-0.4, -0.22), (-0.53, -0.34)]
    pen.polygon(snow, shades.paper)


def tree(pen: Pen) -> None:
    """A tree with a round crown."""
    shades = pen.shades
    pen.polygon([(-0.13, 0.2), (0.13, 0.2), (0.2, 0.97), (-0.2, 0.97)], shades.dark)
    for x, y, radius in ((-0.4, 0.05, 0.44), (0.4, 0.05, 0.44), (0, -0.44, 0.54), (0, 0.05, 0.44)):
        pen.circle(x, y, radius, shades.body)
    pen.line([(0, 0.52), (0, 0.1), (0.22, -0.12)], 0.09, shades.dark)
    pen.line([(0, 0.26), (-0.2, 0.04)], 0.09, shades.dark)


def fish(pen: Pen) -> None:
    """A fish that swims to the left."""
    shades = pen.shades
    pen.polygon(rounded([(0.4, 0), (0.98, -0.6), (0.84, 0), (0.98, 0.6)], 0.08), shades.dark)
    pen.polygon(rounded([(-0.3, -0.42), (0.14, -0.84), (0.36, -0.24)], 0.1), shades.dark)
    pen.polygon(rounded([(-0.1, 0.42), (0.22, 0.8), (0.34, 0.24)], 0.1), shades.dark)
    back = curve((-0.98, 0.03), (-0.66, -0.78), (0.2, -0.74), (0.62, 0), 16)
    belly = curve((0.62, 0), (0.2, 0.78), (-0.66, 0.8), (-0.98, 0.03), 16)
    pen.polygon([*back, *belly], shades.body)
    pen.line(arc(-0.7, 0.02, 0.36, 0.42, -52, 52), 0.07, shades.dark)
    pen.circle(-0.64, -0.12, 0.13, shades.paper)
    pen.circle(-0.66, -0.12, 0.07, shades.ink)


def bird(pen: Pen) -> None:
    """A bird that looks to the right, with a wing, a tail and two legs."""
    shades = pen.shades
    for x in (-0.08, 0.2):
        pen.line([(x, 0.5), (x, 0.92)], 0.08, shades.dark)
    pen.polygon(rounded([(-0.4, 0.2), (-1.0, -0.26), (-0.92, 0.24), (-0.42, 0.5)], 0.08), shades.dark)
    pen.polygon(rounded([(0.66, -0.58), (1.02, -0.38), (0.66, -0.24)], 0.03), shades.dark)
    pen.ellipse(-0.02, 0.18, 0.64, 0.5, shades.body)
    pen.circle(0.4, -0.42, 0.42, shades.body)
    pen.polygon([(0.02, -0.5), (0.8, -0.3), (0.6, 0.3), (-0.4, -0.2)], shades.body)
    wing = [
        *curve((0.26, -0.02), (0.3, 0.5), (-0.3, 0.58), (-0.62, 0.3)),
        *curve((-0.62, 0.3), (-0.3, 0.2), (-0.2, -0.1), (0.26, -0.02)),
    ]
    pen.polygon(wing, shades.dark)
    pen.circle(0.5, -0.5, 0.11, shades.paper)
    pen.circle(0.52, -0.5, 0.06, shades.ink)


def cat(pen: Pen) -> None:
    """The face of a cat."""
    shades = pen.shades
    for side in (-1, 1):
        pen.polygon(rounded([(side * 0.2, -0.4), (side * 0.82, -0.98), (side * 0.9, 0.14)], 0.08), shades.body)
        pen.polygon([(side * 0.44, -0.42), (side * 0.72, -0.7), (side * 0.76, -0.22)], shades.dark)
    pen.ellipse(0, 0.2, 0.94, 0.72, shades.body)
    for side in (-1, 1):
        pen.ellipse(side * 0.4, 0.06, 0.14, 0.17, shades.paper)
        pen.ellipse(side * 0.4, 0.07, 0.07, 0.14, shades.ink)
        pen.line([(side * 0.5, 0.42), (side * 0.96, 0.34)], 0.05, shades.dark)
        pen.line([(side * 0.5, 0.52), (side * 0.92, 0.62)], 0.05, shades.dark)
        pen.line(arc(side * 0.12, 0.46, 0.12, 0.12, 0, 180), 0.06, shades.dark)
    pen.polygon(rounded([(-0.13, 0.28), (0.13, 0.28), (0, 0.44)], 0.04), shades.dark)


def flower(pen: Pen) -> None:
    """A flower with six petals and a pale middle, on a stalk with leaves."""
    shades = pen.shades
    pen.line([(0, 0), (0, 0.96)], 0.11, shades.dark)
    for side in (-1, 1):
        blade = [
            *curve((0, 0.92), (side * 0.1, 0.56), (side * 0.4, 0.56), (side * 0.6, 0.5)),
            *curve((side * 0.6, 0.5), (side * 0.5, 0.9), (side * 0.2, 0.98), (0, 0.92)),
        ]
        pen.polygon(blade, shades.dark)
    for i in range(6):
        angle = math.radians(60 * i + 30)
        pen.circle(0.43 * math.cos(angle), -0.26 + 0.43 * math.sin(angle), 0.32, shades.body)
    pen.circle(0, -0.26, 0.27, shades.dark)
    pen.circle(0, -0.26, 0.19, shades.paper)


def apple(pen: Pen) -> None:
    """An apple with its stalk and a leaf."""
    shades = pen.shades
    right = curve((0, -0.4), (0.3, -0.68), (0.9, -0.58), (0.9, 0.08), 14)
    right += curve((0.9, 0.08), (0.9, 0.62), (0.5, 1.12), (0, 0.88), 14)
    pen.line(curve((0, -0.34), (0, -0.56), (0.04, -0.7), (0.1, -0.86)), 0.1, shades.dark)
    blade = [
        *curve((0.1, -0.6), (0.16, -0.98), (0.5, -1.02), (0.64, -0.94)),
        *curve((0.64, -0.94), (0.6, -0.62), (0.36, -0.52), (0.1, -0.6)),
    ]
    pen.polygon(blade, shades.dark)
    pen.polygon(mirrored(right), shades.body)
    pen.line(arc(-0.3, 0.1, 0.38, 0.42, 175, 245), 0.12, shades.light)


def mushroom(pen: Pen) -> None:
    """A toadstool with dots on its cap."""
    shades = pen.shades
    stem = curve((0.26, 0.1), (0.22, 0.5), (0.3, 0.7), (0.36, 0.86))
    pen.polygon(mirrored([*stem, (0.28, 0.95)]), shades.light)
    cap = [
        *curve((0, -0.92), (0.6, -0.92), (0.96, -0.4), (0.97, 0.06), 14),
        *curve((0.97, 0.06), (0.96, 0.24), (0.4, 0.28), (0, 0.28), 6),
    ]
    pen.polygon(mirrored(cap), shades.body)
    for x, y, radius in ((0.02, -0.5, 0.2), (-0.56, -0.16, 0.15), (0.54, -0.12, 0.17), (0.0, 0.04, 0.1)):
        pen.circle(x, y, radius, shades.paper)


def butterfly(pen: Pen) -> None:
    """A butterfly with open wings and feelers."""
    shades = pen.shades
    for side in (-1, 1):
        pen.line(curve((0, -0.4), (side * 0.04, -0.7), (side * 0.14, -0.8), (side * 0.24, -0.86)), 0.07, shades.dark)
        upper = curve((0, -0.16), (side * 0.3, -0.86), (side * 1.1, -1.0), (side * 0.96, -0.3), 14)
        upper += curve((side * 0.96, -0.3), (side * 0.9, 0.1), (side * 0.5, 0.16), (0, 0.08), 8)
        lower = curve((0, 0.0), (side * 0.5, 0.0), (side * 0.92, 0.2), (side * 0.74, 0.62), 10)
        lower += curve((side * 0.74, 0.62), (side * 0.5, 1.02), (side * 0.2, 0.7), (0, 0.28), 10)
        pen.polygon(lower, shades.body)
        pen.polygon(upper, shades.body)
        pen.circle(side * 0.62, -0.38, 0.17, shades.light)
        pen.circle(side * 0.46, 0.46, 0.12, shades.light)
    pen.ellipse(0, 0.06, 0.1, 0.56, shades.dark)
