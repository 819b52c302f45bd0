"""The generator that runs Z-Image: loading, warm-up and the engine behind the `Generator` protocol.

Making a `ZImageGenerator` costs nothing; torch and diffusers are imported by `load`, on the thread that calls it, so a
server can answer before they are there.
"""

from __future__ import annotations

import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from zimage_ui.errors import NotReadyError
from zimage_ui.generator.base import (
    SILENT,
    CacheStats,
    GenerationListener,
    GenerationResult,
    ModelInfo,
    ProgressListener,
    ShapesListener,
    ShapeStatus,
    SomebodyWaits,
    nobody_waits,
)
from zimage_ui.request import GenerationRequest, Precision

if TYPE_CHECKING:
    from zimage_ui.generator.engine import Engine
    from zimage_ui.generator.preparation import Preparation


def import_engine() -> None:
    """Import what `ZImageGenerator.load` needs, which takes seconds; the compilers find their folder chosen by then."""
    from zimage_ui.generator.libraries import imported_leanly

    is_there = "zimage_ui.generator.loading" in sys.modules  # what has run since then is no import's garbage
    with nullcontext() if is_there else imported_leanly():
        _choose_folder()
        import zimage_ui.generator.engine
        import zimage_ui.generator.loading  # noqa: F401


def _choose_folder() -> None:
    from zimage_ui.generator.compile_cache import keep_compiled
    from zimage_ui.generator.fast.choices import kernel_choices
    from zimage_ui.generator.placement import read_device

    device = read_device()
    if device.is_gpu:
        folder = keep_compiled(device.name)
        if folder is not None:
            kernel_choices().keep_in(folder)


class ZImageGenerator:
    """A `Generator` over a Z-Image model in diffusers layout."""

    def __init__(self, model: str, *, embedding_cache_bytes: int, precision: Precision = Precision.EXACT) -> None:
        """Keep what `load` needs.

        Args:
            model: a folder, a hub id or "auto".
            embedding_cache_bytes: what cached prompt embeddings may take of the host's memory.
            precision: of the transformer's matrix products.
        """
        self._model = model
        self._embedding_cache_bytes = embedding_cache_bytes
        self._precision = precision
        self._engine: Engine | None = None
        self._preparation: Preparation | None = None
        self._info: ModelInfo | None = None

    @property
    def info(self) -> ModelInfo | None:
        """What is loaded; None before `load` has returned."""
        return self._info

    def load(self, progress: ProgressListener) -> ModelInfo:
        """Import torch, find or fetch the model, and bring it to its device.

        Raises:
            ModelError: it cannot be found, fetched or read.
            DeviceMemoryError: it does not fit.
            SettingsError: the device has no such precision.
        """
        import_engine()
        import torch

        from zimage_ui.generator.compile_cache import note_what_varies
        from zimage_ui.generator.engine import Engine
        from zimage_ui.generator.fast.cute_kernels import imported_meanwhile
        from zimage_ui.generator.loading import load_components
        from zimage_ui.generator.placement import read_device
        from zimage_ui.generator.precision import check_precision
        from zimage_ui.generator.preparation import Preparation

        device = read_device()
        reason = check_precision(self._precision, device)  # before anything is fetched or read
        is_exact = self._precision is Precision.EXACT  # the lossy ones need little of it, or nothing
        with imported_meanwhile(torch.device(device.torch_name)) if is_exact else nullcontext():
            components, info = load_components(self._model, progress=progress, precision=self._precision)
        if device.is_gpu:  # on a CPU nothing is compiled
            note_what_varies(info.fingerprint)
        self._engine = Engine(components, self._embedding_cache_bytes)
        self._preparation = Preparation(self._engine, info.profile)
        self._engine.on_made = self._preparation.made
        self._engine.on_ran_out = self._preparation.ran_out
        self._info = replace(info, precision=self._precision, precision_reason=reason)
        return self._info

    def warmup(self, progress: ProgressListener) -> None:
        """Fit the preview, prepare the default size and make a picture of it: the first is as fast as the tenth then.

        Raises:
            NotReadyError: nothing is loaded.
            GenerationError: the full pass failed.
        """
        from zimage_ui.generator.warmup import warm

        engine, info = self._loaded()
        warm(engine, info.profile, progress)

    def shapes(self) -> tuple[ShapeStatus, ...]:
        """What is prepared and what is to be; empty before `load` has returned, and on a CPU."""
        preparation = self._preparation
        return preparation.statuses() if preparation else ()

    def prepare_next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        """Do one short piece of preparing a further shape; as `Generator.prepare_next`.

        Raises:
            NotReadyError: nothing is loaded.
            DeviceLostError: the device answers no more.
        """
        self._loaded()
        assert self._preparation is not None, "it comes with the engine"
        return self._preparation.next(changed, somebody_waits)

    def generate(
        self,
        request: GenerationRequest,
        listener: GenerationListener = SILENT,
        cancel: threading.Event | None = None,
    ) -> GenerationResult:
        """Make the pictures of `request`; previews come only after `warmup`.

        Raises:
            NotReadyError: nothing is loaded.
            JobCancelledError: `cancel` was set; takes effect within one step.
            DeviceMemoryError: the smaller plan did not fit either; memory is released, the next request works.
            DeviceLostError: the device answers no more.
            GenerationError: anything else that went wrong while making it.
        """
        engine, _ = self._loaded()
        assert self._preparation is not None, "it comes with the engine"
        self._preparation.interrupt()
        return engine.generate(request, listener, cancel or threading.Event())

    def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
        """Do one piece of encoding the prompt of `request`; `wait` for it between requests alone."""
        engine = self._engine
        return engine is not None and engine.encode_ahead(request, wait=wait)

    def cache_stats(self) -> CacheStats:
        """The prompt-embedding cache so far."""
        engine = self._engine
        return engine.cache_stats() if engine else CacheStats(capacity_bytes=self._embedding_cache_bytes)

    def close(self) -> None:
        """Release the device; the generator cannot be used afterwards."""
        engine, self._engine, self._info, self._preparation = self._engine, None, None, None
        if engine is not None:
            device = engine.components.device
            del engine
            from zimage_ui.generator.memory import release_memory

            release_memory(device)

    def _loaded(self) -> tuple[Engine, ModelInfo]:
        if self._engine is None or self._info is None:
            raise NotReadyError("The model is not loaded.", "Call load() first.")
        return self._engine, self._info
