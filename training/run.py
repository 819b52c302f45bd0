"""What every stage of a training run shares: the clock, the log and the folder.

A stage is given minutes, not steps: rented hardware is. How far it is decides its learning rate, and time spent before
an interruption counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(slots=True)
class Stage:
    """One stage of a run, on the clock.

    Attributes:
        name: for the log.
        folder: of the run.
        budget_s: how long it may take in all.
        device: where it computes.
        clock: seconds since some moment; the stage starts when it is made.
        spent_s: how long it took before this process.
    """

    name: str
    folder: Path
    budget_s: float
    device: torch.device
    clock: Callable[[], float] = time.monotonic
    spent_s: float = 0.0
    _started_at_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._started_at_s = self.clock()

    @property
    def elapsed_s(self) -> float:
        """Time spent on it, interruptions apart."""
        return self.spent_s + self.clock() - self._started_at_s

    @property
    def progress(self) -> float:
        """How far it is, 0..1."""
        return min(1.0, self.elapsed_s / self.budget_s) if self.budget_s else 1.0

    @property
    def is_over(self) -> bool:
        """Whether its time is up."""
        return self.elapsed_s >= self.budget_s

    def log(self, **values: Any) -> None:
        """Print and keep one line of figures."""
        line = {"stage": self.name, "elapsed_s": round(self.elapsed_s, 1), **values}
        print(json.dumps(line), flush=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def learning_rate(peak: float, step: int, progress: float, *, warmup_steps: int, decay_from: float) -> float:
    """Linear warm-up by steps, then flat, then linear to a hundredth from the share `decay_from` of the time on."""
    warm = min(1.0, (step + 1) / warmup_steps)
    cooling = max(0.0, (progress - decay_from) / (1 - decay_from))
    return peak * warm * max(0.01, 1 - cooling)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set each group's rate to `factor` of its own peak, "peak_lr"."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def save_atomically(content: dict[str, Any], path: Path) -> None:
    """`torch.save`, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)
