"""Velocities by the diffusers transformer itself: what ours are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel

# The transformer's time runs from 0 (noise) to 1 (picture), the scheduler's from 1000 to 0.
_TIMESTEPS = 1000


class StockDenoiser:
    """The `Denoiser` that calls the diffusers transformer just as the stock pipeline does."""

    def __init__(
        self,
        transformer: ZImageTransformer2DModel,
        dtype: torch.dtype,
        prompt_embeds: torch.Tensor,
        negative_prompt_embeds: torch.Tensor | None = None,
        guidance_scale: float = 0.0,
    ) -> None:
        self.forwards = 0
        self._transformer = transformer
        self._dtype = dtype
        self._prompt_embeds = prompt_embeds
        self._negative_prompt_embeds = negative_prompt_embeds if guidance_scale > 0 else None
        self._guidance_scale = guidance_scale

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """The velocity at `latents`; with guidance, positive and negative run in one batch."""
        pictures = latents.shape[0]
        model_input = latents.to(self._dtype)
        time = (_TIMESTEPS - timestep.expand(pictures)) / _TIMESTEPS
        prompts = [self._prompt_embeds] * pictures
        if self._negative_prompt_embeds is not None:
            model_input, time = model_input.repeat(2, 1, 1, 1), time.repeat(2)
            prompts = prompts + [self._negative_prompt_embeds] * pictures
        outputs = self._transformer(list(model_input.unsqueeze(2).unbind(0)), time, prompts, return_dict=False)[0]
        self.forwards += len(outputs) // pictures
        prediction = torch.stack([output.float() for output in outputs])
        if self._negative_prompt_embeds is not None:
            positive, negative = prediction.split(pictures)
            prediction = positive + self._guidance_scale * (positive - negative)
        return -prediction.squeeze(2)
