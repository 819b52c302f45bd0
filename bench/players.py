"""Who draws: our engine as the service runs it, and the stock diffusers pipeline, eager or compiled.

All draw from the same folder, the same prompts and the same noise, from prompt to 8-bit pixels in host memory. Clocks
stand around what the stages consist of and change nothing: CUDA events on a GPU, the host's clock elsewhere. A stock
stage is timed around the pipeline's `encode_prompt` and its VAE's `decode`; what is left of its total is `sample`, the
way to a picture included. `forwards` is the time inside the transformer alone, for both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np

from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest, Precision

Size = tuple[int, int]
STEPS = 8
# Our modes, and the options of `ZImageGenerator` that make each. A new mode is one line here.
MODES: dict[str, dict[str, Any]] = {str(precision): {"precision": precision} for precision in Precision}
STOCK, COMPILED = "stock", "stock-compiled"
PLAYERS = (STOCK, COMPILED, *MODES)
_MIB = 2**20
_TORCH_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """One picture and what it took.

    Attributes:
        pixels: (height, width, 3), 8 bit.
        times_ms: encode, sample, decode, forwards (part of sample), total; ours also previews (part of sample).
    """

    pixels: np.ndarray
    times_ms: dict[str, float]


class Player(Protocol):
    """Draws one picture at a time."""

    def draw(self, prompt: str, width: int, height: int, seed: int) -> Drawn:
        """The picture of `prompt`."""


class Spans:
    """Times a function's calls on a device."""

    def __init__(self, device: Any) -> None:
        from zimage_ui.generator.clock import Stopwatch

        self._device = device
        self._watches: list[Stopwatch] = []

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, timed."""
        from zimage_ui.generator.clock import stopwatch

        def timed(*arguments: Any, **options: Any) -> Any:
            watch = stopwatch(self._device)
            self._watches.append(watch)
            watch.start()
            try:
                return call(*arguments, **options)
            finally:
                watch.stop()

        return timed

    def take(self) -> tuple[int, float]:
        """How many calls there were since the last time, and their milliseconds; waits for the device."""
        watches, self._watches = self._watches, []
        return len(watches), sum(watch.elapsed_ms() for watch in watches)


class Ours:
    """Our engine, loaded and warm, in one of its modes.

    Attributes:
        info: what is loaded.
        load_s, warmup_s: what that took.
    """

    def __init__(self, folder: Path, warm_sizes: Sequence[Size] = (), **options: Any) -> None:
        """Load and warm, with all that the service prepares while it is idle.

        Args:
            folder: of the model, in diffusers layout.
            warm_sizes: the sizes to warm; none are those of the model's profile, as in the service.
            options: of `ZImageGenerator`, which make the mode.
        """
        begun = time.perf_counter()
        self._generator = ZImageGenerator(str(folder), embedding_cache_bytes=_MIB, **options)
        with profiles_of(warm_sizes):
            self.info = self._generator.load(lambda _: None)
        loaded = time.perf_counter()
        self._generator.warmup(lambda _: None)
        while self._generator.prepare_next(lambda _: None):
            pass
        self.load_s, self.warmup_s = round(loaded - begun, 2), round(time.perf_counter() - loaded, 2)

    def draw(self, prompt: str, width: int, height: int, seed: int) -> Drawn:
        """The picture of `prompt`, with its previews, as the page gets it."""
        import torch

        from zimage_ui.generator.fast.denoiser import FastDenoiser

        request = GenerationRequest(prompt=prompt, width=width, height=height, num_inference_steps=STEPS, seed=seed)
        forwards = Spans(torch.device(self.info.device))
        with mock.patch.object(FastDenoiser, "predict", forwards.around(FastDenoiser.predict)):
            begun = time.perf_counter()
            result = self._generator.generate(request)
            total_ms = (time.perf_counter() - begun) * 1e3
        count, forwards_ms = forwards.take()
        if result.embedding_cache_hit or not count == result.nfe == STEPS:
            raise SystemExit(f"{prompt!r} was not drawn anew in {STEPS} forwards: the comparison is void.")
        stages = {str(stage): ms for stage, ms in result.stage_ms.items()}
        times_ms = {**stages, "forwards": forwards_ms, "previews": result.preview_ms, "total": total_ms}
        pixels = np.frombuffer(result.images[0].pixels, np.uint8).reshape(height, width, 3)
        return Drawn(pixels, times_ms)

    def close(self) -> None:
        """Give its memory back."""
        self._generator.close()


def profiles_of(sizes: Sequence[Size]) -> AbstractContextManager[Any]:
    """While it is entered, every profile has these sizes; none change nothing."""
    from zimage_ui.generator.profiles import PROFILES

    changed = {name: replace(profile, sizes=tuple(sizes)) for name, profile in PROFILES.items()} if sizes else {}
    return mock.patch.dict(PROFILES, changed)


class Stock:
    """The stock pipeline, untouched but for three clocks.

    Attributes:
        load_s: what loading took.
    """

    def __init__(self, folder: Path, device: str = "cpu", dtype: str = "float32") -> None:
        import torch
        from diffusers import ZImagePipeline

        begun = time.perf_counter()
        self.pipeline = ZImagePipeline.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        self.pipeline.to(device)
        self.load_s = round(time.perf_counter() - begun, 2)
        self.pipeline.set_progress_bar_config(disable=True)
        self._encode, self._forwards, self._decode = (Spans(torch.device(device)) for _ in range(3))
        self.pipeline.encode_prompt = self._encode.around(self.pipeline.encode_prompt)
        self.pipeline.transformer.forward = self._forwards.around(self.pipeline.transformer.forward)
        self.pipeline.vae.decode = self._decode.around(self.pipeline.vae.decode)

    def draw(self, prompt: str, width: int, height: int, seed: int) -> Drawn:
        """The picture of `prompt`; the noise is drawn on the CPU, as ours is."""
        import torch

        begun = time.perf_counter()
        (image,) = self.pipeline(
            prompt, width=width, height=height, num_inference_steps=STEPS, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(seed),
        ).images  # fmt: skip
        pixels = np.asarray(image)
        total_ms = (time.perf_counter() - begun) * 1e3
        (_, encode_ms), (count, forwards_ms), (_, decode_ms) = (
            spans.take() for spans in (self._encode, self._forwards, self._decode)
        )
        if count != STEPS:
            raise SystemExit(f"The stock pipeline took {count} forwards for {STEPS} steps: the comparison is void.")
        times_ms = {"encode": encode_ms, "sample": total_ms - encode_ms - decode_ms, "decode": decode_ms}
        return Drawn(pixels, {**times_ms, "forwards": forwards_ms, "total": total_ms})


class CompiledStock:
    """The same pipeline with `compile_repeated_blocks`; the pipeline itself stays eager between its pictures.

    Sizes are left to the compiler, which makes code for any size when it meets the second one. Code for each size
    alone (`dynamic=False`) would be compiled again for every new length of a prompt, since the stride of the rotary
    table that the pipeline cuts out depends on it.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        transformer = stock.pipeline.transformer
        on_gpu = next(transformer.parameters()).device.type == "cuda"
        # A CPU without a compiler can still go through the motions.
        transformer.compile_repeated_blocks(fullgraph=True, backend="inductor" if on_gpu else "eager")
        compiled = ((block, block._compiled_call_impl) for block in transformer.modules())
        self._calls = [(block, call) for block, call in compiled if call is not None]
        self._use(compiled=False)

    def draw(self, prompt: str, width: int, height: int, seed: int) -> Drawn:
        """The picture of `prompt`; the first of a size compiles."""
        import torch._dynamo

        self._use(compiled=True)
        try:
            with torch._dynamo.config.patch(recompile_limit=64):  # it gives up at 8, with an error
                return self._stock.draw(prompt, width, height, seed)
        finally:
            self._use(compiled=False)

    def _use(self, *, compiled: bool) -> None:
        for block, call in self._calls:
            block._compiled_call_impl = call if compiled else None


