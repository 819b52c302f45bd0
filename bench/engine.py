"""Stock diffusers against our engine, on this machine's GPU: `python -m bench.engine FOLDER`.

Who draws: the stock `ZImagePipeline` (eager), the same with `compile_repeated_blocks`, and our engine in each of its
modes, through the product's own loader and generator. From prompt to 8-bit pixels on the host, a new prompt every time,
8 steps, without guidance. Everyone stays loaded and they take turns (two models in bf16 are 40 GB), unless
`--sequential`. FOLDER is a model in diffusers layout; where there is none, the full-size architecture with random
weights is written there first (33 GB and about a minute; speed does not depend on the values).

`--players` names those who draw; all but int8 and nf4 without it:

    stock           the stock pipeline
    stock-compiled  the same, compiled
    exact           our engine in bf16
    fp8, int8       our engine with matrix products in eight bits
    nf4             our engine with matrices kept in four bits

`--beside` names others who take turns with them in `sizes`, and of whom nothing is stored: not all fit into one GPU's
memory together, so several calls compare them with the same one. (`--players int8 nf4 --beside exact`)

`--parts` names what is measured:

    memory       peaks of each player in a process of its own: allocated, reserved, and the whole card's by NVML
    ready        from process start to ready, files in the page cache, twice: the generator alone, and the real server
                 where what it needs is installed
    first        the first ten pictures of each size after the warm-up
    peak         how fast the device multiplies matrices in the transformer's shapes
    sizes        the comparison itself
    steady       fifty pictures of one size
    instruments  the same engine with and without its instruments

Parts run in this order. Each is written to the result as soon as it is there, with the clocks, temperature, power and
throttling that it ran under, and replaces what an earlier call found: several short calls make one result.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from bench import engine_parts
from bench.command import Turns, alone, completed, model_parser, open_result, parse_size, size_name
from bench.engine_parts import Figures
from bench.engine_summary import summary, text_of
from bench.players import COMPILED, MODES, PLAYERS, STOCK, Cast, Size
from bench.prompts import new_prompts
from bench.report import PartedResult
from bench.work import ModelWork
from zimage_ui.request import Precision

PARTS = ("memory", "ready", "first", "peak", "sizes", "steady", "instruments")
SIZES: tuple[Size, ...] = ((1024, 1024), (512, 512), (768, 768), (832, 1248), (1536, 1536))
TINY_SIZES: tuple[Size, ...] = ((64, 64), (96, 64))
# Where there is FP8, and 80 GB, the others have no reason but curiosity; and all at once would not fit there.
USUAL_PLAYERS = tuple(name for name in PLAYERS if name not in (Precision.INT8, Precision.NF4))
# Nothing computes in eight bits on a CPU.
TINY_PLAYERS = (STOCK, COMPILED, str(Precision.EXACT))


class Bench:
    """One call of the benchmark."""

    def __init__(self, options: argparse.Namespace, result: PartedResult) -> None:
        self._options = options
        self._result = result
        self._folder: Path = options.folder
        self._sizes: list[Size] = options.sizes
        self._warm_sizes = self._sizes if options.warm_only else []
        self._modes = [name for name in options.players if name in MODES]
        self._work = ModelWork.of_folder(options.folder)
        self._prompts = new_prompts(options.folder, options.prompt_seed)
        self._probe = engine_parts.gpu_probe()
        self._turns = Turns(result, options.minutes)

    def run(self) -> list[str]:
        """All parts that were asked for, in order; gives what failed or was left out."""
        with closing(self._probe):
            for part in (part for part in PARTS if part in self._options.parts):
                getattr(self, f"_measure_{part}")()
        return self._turns.left_out

    @cached_property
    def _cast(self) -> Cast:
        """Made when the first part in this process needs it: processes of their own have the device to themselves."""
        return Cast(self._folder, self._warm_sizes)

    def _measure_memory(self) -> None:
        for name in self._options.players:
            self._turns.measure(("memory", name), partial(self._memory_of, name))

    def _memory_of(self, name: str) -> Figures:
        seed = self._options.prompt_seed + 1
        measure = partial(engine_parts.memory_alone, self._folder, name, self._sizes, self._warm_sizes, seed)
        return {"sizes": alone(measure)}

    def _measure_ready(self) -> None:
        engine_parts.read_through(self._folder)
        for mode in self._modes:
            start = partial(engine_parts.ready_generator, self._folder, mode, self._warm_sizes)
            self._turns.measure(("ready", mode), partial(twice, start))
        if engine_parts.can_serve():
            self._turns.measure(("ready", "served"), partial(twice, engine_parts.ready_served, self._folder))
        else:
            print("ready/served: left out, the server's libraries are not installed", flush=True)

    def _measure_first(self) -> None:
        for mode in self._modes:
            for size in self._sizes:
                self._turns.measure(("first", mode, size_name(size)), partial(self._first_of, mode, size))

    def _first_of(self, mode: str, size: Size) -> Figures:
        return engine_parts.first_pictures(self._cast.mode(mode), size, self._prompts, self._probe)

    def _measure_peak(self) -> None:
        for size in self._sizes:
            self._turns.measure(("peak", size_name(size)), partial(self._peak_of, size))

    def _peak_of(self, size: Size) -> Figures:
        return engine_parts.peak(self._work, size, self._cast, self._probe)

    def _measure_sizes(self) -> None:
        names = self._options.players
        alone = [[name] for name in names]
        for together in alone if self._options.sequential else [[*self._options.beside, *names]]:
            if self._options.sequential:
                self._cast.dismiss()
            for size in self._sizes:
                if self._turns.in_time(f"sizes/{size_name(size)}"):
                    self._compare_in(size, together)

    def _compare_in(self, size: Size, names: Sequence[str]) -> None:
        place = f"sizes/{size_name(size)}"
        print(f"{place}: {', '.join(names)}", flush=True)
        figures: dict[str, Figures] = {}
        try:
            players = {name: self._cast.player(name) for name in names}
            figures = engine_parts.compare(players, size, self._options.runs, self._prompts, self._work, self._probe)
        except Exception:  # noqa: BLE001 - the next size may do
            traceback.print_exc()
        for name in (name for name in names if name in self._options.players):
            if name in figures:
                loading = self._cast.loaded().get(name, {})
                self._result.put(("sizes", size_name(size), name), {**figures[name], "loading": loading})
            else:
                self._turns.left_out.append(f"{place}/{name}")

    def _measure_steady(self) -> None:
        for mode in self._modes:
            self._turns.measure(("steady", mode, size_name(self._sizes[0])), partial(self._steady_of, mode))

    def _steady_of(self, mode: str) -> Figures:
        ours, pictures = self._cast.mode(mode), self._options.pictures
        return engine_parts.steadiness(ours, self._sizes[0], pictures, self._prompts, self._probe)

    def _measure_instruments(self) -> None:
        for mode in self._modes:
            self._turns.measure(("instruments", mode, size_name(self._sizes[0])), partial(self._instruments_of, mode))

    def _instruments_of(self, mode: str) -> Figures:
        ours, rounds = self._cast.mode(mode), self._options.runs
        return engine_parts.instruments(ours, self._sizes[0], rounds, self._prompts, self._probe)


def twice(start: Callable[..., Figures], *arguments: Any) -> Figures:
    """Two starts: the first may fill the caches that the second finds."""
    first, second = (start(*arguments) for _ in range(2))
    return {"first": first, **second}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, completed."""
    parser = model_parser("engine", __doc__)
    listed: dict[str, Any] = {"nargs": "+", "metavar": "..."}
    parser.add_argument("--parts", choices=PARTS, default=list(PARTS), help=f"of {', '.join(PARTS)} [all]", **listed)
    parser.add_argument(
        "--players",
        choices=PLAYERS,
        help=f"of {', '.join(PLAYERS)} [all but int8 and nf4; --tiny all but the lossy]",
        **listed,
    )
    parser.add_argument("--beside", choices=PLAYERS, default=[], help="take turns with them, unstored [none]", **listed)
    parser.add_argument(
        "--sizes", type=parse_size, help="as WIDTHxHEIGHT; steady and instruments take the first", **listed
    )
    parser.add_argument("--runs", type=int, default=15, help="rounds of sizes and instruments [15]")
    parser.add_argument("--pictures", type=int, default=50, help="of steady [50]")
    parser.add_argument("--prompt-seed", type=int, default=1, help="of the words of all prompts [1]")
    parser.add_argument("--warm-only", action="store_true", help="warm the measured sizes alone; the server warms all")
    parser.add_argument("--sequential", action="store_true", help="one player in memory at a time; no taking turns")
    options = completed(parser.parse_args(arguments), "engine")
    options.players = options.players or list(TINY_PLAYERS if options.tiny else USUAL_PLAYERS)
    options.beside = [name for name in options.beside if name not in options.players]
    options.sizes = options.sizes or list(TINY_SIZES if options.tiny else SIZES)
    return options


def main(arguments: list[str] | None = None) -> None:
    """Build if needed, measure, store, print the table and the bars.

    Raises:
        SystemExit: a part failed or was left out; the others are stored.
    """
    options = parse(arguments)
    result = open_result(options)
    left_out = Bench(options, result).run()
    result.content["summary"] = summary(result.content["parts"], judged=not options.tiny)
    result.write()
    print(text_of(result.content["summary"]))
    print(f"stored in {options.result}")
    if left_out:
        raise SystemExit(f"left out: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
