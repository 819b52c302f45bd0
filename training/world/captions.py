"""Says what is on a picture, in English or Chinese, in the many ways in which people say it.

A caption determines the picture: what it leaves unsaid is medium in size, in the centre, flat in style, or on white.
`distracted` adds what the model has no word for, so that it learns to paint the rest all the same.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from typing import Literal

from training.world import captions_en, captions_zh, words_en, words_zh
from training.world.scene import Scene
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
_STRANGERS: dict[Language, tuple[str, ...]] = {
    "en": ("dog", "girl", "man", "dragon", "robot", "horse", "tiger", "woman", "chair", "snake"),
    "zh": ("狗", "女孩", "男人", "龙", "机器人", "马", "老虎", "椅子"),
}
_WITH_A_STRANGER: dict[Language, tuple[str, ...]] = {
    "en": (
        "a {stranger} and {text}",
        "{text} and a {stranger}",
        "a {stranger} above {text}",
        "{text} with a {stranger}",
        "a {stranger} next to {text}",
        "the {stranger} has {text}",
    ),
    "zh": ("一个{stranger}和{text}", "{text}和一个{stranger}", "{stranger}，{text}", "{stranger}在{text}旁边"),
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
_STRANGER_SHARE, _ACRONYM_SHARE = 0.12, 0.25
_EN_PLACE = re.compile(r"\b(?:left|right|top|bottom|upper|lower|middle|cent(?:er|re|ered)|edge|picture|image)\b")
_ZH_PLACE = re.compile("[左右中里内旁边侧]|[上下](?:方|边|面|部)|部|图|角|位于")
_EN_NOUN = re.compile(
    r"""(?P<article>\b[aA]n? )?(?<!["'“‘])\b(?P<noun>"""
    + "|".join(
        sorted({form for nouns in words_en.NOUNS.values() for noun in nouns for form in noun}, key=len, reverse=True)
    )
    + r")\b"
)
_ZH_MEASURED = re.compile(
    "[一两三四几1-4][" + "".join(sorted({m for nouns in words_zh.NOUNS.values() for ms, _ in nouns for m in ms})) + "]"
)


def caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One of the many ways to say `scene` in `language`."""
    return (captions_en if language == "en" else captions_zh).say(scene, rng)


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
    stranger = _acronym(rng) if rng.random() < _ACRONYM_SHARE else rng.choice(_STRANGERS[language])
    return rng.choice(_WITH_A_STRANGER[language]).format(text=text.rstrip(".。"), stranger=stranger)


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
