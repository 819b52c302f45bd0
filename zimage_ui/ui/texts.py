"""Every text of the page, in English and Chinese: one catalogue that the scripts and this package read.

The catalogue is `assets/texts.json`: language -> key -> text, with `{name}` where a value goes. It travels inside the
page (no extra request), so that a switch of language needs no server and loses nothing that was typed.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

LANGUAGES = ("en", "zh")

Catalogue = dict[str, dict[str, str]]


@cache
def catalogue() -> Catalogue:
    """All texts: language -> key -> text."""
    loaded: Catalogue = json.loads(files("zimage_ui.ui").joinpath("assets", "texts.json").read_text("utf-8"))
    return loaded


def text(key: str, language: str = "en") -> str:
    """The text of `key`.

    Raises:
        KeyError: no such key or language.
    """
    return catalogue()[language][key]
