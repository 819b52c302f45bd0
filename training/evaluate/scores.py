"""Verdicts become scores, and scores are held against the bars that were set before the model was trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from training.evaluate.cases import Case
from training.judge.verdict import CRITERIA, Verdict
from training.world.captions import LANGUAGES
from training.world.scene import Lettering
from training.world.vocabulary import WORDS

BARS_PCT = {"thing": 90.0, "colour": 95.0, "place": 90.0, "count": 80.0, "background": 95.0, "word": 50.0}
LANGUAGE_GAP_POINTS = 3.0
PSNR_BAR_DB = 30.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A case and what the judge said of its picture."""

    case: Case
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Score:
    """A share in percent, and of how many pictures."""

    pct: float
    count: int

    @classmethod
    def of(cls, answers: Iterable[bool]) -> Score | None:
        """The share of right answers; None without any."""
        kept = list(answers)
        return cls(round(100 * sum(kept) / len(kept), 2), len(kept)) if kept else None


Table = dict[str, dict[str, Score]]


def score_table(judged: Sequence[Judged]) -> Table:
    """For each language a score for each criterion that was asked for."""
    return {
        language: {
            criterion: score
            for criterion in CRITERIA
            if (score := Score.of(_answers(judged, language, criterion))) is not None
        }
        for language in LANGUAGES
    }


def further_scores(judged: Sequence[Judged]) -> Table:
    """What no bar is set for: colour and place where the things are there, whole pictures, words of a list or drawn."""
    table: Table = {}
    for language in LANGUAGES:
        mine = [one for one in judged if one.case.language == language]
        words = [one for one in mine if isinstance(one.case.scene.subject, Lettering)]
        scores = {
            "colour, things found": Score.of(bool(one.verdict.colour) for one in mine if one.verdict.thing),
            "place, things found": Score.of(
                one.verdict.place for one in mine if one.verdict.thing and one.verdict.place is not None
            ),
            "all asked for": Score.of(is_all_right(one.verdict) for one in mine),
            "word, of a list": Score.of(bool(one.verdict.word) for one in words if _text(one) in WORDS),
            "word, letters drawn": Score.of(
                bool(one.verdict.word) for one in words if _text(one) and _text(one) not in WORDS
            ),
        }
        table[language] = {name: score for name, score in scores.items() if score is not None}
    return table


def section_scores(judged: Sequence[Judged]) -> dict[str, Table]:
    """The table of each section apart."""
    sections = dict.fromkeys(one.case.section for one in judged)
    return {name: score_table([one for one in judged if one.case.section == name]) for name in sections}


def is_all_right(verdict: Verdict) -> bool:
    """Whether nothing that was asked for is wrong."""
    return all(getattr(verdict, criterion) is not False for criterion in CRITERIA)


def missed_bars(table: Table, psnr_db: dict[str, float]) -> list[str]:
    """A line for each bar that is not reached, or that nothing was measured for."""
    missed: list[str] = []
    for criterion, bar in BARS_PCT.items():
        found = {language: table[language].get(criterion) for language in LANGUAGES}
        for language, score in found.items():
            if score is None:
                missed.append(f"{criterion} ({language}): no picture was asked for it")
            elif score.pct < bar:
                missed.append(f"{criterion} ({language}): {score.pct:.1f} % of {score.count}, bar {bar:g} %")
        shares = [score.pct for score in found.values() if score is not None]
        if shares and max(shares) - min(shares) > LANGUAGE_GAP_POINTS:
            apart = max(shares) - min(shares)
            missed.append(f"{criterion}: the languages are {apart:.1f} points apart, bar {LANGUAGE_GAP_POINTS:g}")
    missed += [
        f"reconstruction at {size}: {value:.2f} dB, bar {PSNR_BAR_DB:g} dB"
        for size, value in psnr_db.items()
        if not value >= PSNR_BAR_DB  # NaN reaches no bar
    ]
    return missed


def as_lines(table: Table) -> list[str]:
    """The table for people."""
    lines = [f"{'':22} {'English':>9} {'Chinese':>9} {'bar':>6}  pictures in each"]
    for name in dict.fromkeys(name for language in LANGUAGES for name in table[language]):
        scores = [table[language].get(name) for language in LANGUAGES]
        shown = [f"{score.pct:7.1f} %" if score else f"{'-':>9}" for score in scores]
        bar = f"{BARS_PCT[name]:4g} %" if name in BARS_PCT else ""
        lines.append(f"{name:22} {shown[0]} {shown[1]} {bar:>6}  {max(one.count for one in scores if one)}")
    return lines


def as_json(table: Table) -> dict[str, Any]:
    """The table for machines."""
    return {
        language: {name: {"pct": score.pct, "pictures": score.count} for name, score in scores.items()}
        for language, scores in table.items()
    }


def _answers(judged: Sequence[Judged], language: str, criterion: str) -> Iterable[bool]:
    for one in judged:
        answer = getattr(one.verdict, criterion)
        if one.case.language == language and answer is not None:
            yield answer


def _text(judged: Judged) -> str:
    subject = judged.case.scene.subject
    return subject.text if isinstance(subject, Lettering) else ""
