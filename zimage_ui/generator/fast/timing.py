"""How long a GPU takes for something, to choose between ways of doing it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable

import torch

_WARM_RUNS = 3
_TIMED_RUNS = 10


def median_ms(run: Callable[[], object]) -> float:
    """The milliseconds of one `run` on the current stream, median of 10 after 3 that do not count."""
    for _ in range(_WARM_RUNS):
        run()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_TIMED_RUNS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        run()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(begun.elapsed_time(ended) for begun, ended in itertools.pairwise(marks))
