"""Whether what the judge sees fits what the scene asks for.

Strict: what is missing is neither in its colour nor in its place, and a thing that nobody asked for spoils a count.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from training.judge.sight import SeenThing, Sight
from training.world.scene import Group, Lettering, Pair, Scene, Single

CRITERIA = ("thing", "colour", "place", "count", "background", "word", "clean")

# Where the middle third begins and ends. A big thing at the edge is kept whole, which moves its centre up to 0.325,
# and the middle ones spread from 0.44 to 0.56: the line between them is drawn half way.
_LOW, _HIGH = 0.38, 0.62
# Two centres are beside each other from this distance on.
_APART = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is right on a picture; None where the scene does not ask for it.

    Attributes:
        thing: all things that the scene names are there.
        colour: each of them in its colour.
        place: a single thing is in its part of the picture; two things stand in their relation.
        count: exactly as many as asked for, and no thing of another kind.
        background: the right colour or scenery.
        word: exactly the word, read from left to right; no letter on a board that is to stay empty.
        clean: nothing on it that the scene does not ask for, neither things nor letters.
    """

    thing: bool | None
    colour: bool | None
    place: bool | None
    count: bool | None
    background: bool
    word: bool | None
    clean: bool


def judge_sight(sight: Sight, scene: Scene) -> Verdict:
    """Whether `sight` is what `scene` asks for."""
    thing = colour = place = count = word = None
    match scene.subject:
        case Single() | Pair():
            thing, colour, place = _named(sight, scene)
        case Group(item, number):
            same = [seen for seen in sight.things if seen.thing == item.thing]
            thing = bool(same)
            colour = thing and all(seen.colour == item.colour for seen in same)
            count = len(same) == len(sight.things) == number
        case Lettering(text=text):
            word = sight.text == text
    return Verdict(thing, colour, place, count, sight.background == scene.background, word, _is_clean(sight, scene))


def _named(sight: Sight, scene: Scene) -> tuple[bool, bool, bool]:
    """Thing, colour and place by that reading of the sight which is best for the scene."""
    best = (False, False, False)
    for chosen in itertools.permutations(sight.things, len(scene.items)):
        if all(seen.thing == item.thing for seen, item in zip(chosen, scene.items, strict=True)):
            colours = all(seen.colour == item.colour for seen, item in zip(chosen, scene.items, strict=True))
            best = max(best, (True, colours, _is_placed(chosen, scene)))
    return best


def _is_placed(chosen: tuple[SeenThing, ...], scene: Scene) -> bool:
    match scene.subject:
        case Single(position=position):
            return position == position_of(chosen[0])
        case Pair(relation=relation):
            return stands(chosen[0], relation, chosen[1])
    raise ValueError(f"{scene} says nothing of places")


def position_of(seen: SeenThing) -> str:
    """The part of the picture that a thing is in, as the vocabulary names it."""
    row = "top" if seen.y < _LOW else "bottom" if seen.y > _HIGH else ""
    column = "left" if seen.x < _LOW else "right" if seen.x > _HIGH else ""
    return " ".join(word for word in (row, column) if word) or "centre"


def stands(first: SeenThing, relation: str, second: SeenThing) -> bool:
    """Whether `first` stands in `relation` to `second`, by their centres."""
    across, down = first.x - second.x, first.y - second.y
    beside = abs(across) > max(_APART, abs(down))
    stacked = abs(down) > max(_APART, abs(across))
    match relation:
        case "left of":
            return beside and across < 0
        case "right of":
            return beside and across > 0
        case "next to":
            return beside
        case "above":
            return stacked and down < 0
        case "below":
            return stacked and down > 0
        case "inside":
            return math.hypot(across, down) < second.radius and first.radius < second.radius
    raise ValueError(f"unknown relation {relation!r}")


def _is_clean(sight: Sight, scene: Scene) -> bool:
    asked = _asked_things(scene)
    for seen in sight.things:
        if seen.thing not in asked:
            return False
        asked.remove(seen.thing)
    return isinstance(scene.subject, Lettering) or not sight.glyphs


def _asked_things(scene: Scene) -> list[str]:
    if isinstance(scene.subject, Group):
        return [scene.subject.item.thing] * scene.subject.count
    return [item.thing for item in scene.items]
