"""Says a scene in Chinese, as people type it. What goes unsaid is what does in English: see `captions.py`."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from training.world import words_zh as words
from training.world.scene import Group, Item, Lettering, Pair, Scene, Single, Stranger, is_held_out
from training.world.unwritable import draw_unwritable
from training.world.wordings import kind_of_text

_SAID = {"centre": 0.3, "medium": 0.04, "flat": 0.08, "inside": 0.25, "white": 0.5, "uncounted": 0.1}
_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
_SHORT_COLOUR, _COUNTED_ONE = 0.06, 0.6
# Of the texts that no board can have.
_CHINESE_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class _Phrase:
    """What was said so far, and whether it names something (and can stand behind 的 or 有) or is a clause."""

    text: str
    is_noun: bool


def say(scene: Scene, uncoloured: Collection[Item | Lettering], rng: random.Random) -> str:
    """A Chinese caption of `scene`, silent on the colours of what is in `uncoloured`.

    What it leaves unsaid otherwise is medium, in the centre, flat, or white behind.
    """
    text = _Speaker(rng, uncoloured).say(scene)
    if rng.random() < 0.12:
        text = text.replace("，", rng.choice((",", " ", ", ")))
    return text + words.FULL_STOP if rng.random() < 0.15 else text


class _Speaker:
    """One caption in the making, silent on the colours of what is in `uncoloured`."""

    def __init__(self, rng: random.Random, uncoloured: Collection[Item | Lettering]) -> None:
        self._rng = rng
        self._uncoloured = uncoloured

    def say(self, scene: Scene) -> str:
        if scene.subject is None:
            text = self._background_alone(scene.background)
        else:
            text = self._with_background(scene, self._subject(scene))
        if scene.style == "flat" and not self._chance(_SAID["flat"]):
            return text
        style = words.STYLES[scene.style].pick(self._rng)
        return f"{text}，{style}" if self._chance(0.7) else f"{style}，{text}"

    def _chance(self, share: float) -> bool:
        return self._rng.random() < share

    def _with_background(self, scene: Scene, phrase: _Phrase) -> str:
        unsaid = scene.background == "white" and scene.style != "pastel" and not self._chance(_SAID["white"])
        if phrase.is_noun and not unsaid and self._chance(0.45):
            return self._joined(scene.background, phrase.text)
        text = phrase.text
        if phrase.is_noun and self._chance(0.2):
            text = words.INTROS.say(self._rng, subject=text)
        return text if unsaid else self._beside(scene.background, text)

    def _joined(self, background: str, subject: str) -> str:
        """Background and subject in one phrase."""
        rng = self._rng
        if background not in words.SCENERY_PLACES:
            return words.COLOUR_WITH_NOUN.say(rng, subject=subject, **self._colours(background))
        if background in words.SCENERY_TIMES and self._chance(0.3):
            return words.TIME_WITH_NOUN.say(rng, subject=subject, time=words.SCENERY_TIMES[background].pick(rng))
        return words.SCENERY_WITH_NOUN.say(rng, subject=subject, place=words.SCENERY_PLACES[background].pick(rng))

    def _beside(self, background: str, subject: str) -> str:
        """Background and subject set apart by a comma."""
        rng = self._rng
        if background not in words.SCENERY_PLACES:
            return words.COLOUR_WITH_ANY.say(rng, subject=subject, **self._colours(background))
        if background in words.SCENERY_TIMES and self._chance(0.3):
            return words.TIME_WITH_ANY.say(rng, subject=subject, time=words.SCENERY_TIMES[background].pick(rng))
        return words.SCENERY_WITH_ANY.say(
            rng,
            subject=subject,
            place=words.SCENERY_PLACES[background].pick(rng),
            noun=words.SCENERY_NOUNS[background].pick(rng),
        )

    def _background_alone(self, background: str) -> str:
        if background in words.SCENERY_NOUNS:
            return words.SCENERY_ALONE.say(self._rng, noun=words.SCENERY_NOUNS[background].pick(self._rng))
        return words.COLOUR_ALONE.say(self._rng, **self._colours(background))

    def _colours(self, colour: str) -> dict[str, str]:
        return {"colour": words.BACKGROUND_COLOURS[colour].pick(self._rng), "short": words.SHORT_COLOURS[colour]}

    def _subject(self, scene: Scene) -> _Phrase:
        match scene.subject:
            case Single(item, position):
                return self._single(item, position)
            case Pair():
                return self._pair(scene.subject)
            case Group(item, count):
                uncounted = count == words.UNCOUNTED and not is_held_out(scene) and self._chance(_SAID["uncounted"])
                return _Phrase(self._counted(item, None if uncounted else count), is_noun=True)
            case Lettering():
                return self._lettering(scene.subject)
            case None:
                raise ValueError("A scene without a subject has nothing to name.")

    def _single(self, item: Item, position: str) -> _Phrase:
        thing = self._thing(item)
        if position == "centre" and not self._chance(_SAID["centre"]):
            return _Phrase(thing, is_noun=True)
        place = words.PICTURE.pick(self._rng) + words.PLACES[position].pick(self._rng)
        wordings = words.PLACED_NOUN if self._chance(0.25) else words.PLACED
        return _Phrase(wordings.say(self._rng, thing=thing, place=place), is_noun=False)

    def _pair(self, pair: Pair) -> _Phrase:
        first, relation, second = pair.first, pair.relation, pair.second
        inside = relation == "inside"
        if relation in _OPPOSITE and self._chance(0.5):
            first, relation, second = second, _OPPOSITE[relation], first
        a = self._thing(first, says_size=not inside or self._chance(_SAID["inside"]))
        b = self._thing(second, says_size=not inside or self._chance(_SAID["inside"]))
        if self._chance(0.25):
            return _Phrase(words.PAIRS_APART[relation].say(self._rng, a=a, b=b), is_noun=False)
        side = words.SIDES[relation].pick(self._rng)
        wordings = words.PAIR_NOUN if self._chance(0.15) else words.PAIRS
        template = wordings.pick(self._rng)
        if relation == "next to" and template.index("{b}") < template.index("{a}"):
            a, b = b, a  # what is named first stands on the left
        return _Phrase(template.format(a=a, b=b, side=side), is_noun=False)

    def _thing(self, item: Item, says_size: bool = True) -> str:
        """A thing with its number and measure word ("一颗红色的大星星") or without."""
        if self._chance(_COUNTED_ONE):
            return self._counted(item, 1, says_size)
        return self._words(item, self._noun(item)[1], says_size)

    def _counted(self, item: Item, count: int | None, says_size: bool = True) -> str:
        measures, noun = self._noun(item)
        number = words.SOME if count is None else words.NUMBERS[count].pick(self._rng)
        return number + self._measure(measures) + self._words(item, noun, says_size)

    def _noun(self, item: Item) -> tuple[str, str]:
        nouns = item.nouns if isinstance(item, Stranger) else words.NOUNS[item.thing]
        return nouns[0 if self._chance(0.7) else self._rng.randrange(len(nouns))]

    def _measure(self, measures: str) -> str:
        return measures[0] if self._chance(0.7) else self._rng.choice(measures)

    def _words(self, item: Item, noun: str, says_size: bool) -> str:
        rng = self._rng
        said = says_size and (item.size != "medium" or self._chance(_SAID["medium"]))
        if item in self._uncoloured:
            return words.SIZED_ONLY[item.size].say(rng, noun=noun) if said else noun
        if not said and len(noun) > 1 and self._chance(_SHORT_COLOUR):
            return words.SHORT_COLOURS[item.colour] + noun
        colour = words.COLOUR_WORDS[item.colour].pick(rng)
        unsized = words.UNSIZED if len(noun) > 1 else words.UNSIZED_BEFORE_ONE_CHARACTER
        if not said:
            return unsized.say(rng, colour=colour, noun=noun)
        coloured = unsized.texts[0].format(colour=colour, noun=noun)
        return words.SIZED[item.size].say(rng, colour=colour, noun=noun, coloured=coloured)

    def _lettering(self, lettering: Lettering) -> _Phrase:
        rng = self._rng
        surfaces = words.SURFACES[lettering.surface]
        measures, surface = surfaces[0 if self._chance(0.7) else rng.randrange(len(surfaces))]
        text = lettering.text or draw_unwritable(rng, _CHINESE_SHARE)
        needs_quotation = not words.can_go_unquoted(text) or (not lettering.text and text.isascii())
        is_noun, quoted = self._chance(0.5), needs_quotation or self._chance(0.9)
        if is_noun:
            wordings = words.LETTERING_NOUN if quoted else words.LETTERING_NOUN_UNQUOTED
        else:
            wordings = words.LETTERING_CLAUSE if quoted else words.LETTERING_CLAUSE_UNQUOTED
        template = wordings.pick(rng)
        if lettering in self._uncoloured:
            template = template.replace("{colour}的", "").replace("{colour}", "")
        said = template.format(
            one=words.NUMBERS[1].pick(rng) + self._measure(measures) if self._chance(_COUNTED_ONE) else "",
            colour=words.COLOUR_WORDS[lettering.colour].pick(rng),
            surface=surface,
            kind=words.KINDS_OF_TEXT[kind_of_text(text)].pick(rng),
            text=self._quoted(text) if quoted else self._unquoted(text),
        )
        return _Phrase(said, is_noun)

    def _unquoted(self, text: str) -> str:
        return self._rng.choices((text, text.lower(), text.capitalize()), cum_weights=(0.5, 0.85, 1.0))[0]

    def _quoted(self, text: str) -> str:
        cased = self._rng.choices((text, text.lower(), text.capitalize()), cum_weights=(0.8, 0.92, 1.0))[0]
        return words.QUOTATION_MARKS.pick(self._rng).format(cased)
