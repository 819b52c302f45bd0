from __future__ import annotations

import re
from importlib.resources import files

import pytest

from zimage_ui import errors
from zimage_ui.generator.base import ShapeState, WarmupPhase
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import ImageFormat, Precision, SchedulerName
from zimage_ui.stages import Stage
from zimage_ui.telemetry.nvml import throttle_reason_names
from zimage_ui.ui.texts import LANGUAGES, catalogue, text

HAN = re.compile(r"[\u4e00-\u9fff]")
LITERAL = re.compile(r'"([a-z]+(?:[.-][\w-]+)*)"')
# Keys that are put together where they are used; `test_families` holds each to what there is.
FAMILIES = (
    "stage.",
    "doing.",
    "phase.",
    "precision.",
    "warmup.",
    "error.",
    "throttle.",
    "choice.",
    "form.",
    "meter.",
    "counter.",
    "shape.",
)


def sources() -> str:
    folder = files("zimage_ui.ui")
    scripts = [entry for entry in folder.joinpath("assets").iterdir() if entry.name.endswith(".js")]
    modules = [entry for entry in folder.iterdir() if entry.name.endswith(".py")]
    return "\n".join(entry.read_text("utf-8") for entry in [*scripts, *modules])


def error_codes() -> set[str]:
    def below(kind: type[errors.ZImageError]) -> set[str]:
        return {kind.code}.union(*(below(child) for child in kind.__subclasses__()))

    return below(errors.ZImageError)


def throttle_reasons() -> set[str]:
    every_bit = (throttle_reason_names(1 << bit) for bit in range(12))
    return {name.replace(" ", "_") for names in every_bit for name in names if not name.startswith("unknown")}


def keys_below(prefix: str) -> set[str]:
    return {key.removeprefix(prefix) for key in catalogue()["en"] if key.startswith(prefix)}


def test_both_languages_have_the_same_keys() -> None:
    english, chinese = (catalogue()[language] for language in LANGUAGES)
    assert english.keys() == chinese.keys()
    assert set(catalogue()) == set(LANGUAGES)


@pytest.mark.parametrize("key", catalogue()["en"])
def test_both_languages_take_the_same_values(key: str) -> None:
    values = [sorted(re.findall(r"\{\w+\}", text(key, language))) for language in LANGUAGES]
    assert values[0] == values[1]
    assert all(text(key, language).strip() for language in LANGUAGES)


def test_english_has_no_chinese_in_it_and_chinese_has() -> None:
    assert not [key for key, words in catalogue()["en"].items() if HAN.search(words)]
    names = {"choice.", "meter.cpu"}  # names are the same in every language
    foreign = {key for key, words in catalogue()["zh"].items() if not HAN.search(words)}
    assert {key for key in foreign if not key.startswith(tuple(names))} == set()


def test_no_key_is_unused_and_none_is_missing() -> None:
    written = set(LITERAL.findall(sources()))
    alone = {key for key in catalogue()["en"] if not key.startswith(FAMILIES)}
    assert alone - written == set()
    asked_for = set(re.findall(r'\bt\(\s*"([^"]+)"', sources()))
    assert asked_for - catalogue()["en"].keys() == set()


def test_families_say_everything_that_there_is_and_nothing_else() -> None:
    assert keys_below("stage.") == {*Stage, "queue", "other", "total"}
    assert keys_below("doing.") == set(Stage)
    assert keys_below("phase.") == set(JobPhase)
    assert keys_below("precision.") == set(Precision)
    assert keys_below("warmup.") == set(WarmupPhase)
    assert keys_below("shape.") == set(ShapeState)
    # A cancelled job is no mistake; settings are read before there is a page.
    assert keys_below("error.") == (error_codes() - {"cancelled", "invalid_settings"}) | {"refused", "refused.hint"}
    assert keys_below("throttle.") == throttle_reasons() | {"free", "held", "unknown"}
    assert keys_below("choice.scheduler.") == set(SchedulerName)
    assert keys_below("choice.format.") == set(ImageFormat)


def test_every_meter_and_counter_says_how_it_was_taken() -> None:
    for family in ("meter.", "counter."):
        explained = {key.removesuffix(".how") for key in keys_below(family) if key.endswith(".how")}
        assert explained >= {
            key for key in re.findall(r'key: "(\w+)"', sources()) if f"{family}{key}" in catalogue()["en"]
        }
        assert all(catalogue()["en"][f"{family}{key}.how"] for key in explained)


def test_an_unknown_key_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        text("no.such.key")
