"""`python -m training.evaluate`: what the small model is worth, against the bars; exit status 1 when one is missed.

Nothing heavy is imported here: the painting processes start from this module too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from training.evaluate.cases import Case
    from training.evaluate.pictures import Picture
    from training.evaluate.scores import Judged
    from zimage_ui.generator.base import ModelInfo

_ROOT = Path(__file__).parents[2]
RESULTS = _ROOT / "training" / "results"
# What the judge has learnt to look at.
SIDE = 256
_GPU_WORKERS = 6


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--model", type=Path, default=_ROOT / "zimage_ui" / "mini", help="folder in diffusers layout")
    parser.add_argument("--judge", type=Path, default=RESULTS, help="folder with the judge's weights and its report")
    parser.add_argument("--prompts", type=int, default=500, help="held-out scenes, each said in both languages")
    parser.add_argument("--unknown", type=int, default=60, help="scenes with unknown words, and of unknown things")
    parser.add_argument("--reconstructed", type=int, default=64, help="renders that the autoencoder is measured on")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the pictures in pixels; judged at {SIDE}")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--workers", type=int, default=0, help="processes that share the device; 0 chooses")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--keep", type=Path, help="folder for every picture that the judge finds fault with")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Paint, judge, write; the exit status."""
    begun = time.monotonic()
    asked = options(arguments)
    if asked.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks: the generator takes the device that is there

    from training.evaluate.cases import grid_cases, held_out_cases, unknown_thing_cases, unknown_word_cases

    cases = [
        *held_out_cases(asked.prompts, asked.seed),
        *unknown_word_cases(asked.unknown, asked.seed),
        *unknown_thing_cases(asked.unknown, asked.seed),
        *grid_cases(asked.seed),
    ]
    pictures, judged, info = _paint_and_judge(asked, cases)
    report = _report(asked, info, judged, _reconstruction(asked))
    report["seconds"] = round(time.monotonic() - begun, 1)
    asked.output.mkdir(parents=True, exist_ok=True)
    name = "scores.json" if asked.side == SIDE else f"scores-{asked.side}.json"
    (asked.output / name).write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if asked.side == SIDE:  # the stored sheets go with the stored scores
        _write_sheets(asked.output, pictures, judged)
        _write_sizes(asked)
    if asked.keep is not None:
        _keep_faulty(asked.keep, pictures, judged)
    _show(judged, report)
    return 1 if report["missed_bars"] else 0


def _paint_and_judge(asked: argparse.Namespace, cases: Sequence[Case]) -> tuple[list[Picture], list[Judged], ModelInfo]:
    import torch

    from training.evaluate.pictures import Recipe, paint_all
    from training.evaluate.scores import Judged
    from training.judge.__main__ import WEIGHTS_FILE
    from training.judge.network import load_network
    from training.judge.sight import look
    from training.judge.verdict import judge_sight

    on_gpu = torch.cuda.is_available()
    if asked.device == "cuda" and not on_gpu:
        raise SystemExit("There is no GPU that torch can use: leave --device away, or give cpu.")
    network = load_network(asked.judge / WEIGHTS_FILE, torch.device("cuda" if on_gpu else "cpu"))
    workers = asked.workers or (_GPU_WORKERS if on_gpu else 1)
    pictures, info = paint_all(Recipe(str(asked.model), asked.steps, asked.side, SIDE), cases, workers, print)
    sights = look(network, pictures)
    judged = [Judged(case, judge_sight(sight, case.scene)) for case, sight in zip(cases, sights, strict=True)]
    return pictures, judged, info


def _reconstruction(asked: argparse.Namespace) -> dict[str, float]:
    import torch

    from training.evaluate.reconstruction import SIDES, reconstruction_psnr_db

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        f"{side}x{side}": round(reconstruction_psnr_db(asked.model, side, asked.reconstructed, asked.seed, device), 2)
        for side in SIDES
    }


