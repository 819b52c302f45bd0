"""A card of so many GiB, played by a process that may take no more than such a card would leave it.

What torch's allocator may take is capped before anything is loaded, and the product takes that for the card's size
(`placement.read_device`). The cap holds for the whole process and for good: each function here wants a process of its
own. Without a GPU nothing is capped, and that is said.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench.command import size_name
from bench.conditions import Watch
from bench.engine_parts import gpu_probe
from bench.players import STEPS, Size
from bench.prompts import new_prompts
from bench.spread import spread
from zimage_ui.generator.base import SILENT, DeviceMemory, GenerationListener, ShapeState
from zimage_ui.generator.fast.shapes import padded
from zimage_ui.generator.memory import counted, start_counting
from zimage_ui.generator.zimage import ZImageGenerator, import_engine
from zimage_ui.request import GenerationRequest, Precision, Preview

Figures = dict[str, Any]
# What a context and a desktop take of a card.
TAKEN_BYTES = 2**29
STAGES = ("encode", "sample", "decode", "total")
# The parts of what `prove` measures in which memory is taken after loading.
DRAWING = ("preview", "cold", "preparing", "warm", "preparing_others", "beside_others")
_PROMPT_SEED = 1
_CACHE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Trial:
    """What is loaded and drawn, and on how large a card.

    Attributes:
        folder: of the model, in diffusers layout.
        card_gib: the whole card's memory, in GiB.
        precision: of the transformer's matrix products.
        size: of the pictures.
    """

    folder: Path
    card_gib: int
    precision: Precision
    size: Size


class SmallCard:
    """The product's generator, loaded on such a card with the plan that it chose itself.

    Attributes:
        told: the cap, the plan at loading and its reason, that of the pictures' size, the layers streamed with it, how
            long loading took, and the peaks of memory of loading and of fitting the preview.
        generator: what is loaded.
    """

    def __init__(self, trial: Trial) -> None:
        """Cap this process, then load.

        Raises:
            ZImageError: it cannot be loaded.
        """
        self._size = trial.size
        self._tokens = 0  # of the last prompt, padded
        cap_bytes = keep_to(trial.card_gib)
        import_engine()
        self.generator = ZImageGenerator(
            str(trial.folder), embedding_cache_bytes=_CACHE_BYTES, precision=trial.precision
        )
        begun_s = time.monotonic()
        info = self.generator.load(lambda _: None)
        load_s = time.monotonic() - begun_s
        engine = self.generator._engine
        assert engine is not None, "it is loaded"
        self._device = engine.components.device
        plan = engine._plan_for(*trial.size, pictures=1)
        self.told: Figures = {
            "cap_bytes": cap_bytes,
            "device": info.device_name,
            "loaded_with": info.memory_plan,
            "reason": info.memory_plan_reason,
            "plan": str(plan),
            "streamed_layers": engine.components.streamed_in(plan),
            "load_s": round(load_s, 2),
            "loading": _peaks(counted(self._device)),
        }
        start_counting(self._device)
        engine.fit_preview()  # as every warm-up begins
        self.told["preview"] = _peaks(counted(self._device))
        print(f"  loaded in {load_s:.1f} s: {info.memory_plan} ({info.memory_plan_reason})", flush=True)

    def draw(self, prompt: str, seed: int, listener: GenerationListener = SILENT) -> Figures:
        """The times of one picture, the plan that made it, and its peaks of memory.

        Raises:
            ZImageError: it could not be made.
        """
        begun_s = time.monotonic()
        result = self.generator.generate(self.request(prompt, seed), listener)
        total_ms = (time.monotonic() - begun_s) * 1e3
        if result.embedding_cache_hit:
            raise RuntimeError(f"{prompt!r} was not encoded anew: the measurement is void.")
        self._tokens = padded(result.prompt_tokens)
        print(f"  drawn in {total_ms:.0f} ms", flush=True)
        return {
            **{str(stage): round(ms, 2) for stage, ms in result.stage_ms.items()},
            "total": round(total_ms, 2),
            "drawn": [size_name((image.width, image.height)) for image in result.images],
            "precision": str(result.precision),
            "plan": result.memory_plan,
            "warm": result.shape_warm,
            "encoded_ahead_ms": round(result.encoded_ahead_ms, 2),
            **_peaks(result.memory),
        }

    def request(self, prompt: str, seed: int) -> GenerationRequest:
        """What `draw` asks for."""
        width, height = self._size
        return GenerationRequest(prompt=prompt, width=width, height=height, num_inference_steps=STEPS, seed=seed)

    def prepare(self, *, all_shapes: bool = False) -> Figures:
        """Prepare the shape of the last picture, or all that are left, as the worker does while nobody waits.

        Returns:
            Whether that shape is prepared now (None where nothing is prepared), how long that took, and the peaks of
            memory.
        """
        start_counting(self._device)
        begun_s = time.monotonic()
        while self.generator.prepare_next(lambda _: None) and (all_shapes or self._is(ShapeState.PREPARING)):
            pass
        seconds = round(time.monotonic() - begun_s, 2)
        prepared = self._is(ShapeState.WARM) if self.generator.shapes() else None
        print(f"  prepared: {prepared}, in {seconds:.1f} s", flush=True)
        return {"prepared": prepared, "prepare_s": seconds, **_peaks(counted(self._device))}

    def shapes(self) -> Figures:
        """How many shapes there are, and how many of them are prepared: "known" and "warm"; both 0 on a CPU."""
        states = [shape.state for shape in self.generator.shapes()]
        return {"known": len(states), "warm": states.count(ShapeState.WARM)}

    def allocation_retries(self) -> int | None:
        """How often an allocation had to wait until kept memory was given back; None where nobody counts."""
        import torch

        if self._device.type != "cuda":
            return None
        return int(torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0))

    def _is(self, state: ShapeState) -> bool:
        last = (*self._size, self._tokens)
        shapes = self.generator.shapes()
        return any((each.width, each.height, each.prompt_tokens) == last and each.state is state for each in shapes)


class Announcing(GenerationListener):
    """Has the prompt of `following` encoded a piece after each step but the last, as the worker does."""

    def __init__(self, generator: ZImageGenerator, following: GenerationRequest) -> None:
        self._generator = generator
        self._following = following

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        """Use the wait for the next step."""
        if step < num_steps:
            self._generator.encode_ahead(self._following)


def keep_to(card_gib: int) -> int | None:
    """Cap what this process may allocate on the GPU, for good; gives the cap in bytes, None without a GPU.

    Raises:
        ValueError: the GPU itself has less.
    """
    import torch

    if not torch.cuda.is_available():
        print("  no GPU: nothing is capped", flush=True)
        return None
    cap_bytes, total_bytes = card_gib * 2**30 - TAKEN_BYTES, torch.cuda.get_device_properties(0).total_memory
    if cap_bytes > total_bytes:
        raise ValueError(f"This GPU has {total_bytes / 2**30:.1f} GiB: it cannot play a card of {card_gib} GiB.")
    torch.cuda.set_per_process_memory_fraction(cap_bytes / total_bytes)
    return cap_bytes


def prove(trial: Trial, cold: int, warm: int) -> Figures:
    """Pictures of a shape that nobody has prepared, the same prepared, and again beside all others; of new prompts.

    Args:
        trial: what is drawn.
        cold: how many pictures before preparing.
        warm: how many once that shape is prepared, and how many once all others are, as far as memory goes.

    Raises:
        ZImageError: it could not be loaded or drawn.
    """
    card, prompts = SmallCard(trial), _texts(trial.folder)
    figures = {
        **card.told,
        "size": size_name(trial.size),
        "cold": _series(card, prompts, cold),
        "preparing": card.prepare(),
        "warm": _series(card, prompts, warm),
        "preparing_others": card.prepare(all_shapes=True),
        "beside_others": _series(card, prompts, warm),
        "shapes": card.shapes(),
        "allocation_retries": card.allocation_retries(),
    }
    return {**figures, "broken": broken(figures)}


def compare_ahead(trial: Trial, pictures: int) -> Figures:
    """Times of pictures of new prompts: encoded when the turn comes, beside the picture before, and while written.

    Args:
        trial: what is drawn; before it one picture, and all shapes are prepared as far as there is memory.
        pictures: how many times are taken each way: from picture to picture, and of pictures whose prompts were
            encoded before they were asked for.

    Raises:
        ZImageError: it could not be loaded or drawn.
    """
    card, prompts = SmallCard(trial), _texts(trial.folder)
    card.draw(next(prompts), seed=0)
    figures: Figures = {**card.told, "size": size_name(trial.size), "preparing": card.prepare(all_shapes=True)}
    figures["shapes"] = card.shapes()
    for name in ("in_turn", "ahead"):
        figures[name] = _in_a_row(card, prompts, pictures, announce=name == "ahead")
    medians = [figures[name]["between_ms"]["median"] for name in ("in_turn", "ahead")]
    written = _written(card, prompts, pictures)
    return {**figures, "times_as_fast": round(medians[0] / medians[1], 4), "written": written}


def broken(figures: Mapping[str, Any]) -> list[str]:
    """What of a plan did not hold in `figures`; empty where it did."""
    found, cap_bytes, chosen = [], figures["cap_bytes"], figures["plan"]
    series = [figures[name] for name in ("cold", "warm", "beside_others")]
    others = sorted({plan for each in series for plan in each["plans"]} - {chosen})
    if others:
        found.append(f"drawn with {', '.join(others)} instead of {chosen}")
    if figures["preparing"]["prepared"] is False:
        found.append("the shape could not be prepared")
    cold = unprepared(series[1:])
    if cold:
        found.append(f"{cold} pictures of the prepared shape were drawn unprepared")
    peak_bytes = highest(figures, "reserved_peak_bytes", ("loading", *DRAWING))
    if cap_bytes is not None and peak_bytes is not None and peak_bytes > cap_bytes:
        found.append(f"{peak_bytes} bytes were reserved, {cap_bytes} were allowed")
    return found


def unprepared(series: Iterable[Figures]) -> int:
    """How many pictures of all these `series` were drawn unprepared, where something is prepared at all."""
    return sum(picture["warm"] is False for each in series for picture in each["pictures"])


def highest(figures: Mapping[str, Any], name: str, parts: Sequence[str]) -> int | None:
    """The highest of the peaks called `name` in these `parts`; None where nobody counted."""
    peaks = (figures[part][name] for part in parts)
    return max((peak for peak in peaks if peak is not None), default=None)


def _texts(folder: Path) -> Iterator[str]:
    return (prompt.text for prompt in new_prompts(folder, _PROMPT_SEED))


def _peaks(memory: DeviceMemory | None) -> Figures:
    return {
        "allocated_peak_bytes": memory.allocated_peak_bytes if memory else None,
        "reserved_peak_bytes": memory.reserved_peak_bytes if memory else None,
    }


def _series(card: SmallCard, prompts: Iterator[str], count: int) -> Figures:
    gc.collect()
    with closing(gpu_probe()) as probe, Watch(probe) as watch:
        pictures = [card.draw(next(prompts), seed) for seed in range(count)]
    return {**_summed(pictures), "conditions": watch.summary()}


def _in_a_row(card: SmallCard, prompts: Iterator[str], count: int, *, announce: bool) -> Figures:
    """`count` times from one picture's end to the next one's; the first picture only begins the row."""
    asked = [next(prompts) for _ in range(count + 2)]  # the last is announced and never drawn
    pictures, ends_s = [], []
    gc.collect()
    with closing(gpu_probe()) as probe, Watch(probe) as watch:
        for seed, (prompt, following) in enumerate(pairwise(asked)):
            next_one = card.request(following, seed + 1)
            pictures.append(card.draw(prompt, seed, Announcing(card.generator, next_one) if announce else SILENT))
            ends_s.append(time.monotonic())
    return {
        "between_ms": spread([(end - begin) * 1e3 for begin, end in pairwise(ends_s)]),
        "encoded_ahead": sum(picture["encoded_ahead_ms"] > 0 for picture in pictures[1:]),
        **_summed(pictures[1:]),
        "conditions": watch.summary(),
    }


def _written(card: SmallCard, prompts: Iterator[str], count: int) -> Figures:
    """`count` pictures whose prompts were encoded while nobody asked, and how long that took."""
    pictures, encoding_ms = [], []
    gc.collect()
    with closing(gpu_probe()) as probe, Watch(probe) as watch:
        for seed in range(count):
            prompt = next(prompts)
            begun_s = time.monotonic()
            while card.generator.encode_ahead(card.request(prompt, seed), wait=True):
                pass
            encoding_ms.append((time.monotonic() - begun_s) * 1e3)
            pictures.append(card.draw(prompt, seed))
    return {
        "encoding_ms": spread(encoding_ms),
        "encoded_ahead": sum(picture["encoded_ahead_ms"] > 0 for picture in pictures),
        **_summed(pictures),
        "conditions": watch.summary(),
    }


def _summed(pictures: Sequence[Figures]) -> Figures:
    peaks = {
        name: max((picture[name] for picture in pictures if picture[name] is not None), default=None)
        for name in ("allocated_peak_bytes", "reserved_peak_bytes")
    }
    return {
        "median_ms": {stage: round(statistics.median(each[stage] for each in pictures), 2) for stage in STAGES},
        "plans": sorted({picture["plan"] for picture in pictures}),
        **peaks,
        "pictures": list(pictures),
    }
