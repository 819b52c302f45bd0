"""What is asked of the model: scenes that it never met, each said in English and in Chinese, with fixed seeds."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training.world.captions import LANGUAGES, Language, caption, distracted, told_of_strangers
from training.world.scene import (
    Lettering,
    Pair,
    Scene,
    draw_scene,
    is_held_out_pair,
    is_held_out_relation,
    is_held_out_word,
)
from training.world.strangers import UNSEEN_CHINESE, UNSEEN_ENGLISH, Noun

UNKNOWN_WORDS = "unknown words"
UNKNOWN_THINGS = "unknown things"
_UNSEEN: dict[Language, tuple[Noun, ...]] = {"en": UNSEEN_ENGLISH, "zh": UNSEEN_CHINESE}
GRID = "grid"
GRID_COUNT = 64


@dataclass(frozen=True, slots=True)
class Case:
    """One picture to be made.

    Attributes:
        section: what it is a test of.
        language: of the prompt.
        prompt: the scene in words.
        scene: what should be on it.
        seed: of the generator's noise; the same for the same scene in both languages.
    """

    section: str
    language: Language
    prompt: str
    scene: Scene
    seed: int


def has_held_out_pair(scene: Scene) -> bool:
    """Whether a thing of the scene has a colour that it never had in training."""
    return any(is_held_out_pair(item.thing, item.colour) for item in scene.items)


def has_held_out_relation(scene: Scene) -> bool:
    """Whether its two things never stood so in training."""
    match scene.subject:
        case Pair(first, relation, second):
            return is_held_out_relation(first.thing, relation, second.thing)
    return False


def has_held_out_word(scene: Scene) -> bool:
    """Whether its word was never seen in training."""
    return isinstance(scene.subject, Lettering) and is_held_out_word(scene.subject.text)


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the test: its share of the scenes, their kind, and what is held out of them."""

    name: str
    share: float
    kind: str
    accept: Callable[[Scene], bool]


# Of 500 scenes: 320 with one or two things, 80 groups, 100 words.
_HELD_OUT = (
    _Section("held-out colour, one thing", 0.26, "single", has_held_out_pair),
    _Section("held-out colour, two things", 0.18, "pair", has_held_out_pair),
    _Section("held-out colour, groups", 0.16, "group", has_held_out_pair),
    _Section("held-out relation", 0.20, "pair", has_held_out_relation),
    _Section("held-out word", 0.20, "lettering", has_held_out_word),
)
_EVERYDAY = (
    _Section(GRID, 0.375, "single", lambda scene: True),
    _Section(GRID, 0.25, "pair", lambda scene: True),
    _Section(GRID, 0.125, "group", lambda scene: True),
    _Section(GRID, 0.125, "lettering", lambda scene: True),
    _Section(GRID, 0.125, "scenery", lambda scene: True),
)
_WITH_UNKNOWN_WORDS = (
    _Section(UNKNOWN_WORDS, 0.45, "single", lambda scene: True),
    _Section(UNKNOWN_WORDS, 0.35, "pair", lambda scene: True),
    _Section(UNKNOWN_WORDS, 0.2, "group", lambda scene: True),
)


def held_out_cases(scenes: int, seed: int) -> list[Case]:
    """The test proper: so many scenes with something held out in each, once in each language."""
    return _cases(_HELD_OUT, scenes, f"held out {seed}", 1_000_000 * seed)


def grid_cases(seed: int) -> list[Case]:
    """Pictures to look at: all kinds of scenes, held out or not."""
    return _cases(_EVERYDAY, GRID_COUNT, f"grid {seed}", 1_000_000 * seed + 500_000)


def unknown_word_cases(scenes: int, seed: int) -> list[Case]:
    """Scenes said with words in between that mean nothing to the model, of the kind that training mixes in, too."""
    cases = _cases(_WITH_UNKNOWN_WORDS, scenes, f"unknown {seed}", 1_000_000 * seed + 700_000)
    return [
        Case(
            case.section,
            case.language,
            distracted(case.prompt, case.language, random.Random(f"{case.prompt} {case.seed}")),
            case.scene,
            case.seed,
        )
        for case in cases
    ]


def unknown_thing_cases(scenes: int, seed: int) -> list[Case]:
    """Things that nobody ever named in training, in colours: what is left of such a prompt is its background alone."""
    name = f"unknown things {seed}"
    rng = random.Random(name)
    cases: list[Case] = []
    for number in range(scenes):
        scene = draw_scene(rng, lambda scene: True, "nothing")
        noise = 1_000_000 * seed + 800_000 + number
        for language in LANGUAGES:
            said = random.Random(f"{name} {noise} {language}")
            text = told_of_strangers(scene, language, said, _UNSEEN[language], colourless=0.0)
            cases.append(Case(UNKNOWN_THINGS, language, text, scene, noise))
    return cases


def _cases(sections: tuple[_Section, ...], scenes: int, name: str, first_seed: int) -> list[Case]:
    cases: list[Case] = []
    drawn = 0
    for place, section in enumerate(sections):
        begun, ended = (round(scenes * sum(one.share for one in sections[:end])) for end in (place, place + 1))
        rng = random.Random(f"{name} {section.name} {section.kind}")
        for _ in range(begun, ended):
            scene = draw_scene(rng, section.accept, section.kind)
            seed = first_seed + drawn
            drawn += 1
            for language in LANGUAGES:
                text = caption(scene, language, random.Random(f"{name} {seed} {language}"))
                cases.append(Case(section.name, language, text, scene, seed))
    return cases
