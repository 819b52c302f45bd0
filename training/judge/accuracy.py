"""How often the judge is right on fresh renders: it must accept what is there, and reject what is not."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from typing import TypedDict

from training.judge.altered import altered
from training.judge.sight import Sight
from training.judge.verdict import CRITERIA, judge_sight
from training.world.scene import Scene, draw_scene

_ATTEMPTS = 50


class Accuracy(TypedDict):
    """Shares in percent, and of how many; a rejection is of a scene that differs by this criterion alone."""

    accepted_pct: float
    accepted_of: int
    rejected_pct: float | None
    rejected_of: int


def measure_accuracy(sights: Sequence[Sight], scenes: Sequence[Scene], seed: int) -> dict[str, Accuracy]:
    """The judge's accuracy for each criterion, on pictures whose `scenes` are known to be right.

    Args:
        sights: what the judge sees.
        scenes: what is there.
        seed: decides what is altered for the scenes to be rejected.
    """
    accepted: dict[str, list[bool]] = defaultdict(list)
    rejected: dict[str, list[bool]] = defaultdict(list)
    rng = random.Random(f"altered {seed}")
    for sight, scene in zip(sights, scenes, strict=True):
        verdict = judge_sight(sight, scene)
        for criterion in CRITERIA:
            says = getattr(verdict, criterion)
            if says is not None:
                accepted[criterion].append(says)
            other = _altered(scene, criterion, rng)
            if other is not None:
                rejected[criterion].append(not getattr(judge_sight(sight, other), criterion))
    return {name: _accuracy(accepted[name], rejected[name]) for name in CRITERIA if accepted[name]}


def _altered(scene: Scene, criterion: str, rng: random.Random) -> Scene | None:
    for _ in range(_ATTEMPTS):
        other = altered(scene, criterion, draw_scene(rng, lambda scene: True))
        if other is not None:
            return other
    return None


def _accuracy(accepted: list[bool], rejected: list[bool]) -> Accuracy:
    return Accuracy(
        accepted_pct=round(100 * sum(accepted) / len(accepted), 2),
        accepted_of=len(accepted),
        rejected_pct=round(100 * sum(rejected) / len(rejected), 2) if rejected else None,
        rejected_of=len(rejected),
    )
