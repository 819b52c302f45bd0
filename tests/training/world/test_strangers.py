"""What the model cannot draw means nothing, in whatever sentence and colour it is named."""

import random
import re
from collections import Counter

import pytest

from training.tokenizer import UNKNOWN, make_tokenizer
from training.world import strangers, words_en, words_zh
from training.world.captions import (
    LANGUAGES,
    STRANGERS,
    Language,
    caption,
    distracted,
    told_of_strangers,
    training_caption,
)
from training.world.scene import Group, Item, Scene, Single, draw_scene, draw_training_scene
from training.world.strangers import Noun

TOKENIZER = make_tokenizer()
UNSEEN = {"en": strangers.UNSEEN_ENGLISH, "zh": strangers.UNSEEN_CHINESE}
# They name nothing alone; 马 is known for the sake of 马路.
MEANINGLESS = re.compile("[子马]")
KNOWN_NOUNS = {
    "en": re.compile(
        rf"\b({'|'.join(form for nouns in words_en.NOUNS.values() for noun in nouns for form in noun)})\b"
    ),
    "zh": re.compile("|".join(noun for nouns in words_zh.NOUNS.values() for _, noun in nouns)),
}


def tokens(text: str) -> list[str]:
    return TOKENIZER.encode(text).tokens


def named(noun: Noun, language: Language) -> tuple[str, ...]:
    return noun if language == "en" else noun[1:]


@pytest.mark.parametrize("language", LANGUAGES)
def test_strangers_are_made_of_words_that_the_vocabulary_does_not_have(language: Language) -> None:
    for noun in (*STRANGERS[language], *UNSEEN[language]):
        for text in named(noun, language):
            meant = MEANINGLESS.sub("", text)
            assert set(tokens(meant)) == ({UNKNOWN} if meant else set()), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_many_strangers_and_the_evaluation_has_its_own(language: Language) -> None:
    trained, kept = (
        {text for noun in table[language] for text in named(noun, language)} for table in (STRANGERS, UNSEEN)
    )
    assert len(STRANGERS[language]) >= 60
    assert len(UNSEEN[language]) >= 30
    assert not trained & kept


@pytest.mark.parametrize(
    ("text", "noun", "background"),
    [
        ("a red dog", ("dog", "dogs"), "white"),
        ("a dog", ("dog", "dogs"), "white"),
        ("two green frogs", ("frog", "frogs"), "white"),
        ("a red dog on a blue background", ("dog", "dogs"), "blue"),
        ("a small blue robot in the snow", ("robot", "robots"), "snow"),
        ("一条红色的龙", ("条", "龙"), "white"),
        ("蓝色背景上的一匹白色的马", ("匹", "马"), "blue"),
        ("雪地里的机器人", ("个", "机器人"), "snow"),
    ],
)
def test_what_people_ask_for_in_vain_is_an_empty_page(text: str, noun: Noun, background: str) -> None:
    language: Language = "en" if text.isascii() else "zh"
    rng = random.Random(41)
    scene = Scene(None, background)
    assert any(text == told_of_strangers(scene, language, rng, [noun]) for _ in range(30_000))


@pytest.mark.parametrize("language", LANGUAGES)
def test_of_strangers_alone_nothing_known_is_said_but_the_background(language: Language) -> None:
    rng = random.Random(42)
    places = re.compile("|".join(text for table in scenery_tables(language) for text in table))
    for _ in range(2_000):
        scene = draw_scene(rng, lambda _: True, "nothing")
        text = told_of_strangers(scene, language, rng)
        assert UNKNOWN in tokens(text) or re.search("马", text), text
        assert not KNOWN_NOUNS[language].search(places.sub("", text.lower())), text


def scenery_tables(language: Language) -> list[tuple[str, ...]]:
    """Their texts, the longest first."""
    words = words_en if language == "en" else words_zh
    tables = [words.SCENERY_PLACES, words.SCENERY_NOUNS]
    centre = words_zh.PLACES["centre"].texts  # 中心
    tables += [words_en.SCENERY_TAGS, words_en.STYLE_REMARKS] if language == "en" else [words_zh.SCENERY_TIMES]
    texts = (text for table in tables for wordings in table.values() for text in wordings.texts)
    return [tuple(sorted((*texts, *centre), key=len, reverse=True))]


