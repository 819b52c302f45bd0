"""Says a scene in English, as people type it: in sentences or as a row of remarks.

Some colours, sizes, places and backgrounds go unsaid: see `captions.py`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection

from training.world import words_en as words
from training.world.scene import Group, Item, Lettering, Pair, Scene, Single, Stranger, is_held_out
from training.world.unwritable import draw_unwritable
from training.world.wordings import kind_of_text

_SAID = {"centre": 0.3, "medium": 0.04, "flat": 0.08, "inside": 0.25, "white": 0.5, "uncounted": 0.1}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_AN = re.compile(r"\b([aA]) (?=[aeiou])")
_REMARKS, _ARTICLES_IN_REMARKS = 0.25, 0.15
_NO_ARTICLES = 0.08
# Of the texts that no board can have.
_CHINESE_SHARE = 0.6


def say(scene: Scene, uncoloured: Collection[Item | Lettering], rng: random.Random) -> str:
    """An English caption of `scene`, silent on the colours of what is in `uncoloured`.

    What it leaves unsaid otherwise is medium, in the centre, flat, or white behind.
    """
    remarks = rng.random() < _REMARKS
    text = _AN.sub(r"\1n ", _Speaker(rng, remarks, uncoloured).say(scene))
    if rng.random() < 0.25:
        text = text[0].upper() + text[1:]
        return text + "." if rng.random() < 0.5 else text
    return text + "." if rng.random() < 0.04 else text


class _Speaker:
    """One caption in the making: a row of `remarks` or a sentence, silent on the colours of what is in `uncoloured`."""

    def __init__(self, rng: random.Random, remarks: bool, uncoloured: Collection[Item | Lettering]) -> None:
        self._rng = rng
        self._uncoloured = uncoloured
        self._remarks = remarks
        self._articles = rng.random() >= (1 - _ARTICLES_IN_REMARKS if remarks else _NO_ARTICLES)

    def say(self, scene: Scene) -> str:
        return self._in_remarks(scene) if self._remarks else self._in_a_sentence(scene)

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _in_remarks(self, scene: Scene) -> str:
        rng = self._rng
        parts = self._subject_remarks(scene)
        if scene.is_scenic:
            background = words.SCENERY_REMARKS.say(rng, **self._scenery(scene.background))
        else:
            background = words.COLOUR_TAGS.say(rng, colour=self._behind(scene.background))
        if self._says_background(scene):
            parts.insert(len(parts) if self._chance(0.8) else 0, background)
        if self._says_style(scene):
            parts.insert(len(parts) if self._chance(0.7) else 0, words.STYLE_REMARKS[scene.style].pick(rng))
        return ", ".join(parts)

    def _subject_remarks(self, scene: Scene) -> list[str]:
        match scene.subject:
            case Single(item, position):
                remarks = [self._thing(item)]
                if self._says_position(position):
                    remarks.append(words.PLACE_TAGS[position].pick(self._rng))
                return remarks
            case None:
                return []
            case _:
                return [self._subject(scene)]

    def _in_a_sentence(self, scene: Scene) -> str:
        rng = self._rng
        if scene.subject is None:
            text = self._background_alone(scene.background)
            free = text.startswith(("a ", "the "))
        else:
            text = self._subject(scene)
            free = not text.startswith(_LEADS)
        be = words.BE[isinstance(scene.subject, Group) and not text.startswith("a group")]
        style = self._says_style(scene)
        intro = style and free and self._chance(0.3)
        if intro:
            text = words.STYLE_INTROS[scene.style].say(rng, subject=text)
        elif free and self._articles and self._chance(0.25):
            text = words.INTROS.say(rng, subject=text, be=be)
            free = False
        if scene.subject is not None and self._says_background(scene):
            text = self._with_background(scene.background, text, be, may_lead=free and not intro)
        if style and not intro:
            text = self._with_style(scene.style, text)
        return text

    def _with_style(self, style: str, text: str) -> str:
        if self._chance(0.5):
            return f"{text}, {words.STYLE_REMARKS[style].pick(self._rng)}"
        return f"{text}{self._rng.choice((' ', ', '))}{words.STYLE_ENDINGS[style].pick(self._rng)}"

    def _with_background(self, background: str, subject: str, be: str, may_lead: bool) -> str:
        leads = may_lead and self._chance(0.25)
        if background in words.SCENERY_PLACES:
            wordings = words.SCENERY_AHEAD if leads else words.SCENERY_BEHIND
            return wordings.say(self._rng, subject=subject, be=be, **self._scenery(background))
        wordings = words.COLOUR_AHEAD if leads else words.COLOUR_BEHIND
        return wordings.say(self._rng, subject=subject, be=be, colour=self._behind(background))

    def _background_alone(self, background: str) -> str:
        if background in words.SCENERY_PLACES:
            return words.SCENERY_ALONE.say(self._rng, **self._scenery(background))
        return words.COLOUR_ALONE.say(self._rng, colour=self._behind(background))

    def _scenery(self, background: str) -> dict[str, str]:
        return {
            "place": words.SCENERY_PLACES[background].pick(self._rng),
            "noun": words.SCENERY_NOUNS[background].pick(self._rng),
            "tag": words.SCENERY_TAGS[background].pick(self._rng),
        }

    def _subject(self, scene: Scene) -> str:
        match scene.subject:
            case Single(item, position):
                thing = self._thing(item)
                if not self._says_position(position):
                    return thing
                place = words.PLACES[position].pick(self._rng)
                wordings = words.PLACED if self._articles else words.PLACED_BRIEFLY
                return wordings.say(self._rng, thing=thing, place=place, be=words.BE[False])
            case Pair():
                return self._pair(scene.subject)
            case Group(item, count):
                things = self._words(item, plural=True)
                if count == words.UNCOUNTED and not is_held_out(scene) and self._chance(_SAID["uncounted"]):
                    return words.SOME.say(self._rng, things=things)
                return words.GROUPS.say(self._rng, number=words.NUMBERS[count].pick(self._rng), things=things)
            case Lettering():
                return self._lettering(scene.subject)
            case None:
                raise ValueError("A scene without a subject has nothing to name.")

    def _pair(self, pair: Pair) -> str:
        first, relation, second = pair.first, pair.relation, pair.second
        if relation == "inside":
            a = self._thing(first, says_size=self._chance(_SAID["inside"]))
            b = self._thing(second, says_size=self._chance(_SAID["inside"]))
        else:
            if relation in _OPPOSITE and self._chance(0.5):
                first, relation, second = second, _OPPOSITE[relation], first
            a, b = self._thing(first), self._thing(second)
        return words.PAIRS[relation].say(self._rng, a=a, b=b)

    def _thing(self, item: Item, says_size: bool = True) -> str:
        text = self._words(item, says_size=says_size)
        if not self._articles:
            return text
        article = self._rng.choices(("a", "the", words.NUMBERS[1].pick(self._rng)), cum_weights=(0.92, 0.96, 1.0))[0]
        return f"{article} {text}"

    def _words(self, item: Item, plural: bool = False, says_size: bool = True) -> str:
        rng = self._rng
        nouns = item.nouns if isinstance(item, Stranger) else words.NOUNS[item.thing]
        noun = nouns[0 if self._chance(0.75) else rng.randrange(len(nouns))][plural]
        adjectives = [] if item in self._uncoloured else [self._colour(item.colour)]
        if says_size and (item.size != "medium" or self._chance(_SAID["medium"])):
            adjectives.insert(0, words.SIZE_WORDS[item.size].pick(rng))
        return " ".join((*adjectives, noun))

    def _lettering(self, lettering: Lettering) -> str:
        rng = self._rng
        text = lettering.text or draw_unwritable(rng, _CHINESE_SHARE)
        quoted = not (lettering.text and words.can_go_unquoted(text)) or self._chance(0.85)
        template = (words.LETTERING if quoted else words.LETTERING_UNQUOTED).pick(rng)
        written = self._quoted(text) if quoted else self._unquoted(text, template)
        if lettering in self._uncoloured:
            template = template.replace("{colour} ", "")
        said = template.format(
            colour=self._colour(lettering.colour),
            surface=words.SURFACES[lettering.surface].pick(rng),
            kind=words.KINDS_OF_TEXT[kind_of_text(text)].pick(rng),
            text=written,
        )
        return said if self._articles else said.removeprefix("a ").removeprefix("the ")

    def _unquoted(self, text: str, template: str) -> str:
        """In capitals; in small letters only where a word of writing stands right before them."""
        if template in words.LETTERING_BY_CAPITALS:
            return text
        return self._rng.choices((text, text.lower(), text.capitalize()), cum_weights=(0.5, 0.85, 1.0))[0]

    def _quoted(self, text: str) -> str:
        cased = self._rng.choices((text, text.lower(), text.capitalize()), cum_weights=(0.75, 0.9, 1.0))[0]
        return words.QUOTATION_MARKS.pick(self._rng).format(cased)

    def _colour(self, colour: str) -> str:
        return words.COLOUR_WORDS[colour].pick(self._rng)

    def _behind(self, background: str) -> str:
        return words.BACKGROUND_COLOURS[background].pick(self._rng)

    def _says_position(self, position: str) -> bool:
        return position != "centre" or self._chance(_SAID["centre"])

    def _says_style(self, scene: Scene) -> bool:
        return scene.style != "flat" or self._chance(_SAID["flat"])

    def _says_background(self, scene: Scene) -> bool:
        unsaid = scene.background == "white" and scene.style != "pastel" and scene.subject is not None
        return not unsaid or self._chance(_SAID["white"])


# A subject that starts with where it is takes nothing before it.
_LEADS = ("in ", "on ", "at ", "to ", "near ", "above ", "below ", "inside ", "top ", "bottom ")
