"""What `bench.engine` measures, part by part. Each function here gives the figures of one part, ready to be stored."""

from __future__ import annotations

import gc
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench.command import size_name
from bench.conditions import Watch
from bench.matmul import product_rates
from bench.players import STEPS, STOCK, Cast, Drawn, Ours, Player, Size, compilations
from bench.prompts import MOST_TOKENS, Prompt, new_prompts
from bench.report import ROOT
from bench.spread import spread
from bench.startup import one_start
from bench.work import TERA, ModelWork
from zimage_ui.request import Precision
from zimage_ui.telemetry.nvml import open_probe
from zimage_ui.telemetry.probe import Probe
from zimage_ui.telemetry.sampler import Sampler

Figures = dict[str, Any]
WARM_ROUNDS, MOST_WARM_ROUNDS = 2, 8
FIRST_PICTURES = 10
_START_DEADLINE_S = 500.0
_NEVER_S = 3600.0
_RUN_PICTURES = 3
_SAMPLER_INTERVAL_S = 1.0  # the service's own default
_SERVER_NEEDS = ("gradio", "fastapi", "uvicorn", "pydantic_settings")


def gpu_probe() -> Probe:
    """The product's own probe, of the GPUs that this process sees."""
    return open_probe(os.environ.get("CUDA_VISIBLE_DEVICES"))


def compare(
    players: Mapping[str, Player],
    size: Size,
    rounds: int,
    prompts: Iterator[Prompt],
    work: ModelWork,
    probe: Probe,
) -> dict[str, Figures]:
    """`rounds` new prompts of `size`, each drawn by everyone in turn; who begins changes from round to round.

    Some rounds before do not count. Who fails in those is left out, and said so.
    """
    able = _able(players, size, prompts)
    taken: dict[str, list[Drawn]] = {name: [] for name in able}
    asked: list[Prompt] = []
    compiled = compilations()
    with Watch(probe) as watch:
        for turn in range(rounds):
            asked.append(next(prompts))
            gc.collect()  # what one leaves behind is not paid for by the other
            for name in _rotated(list(able), turn):
                taken[name].append(able[name].draw(asked[-1].text, *size, seed=turn))
    common = {"compilations_meanwhile": compilations() - compiled, "conditions": watch.summary()}
    return {
        name: {
            **_figures(drawn, size, asked, work),
            **_against_references(name, taken),
            "in_turns_with": [other for other in able if other != name],
            **common,
        }
        for name, drawn in taken.items()
    }


def peak(work: ModelWork, size: Size, cast: Cast, probe: Probe) -> Figures:
    """How fast this device multiplies matrices in the transformer's shapes of `size`."""
    import torch

    tokens = work.shape(*size, MOST_TOKENS).tokens
    with Watch(probe, interval_s=0.1) as watch:
        rates = product_rates(work.transformer["dim"], tokens, torch.device(cast.device), getattr(torch, cast.dtype))
    return {"dtype": cast.dtype, "tokens": tokens, "tflops": rates, "conditions": watch.summary()}


def first_pictures(ours: Ours, size: Size, prompts: Iterator[Prompt], probe: Probe) -> Figures:
    """The first ten pictures of `size`; for an engine that has drawn none of them since its warm-up."""
    totals_ms, conditions = _series(ours, size, FIRST_PICTURES, prompts, probe)
    return {
        "first_to_tenth": round(totals_ms[0] / totals_ms[-1], 4),
        "first_to_median_of_others": round(totals_ms[0] / statistics.median(totals_ms[1:]), 4),
        "pictures_ms": totals_ms,
        "conditions": conditions,
    }


def steadiness(ours: Ours, size: Size, pictures: int, prompts: Iterator[Prompt], probe: Probe) -> Figures:
    """Many pictures of one size in a row."""
    totals_ms, conditions = _series(ours, size, pictures, prompts, probe)
    figures = spread(totals_ms)
    return {
        "total_ms": figures,
        "stdev_to_mean_pct": round(100 * figures["stdev"] / figures["mean"], 3),
        "pictures_ms": totals_ms,
        "conditions": conditions,
    }


