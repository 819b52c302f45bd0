"""The seam between the engine and everything else: what a generator is, what it says, what it answers.

No torch here: a page, a worker and a test talk to a generator through these types alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from zimage_ui.errors import InvalidRequestError
from zimage_ui.request import GeneratedImage, GenerationRequest, Precision, Preview
from zimage_ui.stages import Stage


class WarmupPhase(StrEnum):
    """Where the engine stands between process start and the first fast picture."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupProgress:
    """A true step of the warm-up.

    Attributes:
        phase: what is being done.
        progress: 0..1 over the whole way to ready; never goes back.
        detail: one short line for people, with numbers where there are some ("transformer 3 of 7 files").
        error: set when `phase` is FAILED.
    """

    phase: WarmupPhase
    progress: float
    detail: str = ""
    error: str = ""


ProgressListener = Callable[[WarmupProgress], None]


class ShapeState(StrEnum):
    """Whether pictures of a shape are made at full speed."""

    COLD = "cold"
    PREPARING = "preparing"
    WARM = "warm"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeStatus:
    """A shape of pictures that is prepared, or is to be.

    Attributes:
        width, height: of the pictures, in pixels.
        prompt_tokens: the longest prompts that belong to it.
        num_images: made at once.
        state: where it stands; pictures of a cold shape are made, too, only slower.
    """

    width: int
    height: int
    prompt_tokens: int
    num_images: int
    state: ShapeState


ShapesListener = Callable[[tuple[ShapeStatus, ...]], None]


class GenerationListener:
    """Hears what a generator does; this base hears nothing (the null object)."""

    def stage_started(self, stage: Stage) -> None:
        """`stage` begins now."""

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        """Sampling step `step` (from 1) of `num_steps` is done; `preview` shows the first picture of the batch."""


