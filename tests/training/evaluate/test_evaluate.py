"""The test that the small model has to pass: its cases, its scores and its sheets."""

import json
import math
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.evaluate.cases import (
    Case,
    grid_cases,
    has_held_out_pair,
    has_held_out_relation,
    has_held_out_word,
    held_out_cases,
    unknown_thing_cases,
    unknown_word_cases,
)
from training.evaluate.grids import MAX_BYTES, write_grid
from training.evaluate.pictures import resized
from training.evaluate.scores import BARS_PCT, Judged, further_scores, missed_bars, score_table
from training.judge.verdict import Verdict
from training.world import words_en, words_zh
from training.world.scene import Group, Lettering, Pair, Scene, Single, is_held_out
from training.world.strangers import CHINESE, ENGLISH

RIGHT = Verdict(True, True, True, True, True, True, True)
GOOD_PSNR = {"256x256": 31.0}


def judged(language: str, verdict: Verdict = RIGHT, text: str = "OPEN") -> Judged:
    scene = Scene(Lettering("sign", "red", text), "white")
    return Judged(Case("test", language, "a sign", scene, 1), verdict)  # type: ignore[arg-type]


def test_the_cases_are_held_out_balanced_and_the_same_every_time() -> None:
    cases = held_out_cases(500, seed=1)
    assert cases == held_out_cases(500, seed=1)
    assert cases != held_out_cases(500, seed=2)
    english, chinese = ([case for case in cases if case.language == language] for language in ("en", "zh"))
    assert [case.scene for case in english] == [case.scene for case in chinese]
    assert [case.seed for case in english] == [case.seed for case in chinese]
    assert len({case.seed for case in english}) == len(english) == 500
    assert all(is_held_out(case.scene) for case in cases)
    subjects = [case.scene.subject for case in english]
    assert sum(isinstance(subject, Single | Pair) for subject in subjects) >= 250
    assert sum(isinstance(subject, Group) for subject in subjects) >= 80
    assert sum(has_held_out_word(case.scene) for case in english) >= 100
    assert sum(has_held_out_pair(case.scene) for case in english) >= 300
    assert sum(has_held_out_relation(case.scene) for case in english) >= 100


def test_the_prompts_are_in_their_language_and_seeds_are_never_shared_between_parts() -> None:
    parts = [
        held_out_cases(40, seed=1),
        grid_cases(seed=1),
        unknown_word_cases(10, seed=1),
        unknown_thing_cases(60, seed=1),
    ]
    for case in (case for part in parts for case in part):
        chinese = any("\u4e00" <= character <= "\u9fff" for character in case.prompt)
        assert chinese or case.language == "en", case.prompt
    seeds = [{case.seed for case in part} for part in parts]
    assert sum(map(len, seeds)) == len(set.union(*seeds))
    assert len(parts[1]) == 2 * 64


def test_unknown_things_are_named_in_colours_and_by_words_that_training_never_uses() -> None:
    cases = unknown_thing_cases(60, seed=1)
    assert cases == unknown_thing_cases(60, seed=1)
    assert Counter(case.language for case in cases) == {"en": 60, "zh": 60}
    trained = {"en": [form for noun in ENGLISH for form in noun], "zh": [noun for _, noun in CHINESE]}
    colours = {
        "en": "|".join(text for wordings in words_en.COLOUR_WORDS.values() for text in wordings.texts),
        "zh": "|".join([*words_zh.SHORT_COLOURS.values(), "橘", "褐", "咖啡", "金", "银"]),
    }
    for case in cases:
        assert case.scene.subject is None
        assert re.search(colours[case.language], case.prompt.lower()), case.prompt
        words = re.findall("[a-z]+", case.prompt.lower()) if case.language == "en" else [case.prompt]
        assert not any(noun in words for noun in trained[case.language]), case.prompt
    assert {case.scene.is_scenic for case in cases} == {True, False}


def test_pictures_of_another_side_are_reduced_for_the_judge() -> None:
    picture = np.zeros((512, 512, 3), np.uint8)
    picture[:, 256:] = 200
    small = resized(picture, 256)
    assert small.shape == (256, 256, 3)
    assert (small[:, :120] == 0).all()
    assert (small[:, 136:] == 200).all()
    assert resized(small, 256) is small


def test_scores_count_only_what_was_asked_and_keep_the_languages_apart() -> None:
    faulty = replace(RIGHT, thing=False, count=None)
    table = score_table([judged("en"), judged("en", faulty), judged("zh")])
    assert (table["en"]["thing"].pct, table["en"]["thing"].count) == (50.0, 2)
    assert (table["en"]["count"].pct, table["en"]["count"].count) == (100.0, 1)
    assert table["zh"]["thing"].pct == 100.0


