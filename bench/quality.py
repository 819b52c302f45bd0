"""What the lossy modes do to a picture, against the exact one with the same seed: `python -m bench.quality`.

    python -m bench.quality                              # the bundled model
    python -m bench.quality FOLDER --sizes 1024x1024     # another one, such as the full-size one of bench.full_size
    python -m bench.quality --modes --stock              # no lossy mode; the stock pipeline, and both beside fp32

Every mode draws the same prompts from the same noise with the same weights, 8 steps. Compared are the final latents
(the norm of the difference relative to the exact one's) and the 8-bit pixels (PSNR and SSIM). `another seed` compares
exact pictures of one prompt with each other: what two pictures score that are not meant to be the same. `stock`
compares the stock pipeline's with the exact ones; where both compute in 16 bits, each is also compared with the stock
pipeline in fp32, which shows how far their own rounding leads.

Without a GPU the products in eight bits are emulated: the same rounding of weights and activations, the sums in fp32
(FP8) or int32. That shows the quality, not the speed. Adds to bench/results/quality.json, one part a model and mode.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from bench import mini
from bench.command import parse_size
from bench.full_size import marker
from bench.likeness import psnr_db, ssim
from bench.players import STEPS, STOCK, Cast, Size, Stock
from bench.prompts import new_prompts
from bench.report import RESULTS, PartedResult, circumstances, commit
from bench.spread import spread
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.sources import BUNDLED_FOLDER
from zimage_ui.request import GenerationRequest, Precision
from zimage_ui.settings import tame_third_parties

LOSSY = tuple(precision for precision in Precision if precision is not Precision.EXACT)
ANOTHER_SEED = "another seed"
# Of the exact mode and of the stock pipeline, beside the stock pipeline in fp32.
EXACT_TO_FP32, STOCK_TO_FP32 = "exact, beside stock in fp32", "stock, beside stock in fp32"
_FP32 = "float32"
# Captions of up to 64 tokens: all prompts here are shorter.
_CAPTION_TOKENS = (32, 64)
_PACKAGES = ("torch", "diffusers", "transformers", "numpy", "safetensors")


@dataclass(frozen=True, slots=True)
class Sketch:
    """One picture to draw."""

    prompt: str
    size: Size
    seed: int


@dataclass(frozen=True, slots=True)
class Made:
    """What was drawn: the final latents, fp32, flat; and the pixels, (height, width, 3), 8 bit."""

    latents: np.ndarray
    pixels: np.ndarray


def draw_all(folder: Path, precision: Precision, sketches: Sequence[Sketch]) -> tuple[list[Made], str]:
    """All pictures in one precision, and where they were computed; the model is loaded for it and given back."""
    import torch

    from zimage_ui.generator import engine as engines
    from zimage_ui.generator.loading import load_components
    from zimage_ui.generator.memory import release_memory

    components, info = load_components(str(folder), progress=lambda _: None, precision=precision)
    engine = engines.Engine(components, 2**24)
    for (width, height), tokens in itertools.product({sketch.size for sketch in sketches}, _CAPTION_TOKENS):
        engine.prepare(width, height, tokens)
    finals: list[torch.Tensor] = []

    def noting(*arguments: Any) -> Any:
        sampled = sample(*arguments)
        finals.append(sampled.latents)
        return sampled

    sample, made = engines.sample, []
    with mock.patch.object(engines, "sample", noting):
        for sketch in sketches:
            pixels = _draw(engine, sketch)
            made.append(Made(finals.pop().float().flatten().cpu().numpy(), pixels))
    emulated = components.device.type == "cpu" and precision is Precision.FP8
    del engine, components
    release_memory(torch.device(info.device))
    return made, f"{info.device_name}, {info.dtype}" + (", emulated in fp32" if emulated else "")


def draw_stock(stock: Stock, sketches: Sequence[Sketch]) -> list[Made]:
    """All pictures by the stock pipeline."""
    latents: list[Any] = []

    def noting(*arguments: Any, **options: Any) -> Any:
        stepped = step(*arguments, **options)
        latents.append(stepped[0])
        return stepped

    step, made = stock.pipeline.scheduler.step, []
    with mock.patch.object(stock.pipeline.scheduler, "step", noting):
        for sketch in sketches:
            pixels = stock.draw(sketch.prompt, *sketch.size, sketch.seed).pixels
            made.append(Made(latents[-1].float().flatten().cpu().numpy(), pixels))
            latents.clear()
    return made


def _draw(engine: Any, sketch: Sketch) -> np.ndarray:
    width, height = sketch.size
    request = GenerationRequest(
        prompt=sketch.prompt, width=width, height=height, num_inference_steps=STEPS, seed=sketch.seed, preview=False
    )
    (image,) = engine.generate(request, SILENT, threading.Event()).images
    return np.frombuffer(image.pixels, np.uint8).reshape(height, width, 3)


def compare(made: Sequence[Made], exact: Sequence[Made]) -> dict[str, Any]:
    """Of each pair the three measures, and how they are spread; an infinite PSNR (equal pictures) is None."""
    rows = [_measures(one, other) for one, other in zip(made, exact, strict=True)]
    finite = {name: [row[name] for row in rows if math.isfinite(row[name])] for name in rows[0]}
    return {
        "spread": {name: spread(values) if values else None for name, values in finite.items()},
        "pictures": [
            {name: round(value, 5) if math.isfinite(value) else None for name, value in row.items()} for row in rows
        ],
    }


def _measures(made: Made, exact: Made) -> dict[str, float]:
    difference = np.linalg.norm(made.latents - exact.latents) / np.linalg.norm(exact.latents)
    return {
        "latents_error_pct": float(100 * difference),
        "psnr_db": psnr_db(made.pixels, exact.pixels),
        "ssim": ssim(made.pixels, exact.pixels),
    }


def sketches_for(folder: Path, sizes: Sequence[Size], count: int) -> list[Sketch]:
    """`count` prompts of each size that the model knows, each with two seeds, one after the other."""
    words: Iterator[str] = (
        mini.prompts() if folder == BUNDLED_FOLDER else (prompt.text for prompt in new_prompts(folder, 1))
    )
    return [
        Sketch(prompt, size, seed) for size in sizes for prompt in itertools.islice(words, count) for seed in (1, 2)
    ]


def table(parts: dict[str, Any]) -> str:
    """Medians, and the worst, of each model's modes."""
    lines = [f"{'medians (worst)':<49}{'latents off by':>20}{'PSNR':>20}{'SSIM':>18}"]
    for model, modes in parts.items():
        for mode, figures in modes.items():
            of = figures["spread"]
            cells = [
                f"{of['latents_error_pct']['median']:.2f} ({of['latents_error_pct']['max']:.2f}) %",
                f"{of['psnr_db']['median']:.1f} ({of['psnr_db']['min']:.1f}) dB" if of["psnr_db"] else "equal",
                f"{of['ssim']['median']:.3f} ({of['ssim']['min']:.3f})",
            ]
            lines.append(
                f"{model:<20} {mode:<28}" + "".join(f"{cell:>{20 - (n == 2) * 2}}" for n, cell in enumerate(cells))
            )
    return "\n".join(lines)


