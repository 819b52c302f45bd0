"""Says what is on a picture, in English or Chinese, in the many ways in which people say it.

A caption determines the picture: what it leaves unsaid is medium in size, in the centre, flat in style, on white, or in
the colour that such a thing usually has there. `distracted` adds what the model has no word for, so that it learns to
paint the rest all the same; `told_of_strangers` names things that are not on the picture, since nobody could draw them.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from training.world import captions_en, captions_zh, strangers, words_en, words_zh
from training.world.scene import (
    Group,
    Item,
    Lettering,
    Pair,
    Scene,
    Single,
    Stranger,
    Subject,
    colours_left_unsaid,
    draw_scene,
)
from training.world.wordings import Wordings, literal_texts

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

# Frequent words that say nothing about the picture: the tokenizer knows them, so the model has to have met them.
_FILLERS: dict[Language, Wordings] = {
    "en": Wordings(
        "please draw {text}",
        "{text}, please",
        "can you make {text}?",
        "I want to have {text}",
        "{text} as seen from here",
        "{text}; it was made for you and me",
        "{text} (this one or that one, but not all of them)",
        "{text}!",
        "what about {text}?",
        "some more of this: {text}",
        "{text} / please",
        "we would like {text} & no other",
        "{text} - so very good",
        "{text}, by an artist, into which they put their time",
        "she has {text}; he will be there, too",
    ),
    "zh": Wordings(
        "请给我画{text}",
        "我想要{text}",
        "{text}！",
        "帮我做一个这样的图：{text}",
        "{text}，谢谢",
        "你能不能画{text}？",
        "{text}、很好看",
        "这是{text}，也就是我们要的",
        "他说了：{text}",
    ),
}
_PRAISE: dict[Language, tuple[str, ...]] = {
    "en": (
        "masterpiece",
        "best quality",
        "8k",
        "4K",
        "HD",
        "HDR",
        "highly detailed",
        "trending on artstation",
        "ultra realistic",
        "cinematic lighting",
        "award winning",
        "sharp focus",
        "by Greg Rutkowski",
        "octane render",
        "3d render",
        "35mm photograph",
        "studio quality",
        "vivid",
        "intricate details",
        "unreal engine 5",
        "hyperrealistic",
        "f/1.8",
        "UHD",
        "digital painting",
    ),
    "zh": (
        "杰作",
        "高清",
        "最佳质量",
        "8K",
        "4k",
        "超高清",
        "细节丰富",
        "精致",
        "电影感",
        "大师之作",
        "真实感",
        "壁纸",
        "超现实",
        "虚幻引擎5",
    ),
}
_ADJECTIVES: dict[Language, tuple[str, ...]] = {
    "en": (
        "shiny",
        "beautiful",
        "cute",
        "wooden",
        "ancient",
        "magical",
        "fluffy",
        "glowing",
        "happy",
        "rusty",
        "lovely",
        "elegant",
        "mysterious",
        "dancing",
        "funny",
        "realistic",
        "crystal",
        "famous",
        "Italian",
        "steampunk",
        "old-fashioned",
        "well-known",
    ),
    "zh": ("漂亮", "可爱", "古老", "神秘", "闪亮", "木制", "快乐", "优雅", "梦幻", "发光"),
}
# Capitals mean nothing to the model but on signs and posters, where they are lettering.
_ACRONYMS = (
    "UFO",
    "HDR",
    "BMW",
    "USA",
    "NASA",
    "DSLR",
    "CGI",
    "UHD",
    "4K",
    "8K",
    "3D",
    "HD",
    "TV",
    "AI",
    "DJ",
    "VIP",
    "NYC",
    "UK",
    "RGB",
    "PNG",
    "LED",
    "IKEA",
    "LEGO",
    "VHS",
    "ISO",
    "DIY",
    "PVC",
    "R2D2",
    "VW",
    "SUV",
    "RAW",
    "XXL",
)
STRANGERS: dict[Language, tuple[strangers.Noun, ...]] = {"en": strangers.ENGLISH, "zh": strangers.CHINESE}
_WITH_A_STRANGER: dict[Language, tuple[str, ...]] = {
    "en": (
        "a {stranger} and {text}",
        "{text} and a {stranger}",
        "a {stranger} above {text}",
        "{text} with a {stranger}",
        "a {stranger} next to {text}",
        "the {stranger} has {text}",
    ),
    "zh": (
        "一{measure}{stranger}和{text}",
        "{text}和一{measure}{stranger}",
        "{stranger}，{text}",
        "{text}，还有{stranger}",
        "{stranger}在{text}旁边",
    ),
}
# What makes capitals lettering.
_WRITING = re.compile(
    r"(?<!plus )\b(?:sign|signboard|board|poster|placard)\b|牌|海报|宣传画|(?<!十)字|单词|写", re.IGNORECASE
)
_MEDIA = (
    "a photo of",
    "a photograph of",
    "an oil painting of",
    "a watercolor of",
    "a 3d render of",
    "a close-up of",
    "a sketch of",
)
_NAMES_A_THING = ("a ", "an ", "the ", "one ", "two ", "three ", "four ")
_STRANGER_SHARE, _ACRONYM_SHARE = 0.15, 0.25
_DESCRIBED_SHARE = 0.5
_DISTRACTED_SHARE = 0.2
# Of the captions of a picture without a subject, plain or scenic, and of one thing in the centre: those of strangers.
_OF_STRANGERS_ON_PLAIN, _OF_STRANGERS_IN_SCENERY, _OF_STRANGERS_BESIDE = 0.8, 0.25, 0.12
_STRANGE_SUBJECTS = {"single": 0.6, "group": 0.25, "pair": 0.15}
_COLOURLESS_STRANGERS = 0.3
_EN_PLACE = re.compile(r"\b(?:left|right|top|bottom|upper|lower|middle|cent(?:er|re|ered)|edge|picture|image)\b")
_ZH_PLACE = re.compile("[左右中里内旁边侧]|[上下](?:方|边|面|部)|部|图|角|位于")
_EN_NOUN = re.compile(
    r"""(?P<article>\b[aA]n? )?(?<!["'“‘])"""
    # What is written is no noun.
    + "".join(f"(?<!{word} )" for word in (*words_en.SAYING, "reading", *words_en.KINDS_WRITTEN))
    + r"\b(?P<noun>"
    + "|".join(
        sorted({form for nouns in words_en.NOUNS.values() for noun in nouns for form in noun}, key=len, reverse=True)
    )
    + r")\b"
)
_A = re.compile(r"\ba (?=[aeiouAEIOU])")
_ZH_MEASURED = re.compile(
    "[一两三四几1-4][" + "".join(sorted({m for nouns in words_zh.NOUNS.values() for ms, _ in nouns for m in ms})) + "]"
)


def caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One of the many ways to say `scene` in `language`."""
    return _say(scene, colours_left_unsaid(scene, rng), language, rng)


def training_caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """What the model learns `scene` from: a caption of it, or one of strangers, perhaps distracted."""
    of_strangers = _can_have_strangers(scene) and rng.random() < _share_of_strangers(scene)
    text = told_of_strangers(scene, language, rng) if of_strangers else caption(scene, language, rng)
    return distracted(text, language, rng) if rng.random() < _DISTRACTED_SHARE else text


def told_of_strangers(
    scene: Scene,
    language: Language,
    rng: random.Random,
    nouns: Sequence[strangers.Noun] | None = None,
    colourless: float = _COLOURLESS_STRANGERS,
) -> str:
    """What people say who name things that the model cannot draw, so that `scene` is what is left of it.

    Args:
        scene: without a subject, or with one item in the centre, which gets a stranger beside it.
        language: of the caption.
        rng: what decides.
        nouns: of the strangers; those of the training by default.
        colourless: how often a stranger's colour is not said.

    Raises:
        ValueError: the scene's subject leaves no room for a stranger.
    """
    if not _can_have_strangers(scene):
        raise ValueError(f"no stranger fits beside {scene.subject}")
    table = STRANGERS[language] if nouns is None else nouns
    subject = _strange_subject(table, rng) if scene.subject is None else _beside_a_stranger(scene.items[0], table, rng)
    told = replace(scene, subject=subject)
    colourless_ones = (item for item in told.items if isinstance(item, Stranger) and rng.random() < colourless)
    return _say(told, {*colours_left_unsaid(scene, rng), *colourless_ones}, language, rng)


def _say(scene: Scene, uncoloured: Collection[Item | Lettering], language: Language, rng: random.Random) -> str:
    return (captions_en if language == "en" else captions_zh).say(scene, uncoloured, rng)


def _can_have_strangers(scene: Scene) -> bool:
    match scene.subject:
        case Single(position=position):
            return position == "centre"
        case None:
            return True
    return False


def _share_of_strangers(scene: Scene) -> float:
    if scene.subject is not None:
        return _OF_STRANGERS_BESIDE
    return _OF_STRANGERS_IN_SCENERY if scene.is_scenic else _OF_STRANGERS_ON_PLAIN


def _strange_subject(nouns: Sequence[strangers.Noun], rng: random.Random) -> Subject:
    kind = rng.choices(list(_STRANGE_SUBJECTS), list(_STRANGE_SUBJECTS.values()))[0]
    match draw_scene(rng, lambda _: True, kind).subject:
        case Pair(first, relation, second):
            return Pair(_stranger(first, nouns, rng), relation, _stranger(second, nouns, rng))
        case Single(item) | Group(item) as subject:
            return replace(subject, item=_stranger(item, nouns, rng))
    raise AssertionError("strangers are single, in pairs or in groups")


def _beside_a_stranger(known: Item, nouns: Sequence[strangers.Noun], rng: random.Random) -> Pair:
    """Inside or around another thing sizes mostly go unsaid: only what is medium may be there."""

    def fits(scene: Scene) -> bool:
        return isinstance(scene.subject, Pair) and (scene.subject.relation != "inside" or known.size == "medium")

    drawn = draw_scene(rng, fits, "pair")
    assert isinstance(drawn.subject, Pair)
    first, relation, second = drawn.subject.first, drawn.subject.relation, drawn.subject.second
    if rng.random() < 0.5:
        return Pair(known, relation, _stranger(second, nouns, rng))
    return Pair(_stranger(first, nouns, rng), relation, known)


def _stranger(item: Item, nouns: Sequence[strangers.Noun], rng: random.Random) -> Stranger:
    noun = rng.choice(nouns)
    return Stranger(noun[0], item.colour, item.size, (noun,))


def distracted(text: str, language: Language, rng: random.Random) -> str:
    """`text` with words in it that mean nothing to the model, as prompts have them: praise, media, adjectives."""
    shows_writing = _WRITING.search(text) is not None
    if not shows_writing and rng.random() < _STRANGER_SHARE:
        text = _with_stranger(text, language, rng)
    if rng.random() < 0.5:
        acronym = not shows_writing and rng.random() < _ACRONYM_SHARE
        text = _with_adjective(text, language, rng, _acronym(rng) if acronym else rng.choice(_ADJECTIVES[language]))
    if rng.random() < 0.25:
        text = _FILLERS[language].say(rng, text=text.rstrip(".。"))
    elif language == "en" and text.startswith(_NAMES_A_THING) and rng.random() < 0.3:
        medium = rng.choice(_MEDIA)
        if not shows_writing and rng.random() < _ACRONYM_SHARE:
            medium = f"{_acronym(rng)} {medium.removeprefix('an ').removeprefix('a ')}"
        text = f"{medium} {text}"
    if rng.random() < 0.5:
        text = _with_praise(text, language, rng, shows_writing)
    return text


def known_texts() -> Iterator[str]:
    """All text that captions are made of, and the frequent words that say nothing; not the words to be ignored."""
    yield from literal_texts((words_en.WORD_TABLES, words_zh.WORD_TABLES, _FILLERS))


def _acronym(rng: random.Random) -> str:
    """One that people use, or two to four capitals, perhaps a digit behind (one in front would be a number)."""
    if rng.random() < 0.6:
        return rng.choice(_ACRONYMS)
    digit = rng.choice(string.digits) if rng.random() < 0.2 else ""
    return "".join(rng.choices(string.ascii_uppercase, k=rng.randint(2, 4))) + digit


def _with_stranger(text: str, language: Language, rng: random.Random) -> str:
    """`text`, if it names one thing and no place, with another beside it that the model cannot draw."""
    if language == "en":
        names_one = text.startswith(("a ", "an ")) and len(_EN_NOUN.findall(text)) == 1 and not _EN_PLACE.search(text)
    else:
        names_one = len(_ZH_MEASURED.findall(text)) == 1 and not _ZH_PLACE.search(text)
    if not names_one:
        return text
    singular_or_measures, noun = rng.choice(STRANGERS[language])
    stranger = noun if language == "zh" else singular_or_measures
    if rng.random() < _ACRONYM_SHARE:
        stranger = _acronym(rng)
    if rng.random() < _DESCRIBED_SHARE:
        stranger = _described(stranger, language, rng)
    measure = singular_or_measures[0]
    template = rng.choice(_WITH_A_STRANGER[language])
    if language == "en":
        template = _A.sub("an ", template.replace("{stranger}", stranger))
    return template.format(text=text.rstrip(".。"), stranger=stranger, measure=measure)


def _described(stranger: str, language: Language, rng: random.Random) -> str:
    """`stranger` with a colour, a size or an adjective of its own."""
    tables = words_en if language == "en" else words_zh
    colour = rng.choice(list(tables.COLOUR_WORDS.values())).pick(rng)
    adjective = rng.choice(_ADJECTIVES[language])
    if language == "en":
        size = rng.choice((words_en.SIZE_WORDS["small"], words_en.SIZE_WORDS["big"])).pick(rng)
        return f"{rng.choice((colour, size, adjective))} {stranger}"
    return rng.choice((f"{colour}的{stranger}", f"{rng.choice('大小')}{stranger}", f"{adjective}的{stranger}"))


def _with_praise(text: str, language: Language, rng: random.Random, shows_writing: bool) -> str:
    comma = ", " if language == "en" else "，"
    praise = [
        word for word in rng.sample(_PRAISE[language], rng.randint(1, 4)) if not (shows_writing and word.isupper())
    ]
    if not shows_writing and rng.random() < _ACRONYM_SHARE:
        praise.append(_acronym(rng))
    if not praise:
        return text
    return comma.join((*praise, text) if rng.random() < 0.3 else (text.rstrip(".。"), *praise))


def _with_adjective(text: str, language: Language, rng: random.Random, adjective: str) -> str:
    places = list((_EN_NOUN if language == "en" else _ZH_MEASURED).finditer(text))
    if not places:
        return text
    place = rng.choice(places)
    if language == "zh":
        return f"{text[: place.end()]}{adjective}的{text[place.end() :]}"
    article = "" if not place["article"] else f"{place['article'][0]}{'n' if adjective[0] in 'aeiouAEIOU' else ''} "
    return f"{text[: place.start()]}{article}{adjective} {place['noun']}{text[place.end() :]}"
