"""How long a GPU takes for something, to choose between ways of doing it."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from functools import cache

import torch

from zimage_ui.generator.fast.graphs import CudaRecorder

_WARM_REPLAYS = 3
_TIMED_REPLAYS = 10


def median_ms(run: Callable[[], object], device: torch.device) -> float:
    """The milliseconds of one `run` on a CUDA `device`, median of 10.

    As a graph, as it will be run: some libraries need longer to launch a kernel than the kernel itself takes.
    """
    replay, _ = CudaRecorder(device, _stream(device)).record(run)
    for _ in range(_WARM_REPLAYS):
        replay()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(_TIMED_REPLAYS + 1)]
    marks[0].record()
    for mark in marks[1:]:
        replay()
        mark.record()
    marks[-1].synchronize()
    return statistics.median(begun.elapsed_time(ended) for begun, ended in itertools.pairwise(marks))


@cache  # torch keeps freed memory for the stream that it was used on: what one candidate used, the next one uses again
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
