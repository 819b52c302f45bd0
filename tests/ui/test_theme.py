from __future__ import annotations

import re

import pytest

from zimage_ui.ui.theme import DARK, LIGHT, STAGE_COLOURS, StudioTheme, style_sheet

INKS = ("ink", "ink-soft", "ink-faint")
GROUNDS = ("paper", "surface", "sunken")
PAIRS = [
    *((ink, ground) for ink in INKS for ground in GROUNDS),
    *(("accent", ground) for ground in GROUNDS),
    ("on-accent", "accent"),
    ("accent-strong", "accent-soft"),
    ("warn", "warn-soft"),
    ("warn", "surface"),
    ("bad", "bad-soft"),
    ("bad", "paper"),
    ("ink", "bad-soft"),
]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), PAIRS)
def test_words_can_be_read(scheme: dict[str, str], ink: str, ground: str) -> None:
    assert contrast(scheme[ink], scheme[ground]) >= 4.5


def test_both_schemes_name_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()
    assert all(tones.keys() == {"light", "dark"} for tones in STAGE_COLOURS.values())


def test_the_style_sheet_uses_only_colours_that_are_there() -> None:
    sheet = style_sheet()
    used = set(re.findall(r"var\((--zi-[\w-]+)", sheet))
    set_here = set(re.findall(r"(--zi-[\w-]+):", sheet))
    by_scripts = {"--zi-done", "--zi-columns", "--zi-tile-width", "--zi-tile-height"}
    assert used - set_here - by_scripts == set()


def test_the_theme_fetches_no_fonts() -> None:
    theme = StudioTheme()
    css = theme._get_theme_css()
    assert theme._stylesheets == []
    assert "@font-face" not in css
    assert "@import" not in css
    assert "googleapis" not in css
    assert css.count("#zi-shell {") == style_sheet().count("#zi-shell {")  # the sheet itself, once


def test_the_style_sheet_is_whole() -> None:
    sheet = re.sub(r"/\*.*?\*/|\"[^\"]*\"", "", style_sheet(), flags=re.DOTALL)
    assert sheet.count("{") == sheet.count("}")
