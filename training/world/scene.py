"""What is on a picture: a background, a style and a subject; drawn at random, with some combinations held out.

Held out of training are a tenth of the pairs of thing and colour, of the triples of thing, relation and thing, and of
the words. Which ones is decided by a hash of their names, so that it never depends on the order of drawing. The model
is judged on those: it has to combine what it knows. A triple is held out by what is to be seen, however it is named.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from training.world.vocabulary import (
    COLOURS,
    CONTAINERS,
    COUNTS,
    GLYPHS,
    MAX_LETTERS,
    PASTEL_COLOURS,
    POSITIONS,
    RELATIONS,
    SCENERIES,
    SCENERY_COLOURS,
    SURFACES,
    THINGS,
    USUAL_COLOURS,
    WORDS,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing: what, its colour and its size."""

    thing: str
    colour: str
    size: str = "medium"


@dataclass(frozen=True, slots=True)
class Stranger(Item):
    """Something to be said that cannot be drawn, so no part of a picture; `nouns` as in the tables of words."""

    nouns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Single:
    """One item at one of the nine positions."""

    item: Item
    position: str = "centre"


@dataclass(frozen=True, slots=True)
class Pair:
    """Two items; `relation` says where the first is as seen from the second ("left of": the first is on the left)."""

    first: Item
    relation: str
    second: Item


@dataclass(frozen=True, slots=True)
class Group:
    """Two to four of the same item."""

    item: Item
    count: int


@dataclass(frozen=True, slots=True)
class Lettering:
    """A word of 1 to 6 capitals or digits on a sign or a poster of some colour; "" leaves it empty."""

    surface: str
    colour: str
    text: str


Subject = Single | Pair | Group | Lettering | None


@dataclass(frozen=True, slots=True)
class Scene:
    """A whole picture. `background` is a colour or a scenery; without a subject it is all that there is."""

    subject: Subject
    background: str
    style: str = "flat"

    @property
    def is_scenic(self) -> bool:
        """Whether the background is a scenery and not a plain colour."""
        return self.background in SCENERIES

    @property
    def items(self) -> tuple[Item, ...]:
        """The items that the scene names, each once."""
        match self.subject:
            case Single(item) | Group(item):
                return (item,)
            case Pair(first, _, second):
                return first, second
            case _:
                return ()


# How often each kind of scene is drawn.
_KINDS: dict[str, float] = {
    "single": 0.31,
    "pair": 0.23,
    "group": 0.13,
    "lettering": 0.22,
    "board": 0.01,
    "scenery": 0.05,
    "nothing": 0.05,
}
_SCENIC_SHARE = 0.35
_STYLES = {"flat": 0.8, "outline": 0.1, "pastel": 0.1}
_SIZES = {"small": 0.25, "medium": 0.5, "big": 0.25}
_REAL_WORDS = 0.5
# Scenes whose things are given their usual colours (chance gives some more of them), and how often those go unsaid.
_USUAL_SHARE = 0.13
_UNSAID_SHARE, _UNSAID_OF_TWO = 0.3, 0.8
# Of plain backgrounds, beyond its turn: who names no background means white.
_WHITE_SHARE = 0.15


_SEEN_FROM_THE_OTHER = {"right of": "left of", "below": "above"}


def is_held_out(scene: Scene) -> bool:
    """Whether training must not see this scene, because of a pair, a relation or a word in it."""
    if any(is_held_out_pair(item.thing, item.colour) for item in scene.items):
        return True
    match scene.subject:
        case Pair(first, relation, second):
            return is_held_out_relation(first.thing, relation, second.thing)
        case Lettering(text=text):
            return is_held_out_word(text)
    return False


def is_held_out_pair(thing: str, colour: str) -> bool:
    """Whether this thing in this colour is kept for the test."""
    return _one_in_ten("pair", thing, colour)


def is_held_out_relation(first: str, relation: str, second: str) -> bool:
    """Whether these two things in this relation are kept for the test, in all colours and named from either side.

    Two names of the same picture are one relation: what is below has the other above it, and "next to" stands like
    "left of" (see `layout`).
    """
    if relation in _SEEN_FROM_THE_OTHER:
        first, relation, second = second, _SEEN_FROM_THE_OTHER[relation], first
    return _one_in_ten("relation", first, "left of" if relation == "next to" else relation, second)


def is_held_out_word(text: str) -> bool:
    """Whether this word is kept for the test."""
    return bool(text) and _one_in_ten("word", text)


def _one_in_ten(*names: str) -> bool:
    return hashlib.sha256("/".join(names).encode()).digest()[0] < 26


def usual_colour(scene: Scene, thing: Item | Lettering) -> str | None:
    """The colour that `thing`, an item or the lettering of `scene`, has when nobody names one.

    It is the first of its usual colours that can be seen there; None if no colour of the scene's style is.
    """
    hidden = _hidden_colours(scene.background)
    match scene.subject:
        case Pair(first, "inside", second) if thing == first:
            hidden = (*hidden, second.colour)
    name = thing.surface if isinstance(thing, Lettering) else thing.thing
    palette = _palette(scene.style)
    return next((colour for colour in USUAL_COLOURS[name] if colour in palette and colour not in hidden), None)


