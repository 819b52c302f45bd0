"""How long a GPU takes for something, to choose between ways of doing it.

As a graph, as it will be run: some libraries need longer to launch a kernel than the kernel itself takes.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import torch

from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.giving_way import give_way
from zimage_ui.generator.fast.graphs import CudaRecorder

_Name = TypeVar("_Name", bound=str)

_WARM_REPLAYS, _TIMED_REPLAYS = 2, 5
# In turns: about 3 ms each, after long enough that the clocks have settled.
_TURN_MS = 3.0
_BUSY_MS = 150.0
_WARM_ROUNDS, _ROUNDS = 4, 8
# Times the fastest's own, one after the other, and in the first turns.
_HOPELESS, _BEHIND = 1.15, 1.06


def in_turns_ms(runs: Mapping[_Name, Callable[[], object]], device: torch.device) -> dict[_Name, float]:
    """The milliseconds of each of `runs` on a CUDA `device` under load, by name, medians of rounds in turns.

    After a pause a card is at its highest clock, and whatever keeps its tensor cores busiest is the fastest. At work it
    is at its power limit, and the fastest is what takes the least energy: on an H100, a product of 4160 tokens that is
    1 % faster than another after a pause was 6 % faster then.

    Returns:
        Without those that fail, which is logged, and those far behind the fastest, which drop out early; but always
        with the first, the usual one, where it works.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
        GaveWayError: somebody waits; asked for between the candidates, and between the rounds.
    """
    replays = _all_recorded(runs, device)
    usual = next(iter(replays), None)
    if usual is None:
        return {}
    _keep_busy(replays[usual])
    taken_ms = {name: _median_ms(replay) for name, replay in replays.items()}
    turns = {name: _Turn(replay, math.ceil(_TURN_MS / taken_ms[name])) for name, replay in replays.items()}
    for bound, rounds in ((_HOPELESS, _WARM_ROUNDS), (_BEHIND, _ROUNDS)):
        near = {name: turns[name] for name in _near(taken_ms, bound)}
        if len(near) == 1:
            return {name: taken_ms[name] for name in near}
        taken_ms = _played_ms(near, rounds)
    return taken_ms


class _Turn(NamedTuple):
    replay: Callable[[], None]
    replays: int


def _near(times_ms: Mapping[_Name, float], bound: float) -> list[_Name]:
    """Those whose time is within so many times the least, and the first."""
    usual, bound_ms = next(iter(times_ms)), bound * min(times_ms.values())
    return [name for name, taken in times_ms.items() if name == usual or taken <= bound_ms]


def _played_ms(turns: Mapping[_Name, _Turn], rounds: int) -> dict[_Name, float]:
    """The milliseconds of a replay of each, medians of so many rounds there and back."""
    there = list(turns.items())
    back = there[::-1]  # whoever comes after a thrifty one finds a higher clock
    played = [_round_ms(back if number % 2 else there) for number in range(rounds)]
    return {name: statistics.median(taken[name] for taken in played) for name in turns}


def _round_ms(turns: Sequence[tuple[_Name, _Turn]]) -> dict[_Name, float]:
    """The milliseconds of one replay of each, one turn after the other."""
    give_way()
    turns[0][1].replay()  # so that the host is ahead: an idle card waits for a launch, in what would be the first turn
    marks = [_mark()]
    for _, (replay, replays) in turns:
        for _ in range(replays):
            replay()
        marks.append(_mark())
    marks[-1].synchronize()
    spans = (begun.elapsed_time(ended) for begun, ended in itertools.pairwise(marks))
    return {name: taken / turn.replays for (name, turn), taken in zip(turns, spans, strict=True)}


def _keep_busy(replay: Callable[[], None]) -> None:
    """Until a card that was idle has its clock up; nothing is under way afterwards, so what was recorded may go."""
    for _ in range(math.ceil(_BUSY_MS / _median_ms(replay))):
        replay()
    _mark().synchronize()


def _median_ms(replay: Callable[[], None]) -> float:
    give_way()
    for _ in range(_WARM_REPLAYS):
        replay()
    marks = [_mark()]
    for _ in range(_TIMED_REPLAYS):
        replay()
        marks.append(_mark())
    marks[-1].synchronize()
    return statistics.median(begun.elapsed_time(ended) for begun, ended in itertools.pairwise(marks))


def _mark() -> torch.cuda.Event:
    mark = torch.cuda.Event(enable_timing=True)
    mark.record()
    return mark


def _all_recorded(runs: Mapping[_Name, Callable[[], object]], device: torch.device) -> dict[_Name, Callable[[], None]]:
    """What replays each, in one pool of memory: they never run at the same time."""
    recorder, replays = CudaRecorder(device), {}
    for name, run in runs.items():
        give_way()
        recorded = attempt(partial(recorder.record, run), f"{name} is left out", but=(torch.OutOfMemoryError,))
        if recorded is not None:
            replays[name] = recorded[0]
    return replays