def test_further_scores_tell_what_was_found_and_which_words() -> None:
    lost = replace(RIGHT, thing=False, colour=False, place=False)
    further = further_scores([judged("en"), judged("en", lost, "QX7"), judged("zh")])["en"]
    assert further["colour, things found"].count == 1
    assert further["colour, things found"].pct == 100.0
    assert further["all asked for"].pct == 50.0
    assert further["word, of a list"].count == further["word, letters drawn"].count == 1


def test_no_bar_is_missed_when_all_is_right() -> None:
    assert missed_bars(score_table([judged("en"), judged("zh")]), GOOD_PSNR) == []


@pytest.mark.parametrize("criterion", BARS_PCT)
def test_every_bar_can_be_missed(criterion: str) -> None:
    faulty = replace(RIGHT, **{criterion: False})
    lines = missed_bars(score_table([judged("en", faulty), judged("zh", faulty)]), GOOD_PSNR)
    assert [line.split(" (")[0] for line in lines] == [criterion, criterion]


def test_the_languages_must_not_be_far_apart() -> None:
    mixed = [judged("en")] * 100 + [judged("zh")] * 96 + [judged("zh", replace(RIGHT, word=False))] * 4
    (line,) = missed_bars(score_table(mixed), GOOD_PSNR)
    assert "word: the languages are 4.0 points apart" in line


@pytest.mark.parametrize("value", [29.99, math.nan])
def test_a_poor_autoencoder_is_named(value: float) -> None:
    (line,) = missed_bars(score_table([judged("en"), judged("zh")]), {"512x512": value})
    assert line.startswith("reconstruction at 512x512")


def test_what_was_never_asked_is_no_success() -> None:
    unasked = replace(RIGHT, count=None)
    lines = missed_bars(score_table([judged("en", unasked), judged("zh", unasked)]), GOOD_PSNR)
    assert len(lines) == 2
    assert all("no picture was asked for it" in line for line in lines)


def test_a_sheet_of_noise_still_fits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(64)]
    write_grid(pictures, [judged("en")] * 64, tmp_path / "grid_en.png")
    assert (tmp_path / "grid_en.png").stat().st_size <= MAX_BYTES
    with Image.open(tmp_path / "grid_en.png") as image:
        assert image.width == image.height
    rows = json.loads((tmp_path / "grid_en.json").read_text(encoding="utf-8"))
    assert (rows[9]["row"], rows[9]["column"], rows[9]["prompt"]) == (2, 2, "a sign")
    assert (rows[9]["judged_right"], rows[9]["wrong"]) == (True, [])


@pytest.mark.model
def test_from_a_model_to_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # main sets it: undone after the test
    from training.evaluate.__main__ import main
    from training.judge.network import JudgeNetwork, save_network
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    build_untrained_model(tmp_path / "model", TINY)
    save_network(JudgeNetwork(), tmp_path / "judge.safetensors")
    command = f"--model {tmp_path}/model --judge {tmp_path} --output {tmp_path} --device cpu"
    command += f" --keep {tmp_path}/faults --prompts 5 --unknown 2 --steps 1 --reconstructed 1"
    status = main(command.split())
    report = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert status == 1
    assert report["missed_bars"]
    assert report["scores"]["en"]["background"]["pictures"] == 5
    assert report["model"]["trained"] is False
    assert report["unknown_things"]["en"].keys() == {"background", "clean"}
    assert report["unknown_things"]["zh"]["clean"]["pictures"] == 2
    assert report["scores"]["en"]["clean"]["pictures"] == 5
    assert (tmp_path / "grid_zh.png").exists()
    assert (tmp_path / "faults" / "faults.json").exists()
    lost = json.loads((tmp_path / "faults.json").read_text(encoding="utf-8"))
    assert len(lost) == 10
    assert all("background" in one["wrong"] or "thing" in one["wrong"] or "word" in one["wrong"] for one in lost)
    with Image.open(tmp_path / "faults.png") as sheet, Image.open(tmp_path / "sizes.png") as sizes:
        assert sheet.height < sheet.width
        assert sizes.height > 5 * 96


@pytest.mark.model
def test_another_side_has_a_report_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    from training.evaluate.__main__ import main
    from training.judge.network import JudgeNetwork, save_network
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    build_untrained_model(tmp_path / "model", TINY)
    save_network(JudgeNetwork(), tmp_path / "judge.safetensors")
    command = f"--model {tmp_path}/model --judge {tmp_path} --output {tmp_path}/out --device cpu --side 64"
    main(f"{command} --prompts 5 --unknown 1 --steps 1 --reconstructed 1".split())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scores-64.json"]
    report = json.loads((tmp_path / "out" / "scores-64.json").read_text(encoding="utf-8"))
    assert (report["pictures"]["side"], report["pictures"]["judged_side"]) == (64, 256)
