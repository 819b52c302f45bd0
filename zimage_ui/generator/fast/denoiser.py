"""The transformer, laid out for speed once, and the denoisers that it makes for requests.

What depends on the model alone is done when it is made (fused weights), what depends on the picture's size when that is
prepared (graphs, and compiled functions where there are no kernels of our own) or first asked for (rotary tables), what
depends on the request at its start (captions, modulation), and a step does the rest. A shape that nobody prepared is
denoised at once by the same functions, uncompiled, but by kernels of our own between the products once those have
worked here; and so is one whose preparation failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

from zimage_ui.generator.base import SomebodyWaits, nobody_waits
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.attention import AttentionBackend, fastest_backend, has_fp8_attention
from zimage_ui.generator.fast.captions import Captions
from zimage_ui.generator.fast.compiled_step import compiled_functions
from zimage_ui.generator.fast.gate import fastest_gate_tile
from zimage_ui.generator.fast.giving_way import GAVE_WAY, GaveWayError, giving_way
from zimage_ui.generator.fast.graphs import RecordedFunction, Recorder, Recordings, recorder_for
from zimage_ui.generator.fast.modulation import ModulationTables
from zimage_ui.generator.fast.parts import has_triton_parts
from zimage_ui.generator.fast.product_kernels import USUAL_PRODUCTS, fastest_product, fastest_products
from zimage_ui.generator.fast.projections import BlockProjections
from zimage_ui.generator.fast.recently_used import RecentlyUsed
from zimage_ui.generator.fast.rotary import Rotary, shape_rotary
from zimage_ui.generator.fast.rounding import RoundedBlocks
from zimage_ui.generator.fast.shapes import DenoiserShape, padded
from zimage_ui.generator.fast.slots import Transfer
from zimage_ui.generator.fast.step import EAGER, TRITON, PassPlan, StepFunctions, StepNetwork
from zimage_ui.request import Precision

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

# Latents, rows of this step's modulation and captions to the velocity; see StepNetwork.velocity.
StepPass = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# The same with the captions of one request.
VelocityPass = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Sizes x caption lengths x batches that are in use at a time: as many as `preparation` asks for at the most. All graphs
# share their memory for activations.
_KEPT_PASSES = 24
_KEPT_ROTARIES = 32
_MOST_TIMES_GIVEN_WAY = 3


class FastTransformer:
    """A stock Z-Image transformer, made fast; made once, where the model is loaded.

    The stock module goes on working, its weights become views of the fused ones; but for the lossy precisions, which
    take its matrices away block by block.

    Attributes:
        network: the weights as a pass reads them.
    """

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        device: torch.device,
        dtype: torch.dtype,
        recorder: Recorder | None = None,
        ways: Sequence[Callable[[], StepFunctions]] | None = None,
        streamed_layers: int = 0,
        transfer: Transfer[Any] | None = None,
        precision: Precision | RoundedBlocks = Precision.EXACT,
    ) -> None:
        """Fuse, or round, the weights of `transformer`, block by block.

        Args:
            transformer: on `device`, in `dtype`, for inference; but for the layers that are streamed from the start,
                whose products may be on the host (`streaming.streamed_names`).
            device: where it computes.
            dtype: in what it computes.
            recorder: records graphs; None is CUDA graphs on a GPU and nothing elsewhere.
            ways: of making the functions that are recorded, tried in this order until one works; None is with kernels
                of our own, where there are any, then compiled, then neither.
            streamed_layers: how many live on the host from the start; `stream` changes it.
            transfer: brings them to the device; None is CUDA's own.
            precision: of the blocks' matrix products; or those, where they were rounded while the model was read.

        Raises:
            torch.OutOfMemoryError: the device has no room for it.
        """
        self._device = device
        self._dtype = dtype
        self._embedder = transformer.rope_embedder
        self._channels: int = transformer.in_channels
        with torch.no_grad():
            self.network = StepNetwork(transformer, device, transfer, precision)
            self.network.layers.settle(streamed_layers)
        self._modulation = ModulationTables(transformer)
        self._has_fp8_attention = has_fp8_attention(self.network.heads_shape[1], device)
        self._trusts_triton = False
        self._gave_way: Counter[tuple[DenoiserShape, int]] = Counter()  # by the number of the piece
        recorder = recorder or recorder_for(device)
        ways = self._usual_ways() if ways is None else ways
        self._passes: Recordings[DenoiserShape, Callable[[], StepFunctions]] = Recordings(_KEPT_PASSES, recorder, ways)
        self._rotaries: RecentlyUsed[DenoiserShape, Rotary] = RecentlyUsed(_KEPT_ROTARIES)
        self._captions = Captions(self.network, self._embedder, device, dtype, recorder)

    @torch.inference_mode()
    def denoiser(
        self,
        shape: DenoiserShape,
        timesteps: Sequence[float],
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_scale: float = 0.0,
    ) -> FastDenoiser:
        """The denoiser of one request.

        Args:
            shape: of the latents and of the prompt's caption.
            timesteps: of all steps, 1000 (noise) to 0 (picture).
            prompt_embeds: (tokens, features) on the model's device, without padding; `negative_prompt_embeds` likewise.
            negative_prompt_embeds: only read with guidance.
            guidance_scale: 0 is without guidance; above, each step takes the prompt and the negative prompt.
        """
        passes = [self._pass_with(shape, prompt_embeds)]
        if guidance_scale > 0 and negative_prompt_embeds is not None:
            # Not in one batch: so both use what is prepared for any prompt, whatever their lengths, in half the memory.
            passes.append(self._pass_with(shape, negative_prompt_embeds))
        return FastDenoiser(passes, self._modulation.rows(timesteps), guidance_scale)

    @torch.inference_mode()
    def prepare(self, shape: DenoiserShape) -> bool:
        """Compile and record what `shape` needs; later denoisers of that shape use it. Costs nothing when it is done.

        A failure is logged, and the shape is denoised as if nobody had prepared it.

        Returns:
            Whether it is prepared.
        """
        prepared = self._passes.prepare(shape, partial(self._record, shape), f"denoising {shape}")
        if prepared:
            # As passes are: streamed, the host's time hides behind the copies, and memory is scarce.
            self._captions.prepare(shape.caption_tokens, record=not self.network.layers.streamed)
        return prepared

    def measurements(
        self, shape: DenoiserShape, somebody_waits: SomebodyWaits = nobody_waits
    ) -> tuple[Callable[[], object], ...]:
        """What finds out by which kernels `shape` is denoised the fastest, in pieces, so that `prepare` is short.

        Each costs nothing where its choice is known. A failure is logged, and the usual kernel computes. One that finds
        that somebody waits answers `GAVE_WAY`, and is to be called again; but it does so three times at the most, or
        whoever asks for a picture every few seconds would never have the faster kernels.
        """
        products = [
            partial(fastest_product, alike, rows)
            for rows in shape.product_rows
            for alike in zip(*self._products, strict=True)
        ]
        pieces: tuple[Callable[[], object], ...] = (
            partial(self._fastest_backend, shape, TRITON),
            *products,
            partial(self._plan, shape, TRITON),
        )
        return tuple(
            partial(self._measure, shape, number, piece, somebody_waits) for number, piece in enumerate(pieces)
        )

    @torch.inference_mode()
    def _measure(
        self, shape: DenoiserShape, number: int, piece: Callable[[], object], somebody_waits: SomebodyWaits
    ) -> object:
        usable = self._passes.ways[:1] == (_with_triton,)  # a compiler multiplies by torch alone
        if not usable or not self._passes.can_record or shape in self._passes:
            return None
        has_patience = self._gave_way[shape, number] < _MOST_TIMES_GIVEN_WAY
        try:
            with giving_way(somebody_waits if has_patience else nobody_waits):
                attempt(piece, f"kernels for {shape} are not measured", but=(GaveWayError,))
        except GaveWayError:
            self._gave_way[shape, number] += 1
            return GAVE_WAY
        return None

    def is_prepared(self, shape: DenoiserShape) -> bool:
        """Whether a denoiser of `shape` would use what was prepared for it."""
        return shape in self._passes

    def keep_only(self, shapes: Collection[DenoiserShape]) -> None:
        """Drop what was prepared for all others: nobody asks for them any more."""
        self._passes.keep_only(shapes.__contains__)

    def release(self) -> bool:
        """Drop what was prepared, because memory ran out: until prepared again, shapes are denoised as cold ones.

        Returns:
            Whether anything was recorded, so that there is more memory now.
        """
        self._rotaries.clear()
        held_memory = [prepared.release() for prepared in (self._passes, self._captions)]
        return any(held_memory)

    def stream(self, layers: int) -> None:
        """Let so many of the main layers live on the host; what was prepared is dropped if that moves any.

        Raises:
            torch.OutOfMemoryError: the device has no room for the others.
        """
        if not self.network.layers.is_settled(layers):
            self.release()  # first: graphs hold on to memory, and read the weights where they were
            self.network.layers.settle(layers)

    def _record(self, shape: DenoiserShape, way: Callable[[], StepFunctions], recorder: Recorder) -> StepPass:
        functions = way()
        plan = self._plan(shape, functions)
        velocity, examples = partial(self.network.velocity, plan), self._examples(shape)
        if self.network.layers.streamed:
            # Not as a graph: the round of the slots goes on from pass to pass, and launching hides behind the copies.
            velocity(*examples)
            run: StepPass = velocity
        else:
            run = RecordedFunction(velocity, examples, recorder)
        self._trusts_triton |= functions.triton
        return run

    def _plan(self, shape: DenoiserShape, functions: StepFunctions) -> PassPlan:
        """The fastest pass of `functions`."""
        backend = self._fastest_backend(shape, functions)
        # A compiler takes no product but torch's.
        by, image_by = (
            fastest_products(self._products, rows) if functions.triton else USUAL_PRODUCTS
            for rows in shape.product_rows
        )
        gate_tile = fastest_gate_tile(self._products[0], shape.product_rows[0], functions.parts, by.gate_up)
        return PassPlan(shape, self._rotary(shape), backend, functions, gate_tile, by, image_by)

    def _fastest_backend(self, shape: DenoiserShape, functions: StepFunctions) -> AttentionBackend | None:
        attention_shape = (shape.pictures, shape.tokens, *self.network.heads_shape)
        return self._backend(functions) or fastest_backend(attention_shape, self._dtype, self._device)

    @property
    def _products(self) -> list[BlockProjections]:
        """Those that kernels are measured with: like all others, and never streamed."""
        return [weights.projections for weights in self.network.refiner]

    def _usual_ways(self) -> tuple[Callable[[], StepFunctions], ...]:
        form, head_dim = self.network.form, self.network.heads_shape[1]
        triton = form is not None and has_triton_parts(form, self._dtype, head_dim, self._device)
        return (*([_with_triton] if triton else []), _compiled, lambda: EAGER)

    def _backend(self, functions: StepFunctions) -> AttentionBackend | None:
        """The attention that goes with `functions`; None where any does."""
        eight_bit = functions.triton and self.network.form == torch.float8_e4m3fn
        return AttentionBackend.FP8 if eight_bit and self._has_fp8_attention else None

    def _examples(self, shape: DenoiserShape) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Inputs of the right sizes, of no meaning."""
        dim = self.network.dim
        latents = torch.zeros(shape.pictures, self._channels, shape.height, shape.width, device=self._device)
        rows = torch.zeros(self.network.row_count, dim, device=self._device)
        captions = torch.zeros(shape.pictures, shape.caption_tokens, dim, dtype=self._dtype, device=self._device)
        return latents, rows, captions

    def _pass_with(self, shape: DenoiserShape, prompt_embeds: torch.Tensor) -> VelocityPass:
        """The pass for latents of `shape` with its caption, through what is prepared if anything is."""
        captions = self._captions.refined(prompt_embeds).expand(shape.pictures, -1, -1)
        shape = replace(shape, caption_tokens=captions.shape[1])
        run = self._passes.get(shape) or self._unprepared_pass(shape)
        return lambda latents, rows: run(latents, rows, captions)

    def _unprepared_pass(self, shape: DenoiserShape) -> StepPass:
        by_torch = self._uncompiled(shape, EAGER)
        if not self._trusts_triton:
            return by_torch
        by_triton = self._uncompiled(shape, TRITON)

        def velocity(*inputs: torch.Tensor) -> torch.Tensor:
            # They have worked, but for some sizes a kernel is compiled anew.
            run, otherwise = partial(by_triton, *inputs), f"denoising {shape} goes on without kernels of our own"
            answer = attempt(run, otherwise, but=(torch.OutOfMemoryError,)) if self._trusts_triton else None
            self._trusts_triton = answer is not None
            return by_torch(*inputs) if answer is None else answer

        return velocity

    def _uncompiled(self, shape: DenoiserShape, functions: StepFunctions) -> StepPass:
        return partial(self.network.velocity, PassPlan(shape, self._rotary(shape), self._backend(functions), functions))

    def _rotary(self, shape: DenoiserShape) -> Rotary:
        key = replace(shape, pictures=1)
        rotary = self._rotaries.get(key)
        if rotary is None:
            rotary = shape_rotary(self._embedder, key, self._device)
            self._rotaries.put(key, rotary)
        return rotary


class FastDenoiser:
    """The `Denoiser` of one request; see there."""

    def __init__(self, passes: Sequence[VelocityPass], rows: torch.Tensor, guidance_scale: float) -> None:
        self.forwards = 0
        self._passes = passes
        self._rows = rows
        self._guidance_scale = guidance_scale

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """The velocity at `latents`; what `timestep` says is in the modulation of `step`."""
        velocities = [run(latents, self._rows[step]) for run in self._passes]
        self.forwards += len(velocities)
        if len(velocities) == 1:
            return velocities[0]
        positive, negative = velocities
        return positive + self._guidance_scale * (positive - negative)


def caption_length(prompt_embeds: torch.Tensor) -> int:
    """The caption tokens of a `DenoiserShape` for (tokens, features) of a prompt."""
    return padded(len(prompt_embeds))


def _with_triton() -> StepFunctions:
    return TRITON


@cache
def _compiled() -> StepFunctions:
    return compiled_functions()
