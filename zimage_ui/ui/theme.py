"""The look: colours of both schemes, and the Gradio theme that is made of them.

Colours are named here once. The style sheet reads them as CSS variables (`--zi-...`), the chart as values. The one
accent is celadon, the green of the glaze; everything else is quiet so that the pictures are the colour on the page.
"""

from __future__ import annotations

import inspect
from functools import cache
from importlib.resources import files
from typing import Any

from gradio.themes import Base

# Every stage has one colour, in the bar, in the legend and in the chart. The order is the order of the bar.
STAGE_COLOURS = {
    "queue": {"light": "#9aa5a0", "dark": "#66736d"},
    "encode": {"light": "#d6962a", "dark": "#e3b04b"},
    "sample": {"light": "#128f74", "dark": "#3dbe9b"},
    "decode": {"light": "#3f70d2", "dark": "#6f9df2"},
    "save": {"light": "#9a5bb5", "dark": "#bd86d6"},
    "other": {"light": "#cdd3cf", "dark": "#3c4743"},
}

# Contrast of every ink on paper, surface and sunken is at least 4.5 : 1 in both schemes (tested).
LIGHT = {
    "paper": "#f4f6f3",
    "surface": "#ffffff",
    "sunken": "#e9ece8",
    "ink": "#17201c",
    "ink-soft": "#46524c",
    "ink-faint": "#5d6963",
    "line": "#dde2dc",
    "line-strong": "#c2cac3",
    "accent": "#0a775f",
    "accent-strong": "#075f4c",
    "accent-soft": "#dbeee7",
    "on-accent": "#ffffff",
    "warn": "#7d5200",
    "warn-soft": "#faefd7",
    "bad": "#a8231b",
    "bad-soft": "#fbe8e6",
    "shadow": "rgb(23 32 28 / 0.08)",
}
DARK = {
    "paper": "#0d1110",
    "surface": "#151b19",
    "sunken": "#090c0b",
    "ink": "#e8efeb",
    "ink-soft": "#b5c1bb",
    "ink-faint": "#8d9a93",
    "line": "#232b28",
    "line-strong": "#37423d",
    "accent": "#45c9a5",
    "accent-strong": "#7fe0c5",
    "accent-soft": "#12302a",
    "on-accent": "#05221a",
    "warn": "#f0c36a",
    "warn-soft": "#2d2512",
    "bad": "#ff9088",
    "bad-soft": "#361a18",
    "shadow": "rgb(0 0 0 / 0.4)",
}

# What the system has, best first; nothing is fetched. "system-ui" comes late: on Linux it is often the widest of all.
FONTS = (
    "-apple-system",
    "BlinkMacSystemFont",
    "Segoe UI",
    "Inter",
    "Roboto",
    "Noto Sans",
    "Liberation Sans",
    "Helvetica Neue",
    "Arial",
    "PingFang SC",
    "Microsoft YaHei",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "system-ui",
    "sans-serif",
)
MONO_FONTS = ("ui-monospace", "SF Mono", "Cascadia Mono", "Roboto Mono", "Liberation Mono", "monospace")

# Gradio's own variables for the few of its parts that the page shows; the style sheet does the rest.
_GRADIO = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "ink-faint",
    "background_fill_primary": "surface",
    "background_fill_secondary": "sunken",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "block_label_text_color": "ink-soft",
    "block_title_text_color": "ink-soft",
    "input_background_fill": "surface",
    "input_border_color": "line-strong",
    "input_border_color_focus": "accent",
    "input_placeholder_color": "ink-faint",
    "button_primary_background_fill": "accent",
    "button_primary_background_fill_hover": "accent-strong",
    "button_primary_text_color": "on-accent",
    "button_secondary_background_fill": "surface",
    "button_secondary_background_fill_hover": "sunken",
    "button_secondary_text_color": "ink",
    "error_background_fill": "bad-soft",
    "error_border_color": "bad",
    "error_text_color": "bad",
}


def _variables(colours: dict[str, str], scheme: str) -> str:
    stages = {f"stage-{stage}": tones[scheme] for stage, tones in STAGE_COLOURS.items()}
    return "".join(f"--zi-{name}:{value};" for name, value in (colours | stages).items())


@cache
def style_sheet() -> str:
    """The whole style sheet: the colours of both schemes, then the files of `assets/` in order of their names."""
    folder = files("zimage_ui.ui").joinpath("assets")
    sheets = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".css")), key=lambda entry: entry.name)
    fonts = ",".join(font if font.isalpha() or font.startswith("-") else f'"{font}"' for font in FONTS)
    return "\n".join(
        (
            f":root{{color-scheme:light dark;--zi-font:{fonts};{_variables(LIGHT, 'light')}}}",
            f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK, 'dark')}}}}}",
            *(sheet.read_text("utf-8") for sheet in sheets),
        )
    )


class StudioTheme(Base):
    """Gradio's bare theme in the studio's colours, with system fonts alone."""

    def __init__(self) -> None:
        super().__init__(font=FONTS, font_mono=MONO_FONTS)
        self.name = "zimage-ui"
        self.set(**_gradio_values())

    @property
    def custom_css(self) -> str:
        """Sent with the theme, unchanged and before anything is drawn; `css=` would be rewritten rule by rule."""
        return style_sheet()

    @custom_css.setter
    def custom_css(self, _: str) -> None:
        """The base class sets it empty; an instance attribute would be written out as a CSS variable too."""


def _gradio_values() -> dict[str, Any]:
    """Both schemes; a few variables of Gradio have no dark twin."""
    known = inspect.signature(Base.set).parameters
    light = {name: LIGHT[colour] for name, colour in _GRADIO.items()}
    dark = {f"{name}_dark": DARK[colour] for name, colour in _GRADIO.items()}
    return light | {name: value for name, value in dark.items() if name in known}