def instruments(ours: Ours, size: Size, rounds: int, prompts: Iterator[Prompt], probe: Probe) -> Figures:
    """What measuring costs: the same engine with its instruments and without, in turns.

    On: the stages' CUDA events, and the telemetry's sampler reading all sensors at the service's pace. Off: neither.
    Each draws short runs, so that the sampler has its share of wake-ups in them. Who begins changes from round to
    round, and whoever begins has a card that rested: so rounds count in pairs (`lost_pct`).
    """
    series: dict[str, list[float]] = {"on": [], "off": []}
    ways = {"on": _with_sampler, "off": _without_events}
    with Watch(probe, interval_s=_NEVER_S) as watch:  # no readings but the sampler's
        for turn in range(rounds + rounds % 2):
            gc.collect()
            for name in _rotated(list(ways), turn):
                asked = [next(prompts) for _ in range(_RUN_PICTURES)]
                with ways[name]():
                    totals = [ours.draw(prompt.text, *size, seed=turn).times_ms["total"] for prompt in asked]
                series[name].append(statistics.fmean(totals))
    ratios = [on / off for on, off in zip(series["on"], series["off"], strict=True)]
    return {
        "lost_pct": lost_pct(ratios),
        "ratios": [round(ratio, 5) for ratio in ratios],
        "on_ms": spread(series["on"]),
        "off_ms": spread(series["off"]),
        "conditions": watch.summary(),
    }


def lost_pct(ratios: Sequence[float]) -> float:
    """What is lost in percent, by the ratio of both ways in each round: the median of the means of neighbouring rounds.

    Each way begins in one of two such rounds. What it gains by that, a percent on an H100 at its power limit, is no
    loss of the other's: a median of single rounds falls on either side of it by chance.
    """
    pairs = zip(ratios[::2], ratios[1::2], strict=False)  # an odd one at the end has no counterpart
    return round(100 * (statistics.median(map(statistics.fmean, pairs)) - 1), 3)


def memory_alone(
    folder: Path, name: str, sizes: Sequence[Size], warm_sizes: Sequence[Size], seed: int
) -> dict[str, Figures]:
    """Peaks of memory of one player in each size, smallest first; for a process of its own, where nothing else is."""
    import torch

    cast, prompts = Cast(folder, warm_sizes), new_prompts(folder, seed)
    figures: dict[str, Figures] = {}
    with closing(gpu_probe()) as probe:
        player = cast.player(name)
        on_gpu = cast.device != "cpu"
        for size in sorted(sizes, key=lambda each: each[0] * each[1]):
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            with Watch(probe, interval_s=0.02) as watch:
                _settle(player, size, prompts)
            figures[size_name(size)] = {
                "allocated_peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
                "reserved_peak_bytes": torch.cuda.max_memory_reserved() if on_gpu else None,
                "nvml_peak_bytes": watch.summary().get("nvml_peak_bytes"),
            }
    return figures