def _report(
    asked: argparse.Namespace, info: ModelInfo, judged: Sequence[Judged], psnr_db: dict[str, float]
) -> dict[str, Any]:
    from training.evaluate import scores
    from training.evaluate.cases import UNKNOWN_THINGS, UNKNOWN_WORDS
    from training.judge.__main__ import REPORT_FILE

    test = _test_of(judged)
    table = scores.score_table(test)
    judge_report = asked.judge / REPORT_FILE
    return {
        "missed_bars": scores.missed_bars(table, psnr_db),
        "bars": scores.BARS_PCT
        | {"language_gap_points": scores.LANGUAGE_GAP_POINTS, "reconstruction_db": scores.PSNR_BAR_DB},
        "scores": scores.as_json(table),
        "further": scores.as_json(scores.further_scores(test)),
        "sections": {name: scores.as_json(one) for name, one in scores.section_scores(test).items()},
        "with_unknown_words": scores.as_json(scores.score_table(_section_of(judged, UNKNOWN_WORDS))),
        "unknown_things": scores.as_json(scores.score_table(_section_of(judged, UNKNOWN_THINGS))),
        "reconstruction_psnr_db": psnr_db,
        "reconstructed": asked.reconstructed,
        "judge": json.loads(judge_report.read_text(encoding="utf-8")) if judge_report.exists() else None,
        "model": {"name": info.name, "fingerprint": info.fingerprint, "trained": info.trained, "dtype": info.dtype},
        "pictures": {
            "scenes": asked.prompts,
            "side": asked.side,
            "judged_side": SIDE,
            "steps": asked.steps,
            "guidance_scale": 0.0,
        },
        "device": info.device_name,
        "versions": info.versions,
        "command": shlex.join(["python", "-m", "training.evaluate", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


def _test_of(judged: Sequence[Judged]) -> list[Judged]:
    """The test proper, on which the bars are set."""
    from training.evaluate.cases import GRID, UNKNOWN_THINGS, UNKNOWN_WORDS

    return [one for one in judged if one.case.section not in (GRID, UNKNOWN_WORDS, UNKNOWN_THINGS)]


def _section_of(judged: Sequence[Judged], section: str) -> list[Judged]:
    return [one for one in judged if one.case.section == section]


def _write_sheets(output: Path, pictures: Sequence[Picture], judged: Sequence[Judged]) -> None:
    """The grids, and every picture of the test that lost a point, for whoever wants to see what the scores mean."""
    from training.evaluate.cases import GRID
    from training.evaluate.grids import write_grid
    from training.evaluate.scores import is_all_right
    from training.world.captions import LANGUAGES

    of_case = {one.case: picture for picture, one in zip(pictures, judged, strict=True)}

    def write(name: str, wanted: Sequence[Judged]) -> None:
        if wanted:
            write_grid([of_case[one.case] for one in wanted], wanted, output / name)

    for language in LANGUAGES:
        grid = [one for one in _section_of(judged, GRID) if one.case.language == language]
        write(f"grid_{language}.png", grid)
    write("faults.png", [one for one in _test_of(judged) if not is_all_right(one.verdict)])


def _write_sizes(asked: argparse.Namespace) -> None:
    from training.evaluate.pictures import Recipe
    from training.evaluate.sizes import write_size_sheet

    write_size_sheet(Recipe(str(asked.model), asked.steps, asked.side, SIDE), asked.seed, asked.output / "sizes.png")


def _keep_faulty(folder: Path, pictures: Sequence[Picture], judged: Sequence[Judged]) -> None:
    """Every picture that something is wrong with, and beside them what was asked for and what is wrong."""
    from dataclasses import asdict

    from PIL import Image

    from training.evaluate.scores import is_all_right

    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for place, (picture, one) in enumerate(zip(pictures, judged, strict=True)):
        if not is_all_right(one.verdict):
            name = f"{place:05}.png"
            Image.fromarray(picture).save(folder / name)
            rows.append({"file": name, "prompt": one.case.prompt, **asdict(one.verdict), "scene": str(one.case.scene)})
    (folder / "faults.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _show(judged: Sequence[Judged], report: dict[str, Any]) -> None:
    from training.evaluate.cases import UNKNOWN_THINGS, UNKNOWN_WORDS
    from training.evaluate.scores import as_lines, further_scores, score_table

    test = _test_of(judged)
    lines = [*as_lines(score_table(test)), *as_lines(further_scores(test))[1:]]
    for heading, section in (("with unknown words:", UNKNOWN_WORDS), ("unknown things:", UNKNOWN_THINGS)):
        if found := _section_of(judged, section):
            lines += [heading, *as_lines(score_table(found))[1:]]
    lines += [f"reconstruction at {size}: {value:.2f} dB" for size, value in report["reconstruction_psnr_db"].items()]
    lines += [f"MISSED  {line}" for line in report["missed_bars"]]
    print(*lines, sep="\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