def compilations() -> int:
    """How many graphs torch has compiled so far in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


class Cast:
    """The players over one model, each loaded when it is first asked for.

    Attributes:
        device, dtype: where and in what all of them compute, as the product chooses it; torch's names.
    """

    def __init__(self, folder: Path, warm_sizes: Sequence[Size] = ()) -> None:
        """Nobody is loaded yet; `warm_sizes` as `Ours` takes them."""
        from zimage_ui.generator.placement import choose_dtype, read_device

        device = read_device()
        self.device, self.dtype = device.torch_name, _TORCH_NAMES[choose_dtype(device).name]
        self._folder = folder
        self._warm_sizes = tuple(warm_sizes)
        self._players: dict[str, Player] = {}

    def player(self, name: str) -> Player:
        """One of `PLAYERS`."""
        if name not in self._players:
            self._players[name] = self._load(name)
            print(f"  {name} is there: {self.loaded().get(name, {})}", flush=True)
        return self._players[name]

    def mode(self, name: str) -> Ours:
        """One of `MODES`."""
        player = self.player(name)
        assert isinstance(player, Ours)
        return player

    def loaded(self) -> dict[str, dict[str, float]]:
        """How long loading, and warming, took those that are there."""
        return {
            name: {key: getattr(player, key) for key in ("load_s", "warmup_s") if hasattr(player, key)}
            for name, player in self._players.items()
            if not isinstance(player, CompiledStock)
        }

    def dismiss(self) -> None:
        """Send everyone away and give their memory back."""
        import torch

        from zimage_ui.generator.memory import release_memory

        for player in self._players.values():
            if isinstance(player, Ours):
                player.close()
        self._players.clear()
        release_memory(torch.device(self.device))

    def _load(self, name: str) -> Player:
        if name in MODES:
            return Ours(self._folder, self._warm_sizes, **MODES[name])
        if name == STOCK:
            return Stock(self._folder, self.device, self.dtype)
        stock = self.player(STOCK)
        assert isinstance(stock, Stock)
        return CompiledStock(stock)