def ready_generator(folder: Path, mode: str, warm_sizes: Sequence[Size] = ()) -> Figures:
    """From process start to a warm generator, without a server, in a process of its own.

    Args:
        folder: of the model.
        mode: of ours.
        warm_sizes: to prepare; none are those of the model's profile.
    """
    begun, seen = time.perf_counter(), {}
    command = [sys.executable, "-m", "bench.ready", str(folder), "--mode", mode]
    if warm_sizes:
        command += ["--sizes", *map(size_name, warm_sizes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen[line.strip()] = round(time.perf_counter() - begun, 3)
    if process.returncode or "ready" not in seen:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    return {"seconds_to": seen}


def ready_served(folder: Path) -> Figures:
    """From process start to /readyz of the real server."""
    with tempfile.TemporaryDirectory() as outputs:
        return {"seconds_to": one_start(str(folder), Path(outputs), _START_DEADLINE_S)}


def can_serve() -> bool:
    """Whether what the server needs is installed."""
    return all(importlib.util.find_spec(name) is not None for name in _SERVER_NEEDS)


def read_through(folder: Path) -> int:
    """Read every file of `folder`, so that the page cache holds what it can of them; gives their bytes."""
    size_bytes = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb", buffering=0) as file:
            while piece := file.read(2**24):
                size_bytes += len(piece)
    return size_bytes


def _able(players: Mapping[str, Player], size: Size, prompts: Iterator[Prompt]) -> dict[str, Player]:
    able = {}
    for name, player in players.items():
        try:
            begun = time.perf_counter()
            rounds = _settle(player, size, prompts)
        except Exception:  # noqa: BLE001 - the others are measured all the same
            print(f"{name} cannot draw {size_name(size)} and is left out:\n{traceback.format_exc()}", flush=True)
        else:
            able[name] = player
            print(f"  {name}: {time.perf_counter() - begun:.1f} s for {rounds} that do not count", flush=True)
    return able


def _settle(player: Player, size: Size, prompts: Iterator[Prompt]) -> int:
    """Draw until nothing more is compiled, at least twice; gives how often."""
    for turn in range(MOST_WARM_ROUNDS):
        before = compilations()
        player.draw(next(prompts).text, *size, seed=turn)
        if turn + 1 >= WARM_ROUNDS and compilations() == before:
            break
    return turn + 1


def _rotated(names: list[str], turn: int) -> list[str]:
    place = turn % len(names) if names else 0
    return names[place:] + names[:place]


def _figures(drawn: Sequence[Drawn], size: Size, asked: Sequence[Prompt], work: ModelWork) -> Figures:
    times = {name: [each.times_ms[name] for each in drawn] for name in drawn[0].times_ms}
    works = {
        "total": [work.picture(*size, prompt.tokens, STEPS).total for prompt in asked],
        "forwards": [work.forwards(*size, prompt.tokens, STEPS).total for prompt in asked],
        "encode": [work.encode(prompt.tokens).total for prompt in asked],
        "decode": [work.decode(*size).total for _ in asked],
    }
    tokens = [prompt.tokens for prompt in asked]
    return {
        "times_ms": {name: spread(values) for name, values in times.items()},
        "tflop": {name: round(statistics.median(values) / TERA, 4) for name, values in works.items()},
        "tflops": {name: round(_median_rate(values, times[name]), 4) for name, values in works.items()},
        "prompt_tokens": {"min": min(tokens), "max": max(tokens)},
        "rounds_ms": {name: [round(value, 2) for value in values] for name, values in times.items()},
    }


def _median_rate(works: Sequence[int], times_ms: Sequence[float]) -> float:
    return statistics.median(work / (ms / 1e3) / TERA for work, ms in zip(works, times_ms, strict=True))


def _against_references(name: str, taken: Mapping[str, Sequence[Drawn]]) -> Figures:
    """What was drawn by `name` against the stock pipeline and our exact mode, as far as they took turns with it."""
    figures: Figures = {}
    for reference in (STOCK, str(Precision.EXACT)):
        if reference in taken and reference != name:
            figures |= _against(taken[name], taken[reference], reference)
    return figures


def _against(drawn: Sequence[Drawn], other: Sequence[Drawn], name: str) -> Figures:
    """Speed beside another player's in the same turns, prompt by prompt, and how far the pixels are from its own."""
    pairs = list(zip(drawn, other, strict=True))
    speedups = [theirs.times_ms["total"] / mine.times_ms["total"] for mine, theirs in pairs]
    differences = [float(np.abs(mine.pixels.astype(np.int16) - theirs.pixels).mean()) for mine, theirs in pairs]
    return {
        f"times_as_fast_as_{name}": round(statistics.median(speedups), 4),
        f"mean_difference_to_{name}_of_255": round(statistics.median(differences), 4),
        f"{name}_times_ms": {
            part: round(statistics.median(theirs.times_ms[part] for theirs in other), 4) for part in other[0].times_ms
        },
    }


def _series(
    ours: Ours, size: Size, pictures: int, prompts: Iterator[Prompt], probe: Probe
) -> tuple[list[float], Figures]:
    asked = [next(prompts) for _ in range(pictures)]
    gc.collect()
    with Watch(probe) as watch:
        totals_ms = [
            round(ours.draw(prompt.text, *size, seed=seed).times_ms["total"], 3) for seed, prompt in enumerate(asked)
        ]
    return totals_ms, watch.summary()


@contextmanager
def _with_sampler() -> Iterator[None]:
    with closing(Sampler(gpu_probe(), _SAMPLER_INTERVAL_S)) as sampler:
        sampler.start()
        yield


@contextmanager
def _without_events() -> Iterator[None]:
    from zimage_ui.stages import MonotonicClock

    with mock.patch("zimage_ui.generator.engine.stage_clock", lambda _: MonotonicClock()):
        yield
