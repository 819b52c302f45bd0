"""Ways to say the same thing, and the choice among them."""

from __future__ import annotations

import itertools
import random
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any


class Wordings:
    """Texts or templates with the same meaning, the most usual first: the n-th is said 1/n as often as the first."""

    __slots__ = ("_shares", "texts")

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self._shares = tuple(itertools.accumulate(1 / rank for rank in range(1, len(texts) + 1)))

    def pick(self, rng: random.Random) -> str:
        """One of the texts."""
        return rng.choices(self.texts, cum_weights=self._shares)[0]

    def say(self, rng: random.Random, **slots: str) -> str:
        """One of the templates, its {slots} filled."""
        return self.pick(rng).format(**slots)


def literal_texts(table: Any) -> Iterator[str]:
    """All text that stands in `table` (a string, wordings, or mappings and sequences of them), without the slots."""
    if isinstance(table, str):
        for literal, *_ in string.Formatter().parse(table):
            yield literal
    elif isinstance(table, Wordings):
        yield from literal_texts(table.texts)
    elif isinstance(table, Mapping):
        yield from literal_texts(table.values())
    elif isinstance(table, Iterable):
        for entry in table:
            yield from literal_texts(entry)


def kind_of_text(text: str) -> str:
    """What a word on a sign is: "number", "letter", "word", or "code" for letters and digits mixed."""
    if text.isdigit():
        return "number"
    if not text.isalpha():
        return "code"
    return "word" if len(text) > 1 else "letter"