def measure(options: argparse.Namespace, result: PartedResult) -> None:
    """Draw with each mode in turn, one in memory at a time, and store each as soon as it is compared."""
    name = str(marker(options.folder).get("name", options.folder.name))
    sketches = sketches_for(options.folder, options.sizes, options.prompts)
    common = {"sizes": [f"{width}x{height}" for width, height in options.sizes], "steps": STEPS}
    exact, place = draw_all(options.folder, Precision.EXACT, sketches)
    others = compare(exact[1::2], exact[::2])
    result.put((name, ANOTHER_SEED), {**common, "computed_on": place, **others})
    for mode in options.modes:
        made, place_of_mode = draw_all(options.folder, Precision(mode), sketches)
        result.put((name, mode), {**common, "computed_on": place_of_mode, **compare(made, exact)})
    if options.stock:
        for part, figures in compare_with_stock(options.folder, sketches, exact):
            result.put((name, part), {**common, "computed_on": place, **figures})


def compare_with_stock(
    folder: Path, sketches: Sequence[Sketch], exact: Sequence[Made]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The stock pipeline's pictures beside the exact ones, and both beside those in fp32 unless they are so anyway.

    One after the other: in fp32 the full size takes minutes to load and draw.
    """
    cast = Cast(folder)
    theirs = _drawn_by_stock(cast.dtype, folder, cast.device, sketches)
    yield STOCK, compare(theirs, exact)
    if cast.dtype != _FP32:
        truth = _drawn_by_stock(_FP32, folder, cast.device, sketches)
        yield EXACT_TO_FP32, compare(exact, truth)
        yield STOCK_TO_FP32, compare(theirs, truth)


def _drawn_by_stock(dtype: str, folder: Path, device: str, sketches: Sequence[Sketch]) -> list[Made]:
    import torch

    from zimage_ui.generator.memory import release_memory

    made = draw_stock(Stock(folder, device, dtype), sketches)
    release_memory(torch.device(device))  # its clocks and its pipeline hold each other
    return made


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options, completed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=BUNDLED_FOLDER, help="of the model [the bundled one]")
    parser.add_argument("--modes", nargs="*", choices=LOSSY, default=list(LOSSY), help="lossy ones [all]")
    parser.add_argument("--stock", action="store_true", help="compare with the stock pipeline, too")
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=parse_size,
        default=[(256, 256), (384, 384)],
        metavar="WIDTHxHEIGHT",
        help="of the pictures [256x256 384x384]",
    )
    parser.add_argument("--prompts", type=int, default=6, help="of each size, with two seeds each [6]")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1), help="of a CPU [2, or one]")
    parser.add_argument("--commit", default=commit(), help="that is measured [as git says]")
    parser.add_argument("--result", type=Path, default=RESULTS / "quality.json", help="[bench/results/quality.json]")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        parser.error(f"{options.folder} is no folder; `python -m bench.engine` builds one")
    options.folder = options.folder.absolute()
    return options


def main(arguments: list[str] | None = None) -> None:
    """Measure, store, print the table."""
    import torch

    options = parse(arguments)
    torch.set_num_threads(options.threads)
    told = {**circumstances(*_PACKAGES), "commit": options.commit, "threads": options.threads}
    result = PartedResult(options.result, told)
    measure(options, result)
    print(table(result.content["parts"]))
    print(f"stored in {options.result}")


if __name__ == "__main__":
    tame_third_parties()
    main()
