"""What loading hands to the stages: the five parts of a Z-Image pipeline, and how they share the device's memory."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import PreTrainedTokenizerBase, Qwen3Model


class MemoryPlan(StrEnum):
    """How the parts share the device's memory, from the fastest plan to the smallest.

    * RESIDENT: everything stays on the device.
    * TEXT_ENCODER_OFFLOADED: the text encoder lives in host memory and visits the device to encode a new prompt.
    * SMALLEST: as before, and pictures are decoded one after the other in overlapping tiles.
    """

    RESIDENT = "resident"
    TEXT_ENCODER_OFFLOADED = "text_encoder_offloaded"
    SMALLEST = "smallest"

    @property
    def smaller(self) -> MemoryPlan | None:
        """The next smaller plan; None after the smallest."""
        plans = list(MemoryPlan)
        place = plans.index(self) + 1
        return plans[place] if place < len(plans) else None

    @property
    def keeps_text_encoder(self) -> bool:
        """Whether the text encoder stays on the device between prompts."""
        return self is MemoryPlan.RESIDENT

    @property
    def tiles_decode(self) -> bool:
        """Whether pictures are decoded in tiles."""
        return self is MemoryPlan.SMALLEST


@dataclass(kw_only=True)
class Components:
    """The parts of a loaded model, in evaluation mode, without gradients, in `dtype`.

    Attributes:
        tokenizer: with the chat template that prompts are wrapped in.
        text_encoder: on `device` when the plan keeps it there, otherwise on the CPU.
        transformer, vae: on `device`.
        scheduler: the model's own; its config is read, it is never stepped (each request makes its own).
        device, dtype: where and in what the parts compute.
        memory_plan: the plan that the parts are laid out for now.
        text_encoder_fingerprint: changes when the text encoder or the tokenizer changes; keys cached embeddings.
        max_prompt_tokens: longer prompts are cut, as the stock pipeline cuts them (`max_sequence_length`).
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
