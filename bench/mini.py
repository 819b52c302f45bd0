"""The bundled model on the CPU, by our engine and by the stock diffusers pipeline: `python -m bench.mini`.

Both draw the same prompts with the same seeds from the same weights in fp32, 8 steps, without guidance, from prompt
to 8-bit pixels, in one process with the same threads. They take turns, and who begins changes from round to round.
Every prompt is a new one, so no cached embedding helps; ours draws its previews, as it does for the page. How a stage
is timed is in `bench.players`. Loading is timed in processes of their own, after the imports. Writes
bench/results/mini.json.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from bench.players import STEPS, Drawn, Ours, Player, Stock
from bench.report import write_result
from zimage_ui.generator.sources import BUNDLED_FOLDER
from zimage_ui.generator.zimage import ZImageGenerator, import_engine
from zimage_ui.settings import tame_third_parties

BARS_MS = {256: 1500.0, 384: 4000.0}
LOAD_BAR_MS = 2000.0
LOADS = 3
STAGES = ("encode", "sample", "decode")
COLOURS = {"red": "红色", "green": "绿色", "yellow": "黄色", "blue": "蓝色", "pink": "粉色", "white": "白色"}
THINGS = {"circle": "圆形", "house": "房子", "boat": "小船", "cat": "猫", "star": "星星", "tree": "树"}

Timings = dict[str, float]


def prompts() -> Iterator[str]:
    """Prompts that the model knows, no two alike, by turns in English and Chinese."""
    colours = itertools.permutations(COLOURS.items(), 2)
    for ((colour, in_chinese), (behind, behind_in_chinese)), (thing, thing_in_chinese) in itertools.product(
        colours, THINGS.items()
    ):
        yield f"a {colour} {thing} on a {behind} background"
        yield f"{behind_in_chinese}背景上的{in_chinese}{thing_in_chinese}"


def compare(ours: Ours, stock: Stock, side: int, rounds: int, texts: Iterator[str]) -> dict[str, Any]:
    """`rounds` pictures of `side` by both, after one each that does not count."""
    players: dict[str, Player] = {"ours": ours, "stock": stock}
    taken: dict[str, list[Timings]] = {name: [] for name in players}
    differences: list[int] = []
    for turn in range(-1, rounds):
        prompt, drawn = next(texts), dict[str, Drawn]()
        for name in sorted(players, reverse=turn % 2 == 1):
            gc.collect()  # what one leaves behind is not paid for by the other
            drawn[name] = players[name].draw(prompt, side, side, seed=turn + 1)
        if turn >= 0:
            differences.append(_largest_difference(drawn["ours"].pixels, drawn["stock"].pixels))
            for name, each in drawn.items():
                taken[name].append(each.times_ms)
    medians = {name: _medians(rows) for name, rows in taken.items()}
    ratios = [ours_ms["total"] / stock_ms["total"] for ours_ms, stock_ms in zip(*taken.values(), strict=True)]
    return {
        "median_ms": medians,
        "ratio_to_stock": round(statistics.median(ratios), 3),
        "ratios_of_rounds": [round(ratio, 3) for ratio in ratios],
        "stage_ratio_to_stock": {
            stage: round(medians["ours"][stage] / medians["stock"][stage], 3) for stage in STAGES
        },
        "largest_difference_of_255": max(differences),
        "rounds_ms": {name: [_rounded(row) for row in rows] for name, rows in taken.items()},
        "bar_ms": BARS_MS.get(side),
        "meets_bar": medians["ours"]["total"] <= BARS_MS[side] if side in BARS_MS else None,
        "as_fast_as_stock": statistics.median(ratios) <= 1.0,
    }  # fmt: skip


def _largest_difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(np.int16) - other.astype(np.int16)).max())


def _medians(rows: list[Timings]) -> Timings:
    return _rounded({name: statistics.median(row[name] for row in rows) for name in rows[0]})


def _rounded(row: Timings) -> Timings:
    return {name: round(value, 2) for name, value in row.items()}


def load_once(folder: str, threads: int) -> Timings:
    """Milliseconds to import what loading needs, and to load; for a process of its own."""
    tame_third_parties()
    begun = time.perf_counter()
    import_engine()
    import torch

    torch.set_num_threads(threads)
    imported = time.perf_counter()
    generator = ZImageGenerator(folder, embedding_cache_bytes=2**20)
    generator.load(lambda _: None)
    return {"imports": (imported - begun) * 1e3, "load": (time.perf_counter() - imported) * 1e3}


def measure_loading(folder: Path, threads: int) -> dict[str, Any]:
    """Medians over `LOADS` fresh processes, against the bar."""
    rows = []
    for _ in range(LOADS):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            rows.append(process.submit(load_once, str(folder), threads).result())
    medians = _medians(rows)
    return {
        "median_ms": medians,
        "processes_ms": [_rounded(row) for row in rows],
        "bar_ms": LOAD_BAR_MS,
        "meets_bar": medians["load"] <= LOAD_BAR_MS,
    }


def _table(sizes: dict[str, Any]) -> str:
    lines = [f"{'ms, medians':<16}{'encode':>9}{'sample':>9}{'decode':>9}{'total':>9}"]
    for size, figures in sizes.items():
        for name, row in figures["median_ms"].items():
            cells = "".join(f"{row[column]:>9.1f}" for column in (*STAGES, "total"))
            lines.append(f"{size:<9}{name:<7}{cells}")
        bar = f", bar {figures['bar_ms']:.0f} ms" if figures["bar_ms"] else ""
        lines.append(
            f"{'':<9}ours takes {figures['ratio_to_stock']:.3f} of stock's time{bar}; "
            f"pixels differ by at most {figures['largest_difference_of_255']} of 255"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print a table, store all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_FOLDER, help="a folder in diffusers layout")
    parser.add_argument("--sides", type=int, nargs="+", default=list(BARS_MS), help="of square pictures, in pixels")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args(arguments)
    folder: Path = options.model.absolute()
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    loading = measure_loading(folder, options.threads)
    print(f"loaded in {loading['median_ms']['load']:.0f} ms (bar {LOAD_BAR_MS:.0f} ms); {size_bytes / 1e6:.1f} MB")

    import torch

    torch.set_num_threads(options.threads)
    ours, stock = Ours(folder), Stock(folder)
    if ours.info.device != "cpu":
        raise SystemExit("This is about the CPU: hide the GPU with CUDA_VISIBLE_DEVICES= (empty).")
    texts = prompts()
    sizes = {f"{side}x{side}": compare(ours, stock, side, options.rounds, texts) for side in options.sides}
    print(_table(sizes))
    figures = {
        "model": {"name": ours.info.name, "fingerprint": ours.info.fingerprint, "trained": ours.info.trained},
        "size_mb": round(size_bytes / 1e6, 2),
        "device": f"{ours.info.device_name}, {ours.info.dtype}",
        "threads": options.threads,
        "steps": STEPS,
        "rounds": options.rounds,
        "load": loading,
        "sizes": sizes,
    }
    print(write_result("mini", figures, "torch", "diffusers", "transformers", "tokenizers", "safetensors"))


if __name__ == "__main__":
    tame_third_parties()
    main()
