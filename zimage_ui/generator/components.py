"""What loading hands to the stages: the five parts of a Z-Image pipeline, and how they share the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import PreTrainedTokenizerBase, Qwen3Model

    from zimage_ui.generator.fast.rounding import RoundedBlocks
    from zimage_ui.generator.placement import MemoryBudget


# Places on the device through which streamed layers pass: while one is computed with, the other is filled. With two,
# whichever of copying and computing takes longest never pauses; more would help nobody.
STREAM_SLOTS = 2

# Both extents of a matrix in FP8 are multiples of this (int8: of 8; NF4 has runs of 64 values), or it stays as it is;
# those of the published models are.
ROUNDED_MULTIPLE = 16


class MemoryPlan(StrEnum):
    """How the parts share the device's memory, from the fastest plan to the smallest.

    * RESIDENT: everything stays on the device.
    * TEXT_ENCODER_OFFLOADED: the text encoder lives in host memory and visits the device to encode a new prompt.
    * TILED: as before, and pictures are decoded one after the other in overlapping tiles. Tiles change pixels a little
      (each is normalised by itself), so no load begins with this plan: it is for pictures larger than usual.
    * STREAMED: the text encoder as before, pictures in one piece; as many of the transformer's layers as there is no
      room for live in host memory, too, and are copied in during each step.
    * SMALLEST: all of the transformer's layers are streamed, and pictures are decoded in tiles.
    """

    RESIDENT = "resident"
    TEXT_ENCODER_OFFLOADED = "text_encoder_offloaded"
    TILED = "tiled"
    STREAMED = "streamed"
    SMALLEST = "smallest"

    @property
    def smaller(self) -> MemoryPlan | None:
        """The next plan that keeps less of the model on the device; None after the smallest."""
        plans = list(MemoryPlan)
        return next((plan for plan in plans[plans.index(self) :] if plan.weights_away > self.weights_away), None)

    @property
    def keeps_text_encoder(self) -> bool:
        """Whether the text encoder stays on the device between prompts."""
        return self is MemoryPlan.RESIDENT

    @property
    def tiles_decode(self) -> bool:
        """Whether pictures are decoded in tiles."""
        return self in (MemoryPlan.TILED, MemoryPlan.SMALLEST)

    @property
    def streams_transformer(self) -> bool:
        """Whether layers of the transformer live in host memory."""
        return self in (MemoryPlan.STREAMED, MemoryPlan.SMALLEST)

    def streamed_layers(self, layers: int, chosen: int = 0) -> int:
        """How many of `layers` are streamed, where `chosen` says for how many there was no room.

        Where nobody has reckoned with STREAMED, half of the layers is its step between all and none.
        """
        if not self.streams_transformer:
            return 0
        streamed = (chosen or layers // 2) if self is MemoryPlan.STREAMED else layers
        return streamed if streamed > STREAM_SLOTS else 0

    @property
    def weights_away(self) -> int:
        """Compares plans: the higher, the less of the model is on the device."""
        return (
            (not self.keeps_text_encoder) + self.streams_transformer + (self.streams_transformer and self.tiles_decode)
        )


@dataclass(kw_only=True)
class Components:
    """The parts of a loaded model, in evaluation mode, without gradients, in `dtype`.

    Attributes:
        tokenizer: with the chat template that prompts are wrapped in.
        text_encoder: on `device` when the plan keeps it there, otherwise on the CPU.
        transformer: on `device`, but for the layers that are streamed from the start (`streaming.streamed_names`).
        vae: on `device`.
        scheduler: the model's own; its config is read, it is never stepped (each request makes its own).
        device, dtype: where and in what the parts compute.
        memory_plan: the plan that the parts are laid out for now.
        text_encoder_fingerprint: changes when the text encoder or the tokenizer changes; keys cached embeddings.
        max_prompt_tokens: longer prompts are cut, as the stock pipeline cuts them (`max_sequence_length`).
        streamed_layers: how many of the transformer's layers there was no room for, where that is the plan.
        budget: what there was room for; None where nobody knows.
        rounded: in a lossy precision, the blocks of the transformer that were rounded while they were read and are
            missing from it. The first engine takes them.
    """

    tokenizer: PreTrainedTokenizerBase
    text_encoder: Qwen3Model
    transformer: ZImageTransformer2DModel
    vae: AutoencoderKL
    scheduler: FlowMatchEulerDiscreteScheduler
    device: torch.device
    dtype: torch.dtype
    memory_plan: MemoryPlan = MemoryPlan.RESIDENT
    text_encoder_fingerprint: str = ""
    max_prompt_tokens: int = 512
    streamed_layers: int = 0
    budget: MemoryBudget | None = None
    rounded: RoundedBlocks | None = None

    def may_do(self, plan: MemoryPlan, size: tuple[int, int], pictures: int) -> bool:
        """Whether it is worth trying `pictures` of `size` (width, height) at once with `plan`."""
        return self.budget is None or self.budget.may_do(plan, self.streamed_in(plan), size, pictures)

    def streamed_in(self, plan: MemoryPlan) -> int:
        """How many of the transformer's layers `plan` streams; none on a CPU, where host and device are one."""
        if self.device.type == "cpu":
            return 0
        return plan.streamed_layers(len(self.transformer.layers), self.streamed_layers)