def in_usual_colours(scene: Scene) -> Scene:
    """`scene` with its things in their usual colours, as far as there are any; two of a thing stay as they are."""
    match scene.subject:
        case Single(item) | Group(item) as subject:
            return replace(scene, subject=replace(subject, item=_as_usual(scene, item)))
        case Lettering(colour=colour) as lettering:
            return replace(scene, subject=replace(lettering, colour=usual_colour(scene, lettering) or colour))
        case Pair(first, relation, second) if first.thing != second.thing:
            scene = replace(scene, subject=Pair(first, relation, _as_usual(scene, second)))
            back = scene.items[1]
            front = _as_usual(scene, first)
            # Inside a thing of its own colour it would not be seen.
            lost = relation == "inside" and front.colour == back.colour
            return replace(scene, subject=Pair(front, relation, second if lost else back))
        case _:
            return scene


def colours_left_unsaid(scene: Scene, rng: random.Random) -> frozenset[Item | Lettering]:
    """Those of the scene's items, or its lettering, whose colour a caption does not name, because it is the usual one.

    In scenes kept for the test every colour is named.
    """
    things = (scene.subject,) if isinstance(scene.subject, Lettering) else scene.items
    usual = [thing for thing in things if thing.colour == usual_colour(scene, thing)]
    if not usual or is_held_out(scene) or rng.random() >= _UNSAID_SHARE:
        return frozenset()
    return frozenset(thing for thing in usual if len(usual) == 1 or rng.random() < _UNSAID_OF_TWO)


def _as_usual(scene: Scene, item: Item) -> Item:
    return replace(item, colour=usual_colour(scene, item) or item.colour)


def _palette(style: str) -> tuple[str, ...]:
    return PASTEL_COLOURS if style == "pastel" else tuple(COLOURS)


def _hidden_colours(background: str) -> tuple[str, ...]:
    """Those that cannot be seen in front of that background."""
    return SCENERY_COLOURS.get(background, (background,))


def draw_training_scene(rng: random.Random) -> Scene:
    """A random scene of the training set."""
    return draw_scene(rng, lambda scene: not is_held_out(scene))


def draw_scene(rng: random.Random, accept: Callable[[Scene], bool], kind: str | None = None) -> Scene:
    """The first random scene that `accept` takes.

    Args:
        rng: what decides.
        accept: says yes or no.
        kind: "single", "pair", "group", "lettering", "board" (one without letters), "scenery" or "nothing" (a scenery
            or a plain colour); None draws it.
    """
    while True:
        scene = _draw(rng, kind or _weighted(rng, _KINDS))
        if accept(scene):
            return scene


def _draw(rng: random.Random, kind: str) -> Scene:
    style = _weighted(rng, _STYLES)
    scenic = kind == "scenery" or (style != "pastel" and rng.random() < _SCENIC_SHARE)
    palette = _palette(style)
    background = rng.choice(SCENERIES if scenic else palette)
    if not scenic and style != "pastel" and rng.random() < _WHITE_SHARE:
        background = "white"
    if kind == "scenery":
        return Scene(None, background, style if style == "outline" else "flat")
    if kind == "nothing":
        return Scene(None, background, style)
    hidden = _hidden_colours(background)
    first, second = rng.sample([colour for colour in palette if colour not in hidden], 2)
    scene = Scene(_draw_subject(rng, kind, first, second), background, style)
    return in_usual_colours(scene) if rng.random() < _USUAL_SHARE else scene


def _draw_subject(rng: random.Random, kind: str, first: str, second: str) -> Subject:
    item = Item(rng.choice(THINGS), first, _weighted(rng, _SIZES))
    if kind == "single":
        return Single(item, "centre" if rng.random() < 0.3 else rng.choice(POSITIONS))
    if kind == "group":
        return Group(item, rng.choice(COUNTS[1:]))
    if kind == "lettering":
        return Lettering(rng.choice(SURFACES), first, _draw_text(rng))
    if kind == "board":
        return Lettering(rng.choice(SURFACES), first, "")
    relation = rng.choice(RELATIONS)
    if relation == "inside":
        return Pair(replace(item, size="small"), relation, Item(rng.choice(CONTAINERS), second, "big"))
    other = Item(rng.choice(THINGS), second, _weighted(rng, _SIZES))
    return Pair(item, relation, other)


def _draw_text(rng: random.Random) -> str:
    if rng.random() < _REAL_WORDS:
        return rng.choice(WORDS)
    return "".join(rng.choices(GLYPHS, k=rng.randint(1, MAX_LETTERS)))


def _weighted(rng: random.Random, shares: dict[_T, float]) -> _T:
    return rng.choices(list(shares), list(shares.values()))[0]
