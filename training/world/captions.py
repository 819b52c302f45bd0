"""Says what is on a picture, in English or Chinese, in the many ways in which people say it.

A caption determines the picture: what it leaves unsaid is medium in size, in the centre, flat in style, or on white.
`distracted` adds what the model has no word for, so that it learns to paint the rest all the same.
"""

from __future__ import annotations

import random
import re
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
_EN_NOUN = re.compile(
    r"""(?P<article>\b[aA]n? )?(?<!["'“‘])\b(?P<noun>"""
    + "|".join(
        sorted({form for nouns in words_en.NOUNS.values() for noun in nouns for form in noun}, key=len, reverse=True)
    )
    + r")\b"
)
_ZH_MEASURED = re.compile(
    "[一两三四1-4][" + "".join(sorted({m for nouns in words_zh.NOUNS.values() for ms, _ in nouns for m in ms})) + "]"
)


def caption(scene: Scene, language: Language, rng: random.Random) -> str:
    """One of the many ways to say `scene` in `language`."""
    return (captions_en if language == "en" else captions_zh).say(scene, rng)


def distracted(text: str, language: Language, rng: random.Random) -> str:
    """`text` with words in it that mean nothing to the model, as prompts have them: praise, media, adjectives."""
    if rng.random() < 0.5:
        text = _with_adjective(text, language, rng)
    if rng.random() < 0.25:
        text = _FILLERS[language].say(rng, text=text.rstrip(".。"))
    elif language == "en" and text.startswith(_NAMES_A_THING) and rng.random() < 0.3:
        text = f"{rng.choice(_MEDIA)} {text}"
    if rng.random() < 0.5:
        text = _with_praise(text, language, rng)
    return text


def known_texts() -> Iterator[str]:
    """All text that captions are made of, and the frequent words that say nothing; not the words to be ignored."""
    yield from literal_texts((words_en.WORD_TABLES, words_zh.WORD_TABLES, _FILLERS))


def _with_praise(text: str, language: Language, rng: random.Random) -> str:
    comma = ", " if language == "en" else "，"
    praise = rng.sample(_PRAISE[language], rng.randint(1, 4))
    return comma.join((*praise, text) if rng.random() < 0.3 else (text.rstrip(".。"), *praise))


def _with_adjective(text: str, language: Language, rng: random.Random) -> str:
    adjective = rng.choice(_ADJECTIVES[language])
    places = list((_EN_NOUN if language == "en" else _ZH_MEASURED).finditer(text))
    if not places:
        return text
    place = rng.choice(places)
    if language == "zh":
        return f"{text[: place.end()]}{adjective}的{text[place.end() :]}"
    article = "" if not place["article"] else f"{place['article'][0]}{'n' if adjective[0] in 'aeiouAEIOU' else ''} "
    return f"{text[: place.start()]}{article}{adjective} {place['noun']}{text[place.end() :]}"