@pytest.mark.parametrize("language", LANGUAGES)
def test_of_two_things_the_known_one_is_left_alone_in_the_centre(language: Language) -> None:
    scene = Scene(Single(Item("circle", "blue", "big")), "white")
    rng = random.Random(43)
    noun: Noun = ("cube", "cubes") if language == "en" else ("个", "箱")
    texts = Counter(told_of_strangers(scene, language, rng, [noun]) for _ in range(8_000))
    for text in map(str.lower, texts):
        assert re.search("cube|箱", text), text
        assert re.search("circle|disc|disk|dot|ball|圆", text), text
        assert re.search("big|large|huge|giant|大", text), text
    if language == "en":
        assert any(re.search("a red cube left of a (big|large) blue circle", text) for text in texts)
        assert any(re.search("a (big|large) blue circle left of a [a-z]+ cube", text) for text in texts)


@pytest.mark.parametrize("subject", [Single(Item("cat", "red"), "top"), Group(Item("cat", "red"), 2)])
def test_no_stranger_fits_elsewhere(subject: Single | Group) -> None:
    with pytest.raises(ValueError, match="no stranger fits"):
        told_of_strangers(Scene(subject, "white"), "en", random.Random(1))


def test_the_colour_of_the_known_thing_is_left_out_only_if_it_is_the_usual_one_there() -> None:
    rng = random.Random(44)
    for _ in range(2_000):
        text = told_of_strangers(Scene(Single(Item("heart", "pink")), "white"), "en", rng, [("cube", "cubes")])
        assert re.search("pink (heart|diamond)", text.lower()), text


def test_training_has_a_share_of_empty_pages_and_their_captions() -> None:
    rng = random.Random(45)
    scenes = [draw_training_scene(rng) for _ in range(10_000)]
    plain = [scene for scene in scenes if scene.subject is None and not scene.is_scenic]
    assert 0.025 < len(plain) / len(scenes) < 0.045
    assert {"white", "blue"} <= {scene.background for scene in plain}
    assert {scene.style for scene in plain} == {"flat", "outline", "pastel"}
    of_strangers = [UNKNOWN in tokens(training_caption(scene, "en", rng)) for scene in plain for _ in range(4)]
    assert 0.75 < sum(of_strangers) / len(of_strangers) < 0.9
    alone = Counter(caption(Scene(None, "blue"), "en", rng) for _ in range(500))
    assert alone["blue background"] > 0


@pytest.mark.parametrize("language", LANGUAGES)
def test_strangers_beside_a_known_thing_are_often_described(language: Language) -> None:
    rng = random.Random(46)
    scene = Scene(Single(Item("cat", "red")), "white")
    described = bare = 0
    for _ in range(20_000):
        text = distracted(caption(scene, language, rng), language, rng)
        pattern = r"\b([a-z-]+) (?:dog|girl|robot|tiger|snake)\b" if language == "en" else "(.)(?:狗|龙|老虎|椅子|熊)"
        for before in re.findall(pattern, text):
            if before in {"a", "an", "the", "一", "个", "只", "条", "头", "把", "，", "和", "有"}:
                bare += 1
            else:
                described += 1
    assert described + bare > 30
    assert 0.3 < described / (described + bare) < 0.85  # distraction adds adjectives, too


@pytest.mark.parametrize("language", LANGUAGES)
def test_pairs_of_strangers_are_told_as_pairs_of_things_are(language: Language) -> None:
    rng = random.Random(47)
    texts = {told_of_strangers(Scene(None, "blue"), language, rng) for _ in range(500)}
    assert any(
        re.search(r"left of|on top of|next to" if language == "en" else "左边有|旁边有|上方有", text) for text in texts
    )
