"""The engine: encode, sample and decode in order, over loaded components, on the thread that owns the device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch

from zimage_ui.errors import DeviceMemoryError, JobCancelledError
from zimage_ui.generator import memory
from zimage_ui.generator.base import (
    SILENT,
    CacheStats,
    GenerationListener,
    GenerationResult,
    SomebodyWaits,
    nobody_waits,
)
from zimage_ui.generator.clock import stage_clock
from zimage_ui.generator.components import Components, MemoryPlan
from zimage_ui.generator.decoding import TILE, decode, latent_scale
from zimage_ui.generator.embedding_cache import EmbeddingCache, PromptEmbedding
from zimage_ui.generator.encoding import PromptEncoder, without_last_layer
from zimage_ui.generator.encoding_ahead import CudaSideLane, PromptsAhead
from zimage_ui.generator.failures import translated
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.graphs import Recorder, recorder_for
from zimage_ui.generator.fast.shapes import DenoiserShape, PictureShape
from zimage_ui.generator.fast.text_encoder import FastTextEncoder
from zimage_ui.generator.fast.vae import FastDecoder
from zimage_ui.generator.preview import PreviewProjection, fit_projection
from zimage_ui.generator.reporting import StepReporter
from zimage_ui.generator.residence import TextEncoderResidence
from zimage_ui.generator.sampling import (
    Denoiser,
    Sampled,
    Schedule,
    initial_latents,
    make_schedule,
    raise_if_cancelled,
    sample,
)
from zimage_ui.generator.transfers import record_fence, to_device
from zimage_ui.request import GeneratedImage, GenerationRequest, Precision
from zimage_ui.stages import Stage, StageClock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Prompts:
    """What the text encoder made for one request; `negative` only with guidance.

    `ahead_ms` asks for what of it was done before the job's turn, once the device has done all of it.
    """

    positive: torch.Tensor
    negative: torch.Tensor | None
    cache_hit: bool
    prompt_tokens: int
    truncated_tokens: int
    ahead_ms: Callable[[], float] = float

    def shapes(self, request: GenerationRequest) -> list[PictureShape]:
        """Those that `request` needs: with guidance one for each prompt, the positive one last."""
        embeds = [each for each in (self.negative, self.positive) if each is not None]
        return [
            PictureShape(request.width, request.height, caption_length(each), request.num_images_per_prompt)
            for each in embeds
        ]


@dataclass(frozen=True, slots=True)
class _Job:
    """One request on its way, with those who watch it.

    Its clock runs through all attempts of a job that ran out of memory: the stage that failed pays for the failure.
    """

    request: GenerationRequest
    listener: GenerationListener
    cancel: threading.Event
    clock: StageClock
    entered: list[Stage] = field(default_factory=list)

    def enter(self, stage: Stage) -> None:
        """The stage begins; a cancelled job goes no further."""
        self.begin(stage)
        self.listener.stage_started(stage)

    def begin(self, stage: Stage) -> None:
        """The same for the device, which may still be at the one before: nobody is told yet."""
        raise_if_cancelled(self.cancel)
        self.entered.append(stage)
        self.clock.start(stage)


class _Steps(NamedTuple):
    """Steps that are enqueued; what they took is known when they are done."""

    sampled: Sampled
    denoiser: Denoiser
    reporter: StepReporter


class Engine:
    """Makes pictures with one set of components.

    Attributes:
        prepares: whether anything can be prepared on this device.
        components: as loaded, but for the text encoder's last layer, which nobody needs; its memory is free once the
            components as loaded are dropped.
        projection: draws the previews; None until `fit_preview`, and then there are none.
        on_made: hears of the shapes, one for each length of a prompt, in which pictures were made.
        on_ran_out: hears that memory ran out for a picture, before anything is given up for it.
    """

    def __init__(
        self,
        components: Components,
        embedding_cache_bytes: int,
        recorder: Recorder | None = None,
        precision: Precision = Precision.EXACT,
    ) -> None:
        """Lay the components out for speed.

        Args:
            components: stay as they are, and their parts are shared. But a lossy precision takes matrices of the
                transformer away: no other engine can use it. Where they were rounded while loading, that is the
                precision.
            embedding_cache_bytes: what cached prompt embeddings may take of the host's memory.
            recorder: records graphs; None is CUDA graphs on a GPU and nothing elsewhere.
            precision: of the transformer's matrix products; a CPU emulates what it has not.
        """
        recorder = recorder or recorder_for(components.device)
        components = replace(components, text_encoder=without_last_layer(components.text_encoder))
        self.components = components
        self.projection: PreviewProjection | None = None
        self.on_made: Callable[..., None] = lambda *shapes: None
        self.on_ran_out: Callable[[], None] = lambda: None
        self.prepares = recorder is not None
        self._precision = components.rounded.precision if components.rounded else precision
        self._cache = EmbeddingCache(embedding_cache_bytes)
        self._text_encoder = FastTextEncoder(components.text_encoder, components.device, recorder)
        is_gpu = components.device.type == "cuda"
        self._ahead = PromptsAhead(components, CudaSideLane(components.device)) if is_gpu else None
        self._encoder = PromptEncoder(components, self._cache, self._text_encoder.encode, self._ahead)
        self._residence = TextEncoderResidence(components.text_encoder, components.device)
        self._ladder = memory.MemoryLadder(components.memory_plan, components.device)
        streamed_layers = components.streamed_in(components.memory_plan)
        self._transformer = translated(
            lambda: FastTransformer(
                components.transformer,
                components.device,
                components.dtype,
                recorder,
                streamed_layers=streamed_layers,
                precision=components.rounded or precision,
            ),
            components.device,
        )
        self._decoder = translated(lambda: FastDecoder(components.vae, components.device, recorder), components.device)
        translated(lambda: self._settle(components.memory_plan), components.device)

    def fit_preview(self) -> None:
        """Fit the preview's projection to the loaded VAE.

        Raises:
            GenerationError: the VAE failed.
        """
        parts = self.components

        def fit() -> PreviewProjection:
            with torch.inference_mode():
                return fit_projection(parts.vae, parts.device, parts.dtype)

        self.projection = translated(fit, parts.device)
        _log.info("preview projection explains %.0f %% of the colours", 100 * self.projection.explained)

    def prepare(self, width: int, height: int, caption_tokens: int) -> bool:
        """Compile and record what one picture of `width` x `height` pixels needs, so that it is made at full speed.

        Unprepared sizes work, too, only slower. A failure is logged and costs nothing but the speed.

        Args:
            width: of the picture.
            height: of the picture.
            caption_tokens: of the prompt, padded to a multiple of 32.

        Returns:
            Whether that size is prepared; a CPU prepares nothing.
        """
        shape = PictureShape(width, height, caption_tokens)
        for piece in self.preparations(shape):
            piece()
        return self.is_prepared(shape)

    def preparations(
        self, shape: PictureShape, somebody_waits: SomebodyWaits = nobody_waits
    ) -> tuple[Callable[[], object], ...]:
        """What `prepare` does, in pieces that are to be called one after the other, and what was done costs nothing.

        For the first of all shapes kernels are loaded, which takes seconds; others are recorded, about 0.2 s a piece.
        Once on a machine kernels are measured for each, mostly for about a second a piece, and up to three for products
        of thousands of tokens; the first time they are made, too. A measurement that gives way, because somebody waits,
        answers `GAVE_WAY`, and is to be called again.
        """
        latents, plan = self._latents_of(shape), self._plan_of(shape)
        pieces: tuple[Callable[[], object], ...] = (
            partial(self._text_encoder.prepare, shape.caption_tokens),
            *self._transformer.measurements(latents, somebody_waits),
            partial(self._transformer.prepare, latents),
            partial(self._decoder.prepare, *_decoded_at_once(latents, plan), record=not plan.streams_transformer),
        )
        return tuple(partial(translated, piece, self.components.device) for piece in pieces)

    def is_prepared(self, shape: PictureShape) -> bool:
        """Whether pictures of `shape` are made by what was prepared for them; may be asked from any thread."""
        latents = self._latents_of(shape)
        decodes = self._decoder.is_prepared(*_decoded_at_once(latents, self._plan_of(shape)))
        encodes = not self._text_encoder.lacks(shape.caption_tokens)
        return encodes and decodes and self._transformer.is_prepared(latents)

    def keep_only(self, shapes: Collection[PictureShape]) -> None:
        """Drop what was prepared for none of `shapes`: nobody asks for it any more. Lengths of prompts alone stay."""
        latents = {shape: self._latents_of(shape) for shape in shapes}
        self._transformer.keep_only(frozenset(latents.values()))
        decoded = {_decoded_at_once(size, self._plan_of(shape)) for shape, size in latents.items()}
        self._decoder.keep_only(decoded)

    def rehearse(self, shape: PictureShape) -> None:
        """Make pictures of `shape` in one step without a prompt, and drop them; the prompt cache does not notice.

        Raises:
            DeviceMemoryError, DeviceLostError, GenerationError: as `Generator.generate` says.
        """
        parts = self.components
        request = GenerationRequest(
            prompt="rehearsal",
            width=shape.width,
            height=shape.height,
            num_inference_steps=1,
            num_images_per_prompt=shape.num_images,
            seed=0,
        )
        job = _Job(request, SILENT, threading.Event(), stage_clock(parts.device))

        def make() -> None:
            with torch.inference_mode():
                features = parts.text_encoder.config.hidden_size
                embeds = torch.zeros(shape.caption_tokens, features, device=parts.device, dtype=parts.dtype)
                steps = self._sample(job, _Prompts(embeds, None, True, shape.caption_tokens, 0))
                self._decode(job, steps.sampled, tiled=self._plan_of(shape).tiles_decode)

        translated(make, parts.device)

    def _latents_of(self, shape: PictureShape) -> DenoiserShape:
        scale = latent_scale(self.components.vae)
        return DenoiserShape(shape.height // scale, shape.width // scale, shape.caption_tokens, shape.num_images)

    def _plan_of(self, shape: PictureShape) -> MemoryPlan:
        return self._plan_for(shape.width, shape.height, pictures=shape.num_images)

    def cache_stats(self) -> CacheStats:
        """The prompt-embedding cache so far."""
        return self._cache.stats()

    def forget_prompts(self) -> None:
        """Empty the prompt-embedding cache and its counts."""
        self._cache.reset()

    def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
        """Do a piece of encoding what `request` says; as `Generator.encode_ahead`."""
        visits, is_at_home = self._residence.visits, self._residence.is_at_home
        serves = visits or is_at_home if wait else self._residence.visits_unnoticed
        if not serves:
            return False
        encode_ahead = partial(self._encoder.encode_ahead, wait=wait, whole=not visits)
        return any(encode_ahead(prompt) for prompt in request.prompts)  # the first that is not done

    def generate(
        self, request: GenerationRequest, listener: GenerationListener, cancel: threading.Event
    ) -> GenerationResult:
        """Make the pictures of `request`; with smaller and smaller memory plans if memory runs out.

        What was prepared for other sizes gives up its memory first.

        Raises:
            JobCancelledError, DeviceMemoryError, DeviceLostError, GenerationError: as `Generator.generate` says.
        """
        request, device = request.with_seed(), self.components.device
        pixels = request.width * request.height * request.num_images_per_prompt
        plan = self._plan_for(request.width, request.height, request.num_images_per_prompt)
        memory.start_counting(device)
        job = _Job(request, listener, cancel, stage_clock(device))
        while True:
            try:
                result = translated(partial(self._make, job, plan), device)
            except DeviceMemoryError as error:
                reason = error.message
            else:
                self._ladder.went_well(plan)
                return result
            self.on_ran_out()
            if self.release(ran_out=True):
                _log.warning("%s Trying again without what was prepared.", reason)
                continue
            smaller = self._ladder.ran_out(plan, pixels, decoding=job.entered[-1] is Stage.DECODE)
            if smaller is None:
                break
            _log.warning("%s Trying again with the memory plan %s.", reason, smaller)
            plan = smaller
        raise _out_of_memory(request, plan, reason)

    @property
    def times_out_of_memory(self) -> int:
        """How often an allocation on the device failed so far, also where that did no harm."""
        return memory.times_ran_out(self.components.device)

    def release(self, *, ran_out: bool) -> bool:
        """Give up all that was prepared; whether any of it held memory.

        Args:
            ran_out: memory has run out, so that it goes back to the driver at once. Otherwise it does when somebody
                needs it.
        """
        parts = (self._transformer, self._text_encoder, self._decoder)
        held_memory = [part.release() for part in parts]
        self._give_up_ahead()
        if ran_out:
            memory.release_memory(self.components.device)
        return any(held_memory)

    def _plan_for(self, width: int, height: int, pictures: int) -> MemoryPlan:
        return self._ladder.plan_for(
            width * height * pictures, lambda plan: self.components.may_do(plan, (width, height), pictures)
        )

    def _make(self, job: _Job, plan: MemoryPlan) -> GenerationResult:
        try:
            with torch.inference_mode():
                return self._run_stages(job, plan)
        except JobCancelledError:
            # The step under way belongs to this job: the next one's clock shall start on an idle device.
            record_fence(self.components.device).wait()
            raise

    def _run_stages(self, job: _Job, plan: MemoryPlan) -> GenerationResult:
        job.enter(Stage.ENCODE)
        self._settle(plan)
        prompts = self._encode(job.request)
        shapes = prompts.shapes(job.request)
        warm = all(self.is_prepared(shape) for shape in shapes) if self.prepares else None
        job.enter(Stage.SAMPLE)
        steps = self._sample(job, prompts)
        job.begin(Stage.DECODE)
        images = self._decode(job, steps.sampled, tiled=plan.tiles_decode)
        job.clock.stop()
        self.on_made(*dict.fromkeys(shapes))  # with guidance two prompts, often of one length
        return GenerationResult(
            images=images,
            stage_ms=job.clock.stage_ms(),
            nfe=steps.denoiser.forwards,
            embedding_cache_hit=prompts.cache_hit,
            prompt_tokens=prompts.prompt_tokens,
            truncated_tokens=prompts.truncated_tokens,
            preview_ms=steps.reporter.preview_ms,
            memory=memory.counted(self.components.device),
            memory_plan=str(plan),
            shape_warm=warm,
            precision=self._precision,
            encoded_ahead_ms=prompts.ahead_ms(),
        )

    def _settle(self, plan: MemoryPlan) -> None:
        if not plan.keeps_text_encoder:
            self._text_encoder.release()  # nothing may hold on to weights that move
        else:
            self._give_up_ahead()
        self._residence.settle(resident=plan.keeps_text_encoder)
        self._transformer.stream(self.components.streamed_in(plan))
        self.components.memory_plan = plan

    def _give_up_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.forget()

    def _encode(self, request: GenerationRequest) -> _Prompts:
        encoded = [self._encoder.encode(prompt) for prompt in request.prompts]
        embeddings = [embedding for embedding, _ in encoded]
        embeds = [to_device(embedding.prompt_embeds, self.components.device) for embedding in embeddings]
        return _Prompts(
            positive=embeds[0],
            negative=embeds[1] if len(embeds) > 1 else None,
            cache_hit=all(hit for _, hit in encoded),
            prompt_tokens=embeddings[0].prompt_tokens,
            truncated_tokens=sum(embedding.truncated_tokens for embedding in embeddings),
            ahead_ms=_ahead_ms(*encoded),
        )

    def _sample(self, job: _Job, prompts: _Prompts) -> _Steps:
        request, parts = job.request, self.components
        scale = latent_scale(parts.vae)
        latents = initial_latents(
            request.seeds,
            parts.transformer.config.in_channels,
            request.height // scale,
            request.width // scale,
            parts.device,
        )
        schedule = make_schedule(parts.scheduler, request.scheduler, request.num_inference_steps, latents)
        denoiser = self._denoiser(request, prompts, latents, schedule)
        projection = self.projection if request.preview else None
        reporter = StepReporter(job.listener, len(schedule), parts.device, projection)
        return _Steps(sample(denoiser, schedule, latents, reporter, job.cancel), denoiser, reporter)

    def _decode(self, job: _Job, sampled: Sampled, *, tiled: bool) -> tuple[GeneratedImage, ...]:
        def settle() -> None:
            sampled.settle()
            job.listener.stage_started(Stage.DECODE)

        return decode(self._decoder, sampled.latents, job.request.seeds, tiled=tiled, cancel=job.cancel, settle=settle)

    def _denoiser(
        self, request: GenerationRequest, prompts: _Prompts, latents: torch.Tensor, schedule: Schedule
    ) -> Denoiser:
        pictures, _, height, width = latents.shape
        return self._transformer.denoiser(
            DenoiserShape(height, width, caption_length(prompts.positive), pictures),
            schedule.host_timesteps,
            prompts.positive,
            prompts.negative,
            request.guidance_scale,
        )


def _ahead_ms(*encoded: tuple[PromptEmbedding, bool]) -> Callable[[], float]:
    """Asks what of `encoded` was done ahead; a cached one (True) was so for another request."""
    return lambda: sum(embedding.ahead_ms() for embedding, cached in encoded if not cached)


def _decoded_at_once(latents: DenoiserShape, plan: MemoryPlan) -> tuple[int, int]:
    """Height and width of the latents that the decoder meets: of a picture or of a tile."""
    if plan.tiles_decode:
        return min(latents.height, TILE), min(latents.width, TILE)
    return latents.height, latents.width


def _out_of_memory(request: GenerationRequest, plan: MemoryPlan, reason: str) -> DeviceMemoryError:
    count = request.num_images_per_prompt
    pictures = "a picture" if count == 1 else f"{count} pictures"
    return DeviceMemoryError(
        f"There is too little memory for {pictures} of {request.width} x {request.height}, "
        f"even with the memory plan {plan}. ({reason})",
        "Choose a smaller size or fewer pictures at once, or close other programs that use the device.",
    )
