"""A scripted generator without torch: deterministic, slow, failing or out of memory on cue.

It is part of the product: the whole suite but the model tests runs on it, and `ZIMAGE_MODEL=fake` serves it, to try
the page or a deployment on a machine that could never hold the model. The picture is a gradient that depends on the
prompt and the seed, and grows from grey over the steps as a real one does.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, JobCancelledError, ModelNotFoundError
from zimage_ui.generator.base import (
    SILENT,
    CacheStats,
    GenerationListener,
    GenerationResult,
    ModelInfo,
    ProgressListener,
    ShapesListener,
    ShapeState,
    ShapeStatus,
    SomebodyWaits,
    WarmupPhase,
    WarmupProgress,
    nobody_waits,
)
from zimage_ui.generator.profiles import MINI
from zimage_ui.request import GeneratedImage, GenerationRequest, Preview
from zimage_ui.stages import MonotonicClock, Stage

FAKE_PROFILE = MINI
_CACHE_ENTRIES = 64
_WARMUP_STEPS = 4
_PROMPT_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeScript:
    """What a `FakeGenerator` does, and when it fails.

    Attributes:
        load_s: how long loading takes (in four reported parts); `warmup_s` likewise.
        encode_s, step_s, decode_s: how long each takes in a generation.
        encodes_ahead: whether prompts of waiting requests are encoded during a step of the present one.
        prepare_s: how long preparing a size takes; None is a device that prepares nothing.
        fail_load: loading raises a `ModelNotFoundError`.
        fail_at: generation raises a `GenerationError` on entering this stage.
        out_of_memory_at: generation raises a `DeviceMemoryError` on entering this stage.
        lose_device_at: generation raises a `DeviceLostError` on entering this stage.
        failures: how many generations fail before they work again; None is for ever.
        max_prompt_tokens: words beyond it are counted as truncated.
    """

    load_s: float = 0.0
    warmup_s: float = 0.0
    encode_s: float = 0.0
    step_s: float = 0.0
    decode_s: float = 0.0
    prepare_s: float | None = None
    encodes_ahead: bool = False
    fail_load: bool = False
    fail_at: Stage | None = None
    out_of_memory_at: Stage | None = None
    lose_device_at: Stage | None = None
    failures: int | None = None
    max_prompt_tokens: int = 512


@dataclass
class FakeGenerator:
    """A `Generator` that follows a `FakeScript`.

    Attributes:
        script: may be replaced between generations.
        entered: set when a generation has begun its first step (so that a test can cancel in the middle, on an event).
        gate: when given, each step waits for it to be set; a test holds a job exactly where it wants.
        preparing: set when a piece of a preparation has begun; `prepare_gate`, when given, is waited for there.
    """

    script: FakeScript = field(default_factory=FakeScript)
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    prepare_gate: threading.Event | None = None
    preparing: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._info: ModelInfo | None = None
        self._failed = 0
        self._cache: OrderedDict[str, None] = OrderedDict()
        self._hits = self._misses = 0
        self._ahead: set[str] = set()
        self._shapes: dict[tuple[int, int], ShapeState] = {}
        self._idle = threading.Event()  # never set: its timed wait is a pause that a cancel event can replace

    @property
    def info(self) -> ModelInfo | None:
        """What is loaded; None before `load`."""
        return self._info

    def load(self, progress: ProgressListener) -> ModelInfo:
        """Pretend to load, in four parts."""
        self._pretend(progress, WarmupPhase.LOADING, self.script.load_s, "fake weights")
        if self.script.fail_load:
            raise ModelNotFoundError("The fake model was told not to be found.", "Change its script.")
        self._info = ModelInfo(
            name="fake",
            source="fake",
            fingerprint="fa4efa4efa4efa4e",
            profile=FAKE_PROFILE,
            trained=False,
            device="cpu",
            device_name="no device",
            dtype="uint8",
            dtype_reason="nothing is computed",
            memory_plan="none",
            memory_plan_reason="nothing is loaded",
            max_prompt_tokens=self.script.max_prompt_tokens,
            versions={"fake": "1"},
        )
        return self._info

    def warmup(self, progress: ProgressListener) -> None:
        """Pretend to warm up, in four parts."""
        self._pretend(progress, WarmupPhase.WARMING, self.script.warmup_s, "fake pass")
        if self.script.prepare_s is not None:
            self._shapes = dict.fromkeys(FAKE_PROFILE.sizes, ShapeState.COLD)
            self._shapes[FAKE_PROFILE.sizes[0]] = ShapeState.WARM

    def shapes(self) -> tuple[ShapeStatus, ...]:
        """The profile's sizes, then others that were asked for."""
        return tuple(
            ShapeStatus(width=width, height=height, prompt_tokens=_PROMPT_TOKENS, num_images=1, state=state)
            for (width, height), state in tuple(self._shapes.items())
        )

    def prepare_next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        """Pretend to prepare the next size, in two pieces, which are too short to give way to anybody."""
        size = next((size for size, state in self._shapes.items() if state is not ShapeState.WARM), None)
        if size is None or self.script.prepare_s is None:
            return False
        begins = self._shapes[size] is ShapeState.COLD
        self._shapes[size] = ShapeState.PREPARING
        if begins:
            changed(self.shapes())
        self.preparing.set()
        if self.prepare_gate is not None:
            self.prepare_gate.wait()
        self._pause(self.script.prepare_s / 2, self._idle)
        if not begins:
            self._shapes[size] = ShapeState.WARM
            changed(self.shapes())
        return True

    def generate(
        self,
        request: GenerationRequest,
        listener: GenerationListener = SILENT,
        cancel: threading.Event | None = None,
    ) -> GenerationResult:
        """Paint gradients, one for each seed."""
        cancel = cancel or self._idle
        clock, script = MonotonicClock(), self.script
        tokens = len(request.prompt.split())
        warm = self._is_warm((request.width, request.height))

        self._enter(Stage.ENCODE, clock, listener)
        hit = self._look_up(request.prompt)
        ahead = not hit and request.prompt in self._ahead
        self._ahead.discard(request.prompt)
        self._pause(0.0 if hit or ahead else script.encode_s, cancel)

        self._enter(Stage.SAMPLE, clock, listener)
        steps = request.num_inference_steps
        for step in range(1, steps + 1):
            self.entered.set()
            if self.gate is not None:
                self.gate.wait()
            self._pause(script.step_s, cancel)
            preview = self._preview(request, step / steps) if request.preview else None
            listener.step_done(step, steps, preview)

        self._enter(Stage.DECODE, clock, listener)
        self._pause(script.decode_s, cancel)
        images = tuple(
            GeneratedImage(
                index=index,
                seed=seed,
                width=request.width,
                height=request.height,
                pixels=_paint(request.prompt, seed, request.width, request.height, 1.0),
            )
            for index, seed in enumerate(request.seeds)
        )
        clock.stop()
        return GenerationResult(
            images=images,
            stage_ms=clock.stage_ms(),
            nfe=steps,
            embedding_cache_hit=hit,
            prompt_tokens=min(tokens, script.max_prompt_tokens),
            truncated_tokens=max(0, tokens - script.max_prompt_tokens),
            preview_ms=0.0,
            memory_plan="none",
            shape_warm=warm,
            encoded_ahead_ms=script.encode_s * 1e3 if ahead else 0.0,
        )

    def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
        """Pretend to encode the prompt of `request`, in one piece that takes no time."""
        if not self.script.encodes_ahead or request.prompt in self._ahead or request.prompt in self._cache:
            return False
        self._ahead.add(request.prompt)
        return True

    def cache_stats(self) -> CacheStats:
        """Hits and misses of the pretended prompt cache."""
        return CacheStats(
            hits=self._hits,
            misses=self._misses,
            entries=len(self._cache),
            capacity_bytes=_CACHE_ENTRIES,
            size_bytes=len(self._cache),
            saved_ms=self._hits * self.script.encode_s * 1e3,
        )

    def close(self) -> None:
        """Nothing to release."""
        self._info = None

    def _pretend(self, progress: ProgressListener, phase: WarmupPhase, seconds: float, what: str) -> None:
        for part in range(1, _WARMUP_STEPS + 1):
            self._pause(seconds / _WARMUP_STEPS, self._idle)
            progress(
                WarmupProgress(phase=phase, progress=part / _WARMUP_STEPS, detail=f"{what} {part} of {_WARMUP_STEPS}")
            )

    def _pause(self, seconds: float, cancel: threading.Event) -> None:
        if cancel.wait(seconds) if seconds else cancel.is_set():
            raise JobCancelledError("The job was cancelled.")

    def _enter(self, stage: Stage, clock: MonotonicClock, listener: GenerationListener) -> None:
        clock.start(stage)
        listener.stage_started(stage)
        errors = {
            self.script.fail_at: GenerationError(
                f"The fake generator was told to fail in {stage}.", "Change its script."
            ),
            self.script.out_of_memory_at: DeviceMemoryError(
                f"Out of memory in {stage}, as told.", "Ask for a smaller size."
            ),
            self.script.lose_device_at: DeviceLostError(f"The device was lost in {stage}, as told.", "Start again."),
        }
        if stage in errors and (self.script.failures is None or self._failed < self.script.failures):
            self._failed += 1
            raise errors[stage]

    def _is_warm(self, size: tuple[int, int]) -> bool | None:
        """Whether `size` is prepared; if not, it will be. None when nothing is."""
        if self.script.prepare_s is None:
            return None
        return self._shapes.setdefault(size, ShapeState.COLD) is ShapeState.WARM

    def _look_up(self, prompt: str) -> bool:
        hit = prompt in self._cache
        self._hits, self._misses = self._hits + hit, self._misses + (not hit)
        self._cache[prompt] = None
        self._cache.move_to_end(prompt)
        while len(self._cache) > _CACHE_ENTRIES:
            self._cache.popitem(last=False)
        return hit

    def _preview(self, request: GenerationRequest, grown: float) -> Preview:
        width, height = request.width // 8, request.height // 8
        return Preview(
            width=width, height=height, pixels=_paint(request.prompt, request.seeds[0], width, height, grown)
        )


def _paint(prompt: str, seed: int, width: int, height: int, grown: float) -> bytes:
    """A two-colour diagonal gradient from the hash of prompt and seed; `grown` 0..1 fades it in from grey."""
    digest = hashlib.sha256(f"{seed}\n{prompt}".encode()).digest()
    bands = min(32, height)  # enough for the eye, and they keep a large fake picture cheap

    def band(y: float) -> bytes:
        pixels = bytearray(3 * width)
        for channel, (low, high) in enumerate(zip(digest[0:3], digest[3:6], strict=True)):
            pixels[channel::3] = bytes(
                round(128 + grown * (low + (high - low) * (x / width + y) / 2 - 128)) for x in range(width)
            )
        return bytes(pixels)

    rows = [band(number / bands) for number in range(bands)]
    return b"".join(rows[y * bands // height] for y in range(height))