SILENT = GenerationListener()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamplePrompt:
    """A prompt to begin with, in each language of the page."""

    en: str
    zh: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """How a family of models wants to be used.

    Attributes:
        name: "turbo" (distilled, no guidance), "base" (guided) or "mini" (the bundled small model).
        num_inference_steps, guidance_scale: defaults.
        takes_negative_prompt: whether guidance and a negative prompt do anything.
        sizes: (width, height) presets, the default first.
        examples: prompts that such models draw well, the best first.
    """

    name: str
    num_inference_steps: int
    guidance_scale: float
    takes_negative_prompt: bool
    sizes: tuple[tuple[int, int], ...]
    examples: tuple[ExamplePrompt, ...] = ()

    def check(self, request: GenerationRequest) -> None:
        """See that `request` can be made as it says.

        Raises:
            InvalidRequestError: it asks for guidance, which such a model was distilled to do without.
        """
        if request.guidance_scale > 0 and not self.takes_negative_prompt:
            raise InvalidRequestError(
                f"guidance_scale is {request.guidance_scale:g}; the loaded model ({self.name}) works without guidance.",
                "Set it to 0: guidance would only double the work and spoil the picture.",
                param="guidance_scale",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded, where, and why so.

    Attributes:
        name: for people.
        source: the folder or hub id that it came from.
        source_reason: why it is this one; empty when it was asked for by name.
        fingerprint: 16 hex digits that change when any weight file or config changes.
        profile: how to use it.
        trained: False for random weights; whatever shows a picture of it says "untrained".
        device: torch's name ("cuda:0", "cpu").
        device_name: for people ("NVIDIA H100 80GB HBM3", "CPU, 2 threads").
        dtype, dtype_reason: the compute type and why it was chosen.
        memory_plan, memory_plan_reason: how the parts share the device's memory and why.
        precision, precision_reason: how exactly the transformer's matrix products are computed and why.
        max_prompt_tokens: longer prompts are cut, and it is said.
        versions: package name -> version, of all that shapes the pixels.
        load_ms: from the first file opened to the last weight in place.
    """

    name: str
    source: str
    fingerprint: str
    profile: ModelProfile
    trained: bool
    device: str
    device_name: str
    dtype: str
    dtype_reason: str
    memory_plan: str
    memory_plan_reason: str
    max_prompt_tokens: int
    versions: dict[str, str] = field(default_factory=dict)
    load_ms: float = 0.0
    source_reason: str = ""
    precision: Precision = Precision.EXACT
    precision_reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheStats:
    """The prompt-embedding cache in numbers; `saved_ms` is the text-encoder time that hits did not have to spend."""

    hits: int = 0
    misses: int = 0
    entries: int = 0
    size_bytes: int = 0
    capacity_bytes: int = 0
    saved_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """torch's two views of device memory, in bytes, at their peak over one job; NVML's third view is telemetry's."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """What one request became.

    Attributes:
        images: one for each seed, in order.
        stage_ms: encode, sample and decode; they touch, so their sum is the engine's total.
        nfe: transformer forwards really run, for one picture of the batch.
        embedding_cache_hit: the prompt needed no text encoder.
        prompt_tokens: tokens given to the model.
        truncated_tokens: tokens beyond the model's maximum that were cut off (0 for most prompts).
        preview_ms: what all previews of this job cost together (part of sample).
        memory: None where the device keeps no such count.
        memory_plan: the plan that really made it (a smaller one after running out of memory).
        shape_warm: whether its shape had been prepared; None on a device that prepares nothing.
        precision: of the transformer's matrix products.
        encoded_ahead_ms: what of the encoding was done before the request's turn (`encode_ahead`); not part of encode.
    """

    images: tuple[GeneratedImage, ...]
    stage_ms: dict[Stage, float]
    nfe: int
    embedding_cache_hit: bool
    prompt_tokens: int
    truncated_tokens: int
    preview_ms: float
    memory: DeviceMemory | None = None
    memory_plan: str = ""
    shape_warm: bool | None = None
    precision: Precision = Precision.EXACT
    encoded_ahead_ms: float = 0.0


# Whether anybody waits for the device; asked by work that can give way.
SomebodyWaits = Callable[[], bool]


def nobody_waits() -> bool:
    """For work that is in nobody's way."""
    return False


class Generator(Protocol):
    """Makes pictures.

    One thread calls `load`, `warmup`, `prepare_next`, `generate` and `encode_ahead`; `info`, `shapes` and `cache_stats`
    may be read from any.
    """

    @property
    def info(self) -> ModelInfo | None:
        """What is loaded; None before `load` has returned."""

    def load(self, progress: ProgressListener) -> ModelInfo:
        """Bring the model to its device, reporting real progress (phases DOWNLOADING and LOADING, 0..1 of the load).

        Raises:
            ModelError: it cannot be found, fetched or read.
            DeviceMemoryError: it does not fit.
        """

    def warmup(self, progress: ProgressListener) -> None:
        """Make the first request of the default size as fast as the tenth (phase WARMING, 0..1 of the warm-up).

        Raises:
            GenerationError: the full pass failed.
        """

    def shapes(self) -> tuple[ShapeStatus, ...]:
        """What is prepared and what is to be, the default first; empty on a device that prepares nothing."""

    def prepare_next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        """Do one short piece of what makes pictures of a further shape faster; for whoever has nothing else to do.

        Args:
            changed: hears how all shapes stand whenever one of them changes.
            somebody_waits: is asked now and then: a piece that takes long gives way to whoever it is, and is begun anew
                by a later call.

        Returns:
            Whether anything is left to do before the next `generate`, or was until now.

        Raises:
            DeviceLostError: the device answers no more.
        """

    def generate(
        self,
        request: GenerationRequest,
        listener: GenerationListener = SILENT,
        cancel: threading.Event | None = None,
    ) -> GenerationResult:
        """Make the pictures of `request` (whose seed is drawn).

        Raises:
            JobCancelledError: `cancel` was set; takes effect within one step.
            DeviceMemoryError: the smaller plan did not fit either; memory is released, the next request works.
            GenerationError: anything else that went wrong while making it.
        """

    def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
        """Do one piece of a few milliseconds of encoding the prompt of `request`, which waits or is being written.

        To be called by the listener of the `generate` under way, from `step_done`, so that it is done beside the step
        that is computed then; or by whoever has nothing else to do. It never raises: what fails is the request's own
        to tell.

        Args:
            request: whose prompts count, the negative one too if it is used.
            wait: for the piece to be done, so that a request that comes finds no more than that under way; only between
                requests. Where the text encoder lives on the device, nothing is done otherwise.

        Returns:
            Whether something was done; False where it would bring nothing, and when nothing is left to do.
        """

    def cache_stats(self) -> CacheStats:
        """The prompt-embedding cache so far."""

    def close(self) -> None:
        """Release the device; the generator cannot be used afterwards."""
