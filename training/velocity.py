"""The transformer's forward for a whole batch of equal shapes, as training wants it.

The stock forward takes lists and builds masks and positions for each picture: neither a compiler nor a GPU likes
that. Here a batch has one picture size and one caption bucket, and the same blocks are called with the same numbers;
a test holds that the result is the stock one's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3Model

from training.model import LATENT_CHANNELS, PATCH
from zimage_ui.generator.encoding import without_last_layer

# Captions and pictures are padded to a multiple of this, with learned tokens that are attended.
SEQUENCE_MULTIPLE = 32
_KEY = f"{PATCH}-1"


@dataclass(frozen=True, slots=True)
class Captions:
    """A batch of tokenized captions of one bucket: `ids` (batch, bucket), right-padded, and `lengths` (batch,)."""

    ids: Tensor
    lengths: Tensor


class Velocity:
    """Text encoder and transformer as one function: noisy latents and captions to the velocity from picture to noise.

    Args:
        transformer: the transformer; its blocks are compiled in place when `compile_blocks` is true.
        text_encoder: the whole text encoder, of which the last layer is not run.
        compile_blocks: compile each kind of block once, for any batch and length.
    """

    def __init__(
        self, transformer: ZImageTransformer2DModel, text_encoder: Qwen3Model, *, compile_blocks: bool = False
    ) -> None:
        self._transformer = transformer
        self._encoder = without_last_layer(text_encoder).train()
        self._rotations: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            block.attention.set_processor(_RealRotaryAttention())
        if compile_blocks:
            self.compile()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Everything that training changes; the text encoder's last layer is not among it."""
        return [*self._transformer.parameters(), *self._encoder.parameters()]

    @property
    def named_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The same, by name."""
        return {
            **{f"transformer.{name}": value for name, value in self._transformer.named_parameters()},
            **{f"text_encoder.{name}": value for name, value in self._encoder.named_parameters()},
        }

    def compile(self) -> None:
        """Compile the blocks, once for any batch and length."""
        transformer = self._transformer
        for block in (*transformer.noise_refiner, *transformer.context_refiner, *transformer.layers):
            block.compile(dynamic=True)
        for layer in self._encoder.layers:
            layer.compile(dynamic=True)

    def frozen_copy(self) -> Velocity:
        """A copy whose weights stay as they are."""
        twin = copy.deepcopy(self)
        for parameter in twin.parameters:
            parameter.requires_grad_(False)
        return twin

    def encode(self, captions: Captions) -> Tensor:
        """The captions' embeddings, (batch, bucket, features). What stands at the padding is not used."""
        # Attention is causal: the padding at the right needs no mask.
        return self._encoder(input_ids=captions.ids, use_cache=False).last_hidden_state

    def __call__(self, latents: Tensor, sigma: Tensor, captions: Captions, states: Tensor | None = None) -> Tensor:
        """The velocity, noise minus picture, (batch, 16, height, width) in fp32.

        Args:
            latents: noisy, (batch, 16, height, width).
            sigma: the share of noise in each, (batch,), 1 for noise alone.
            captions: what is on the pictures.
            states: the captions' embeddings, if they are known already.
        """
        model = self._transformer
        batch, _, height, width = latents.shape
        bucket = captions.ids.shape[1]
        rows, columns = height // PATCH, width // PATCH
        at_image, at_caption = self._rotation(rows, columns, bucket, latents.device)
        adaln = model.t_embedder((1 - sigma) * model.t_scale)

        image = model.all_x_embedder[_KEY](_patchify(latents))
        padding = at_image.shape[1] - image.shape[1]
        if padding:
            image = torch.cat((image, model.x_pad_token.to(image.dtype).expand(batch, padding, -1)), dim=1)
        for block in model.noise_refiner:
            image = block(image, None, at_image, adaln)

        text = model.cap_embedder(self.encode(captions) if states is None else states)
        beyond = torch.arange(bucket, device=latents.device) >= captions.lengths[:, None]
        text = torch.where(beyond[..., None], model.cap_pad_token.to(text.dtype), text)
        for block in model.context_refiner:
            text = block(text, None, at_caption)

        joint = torch.cat((image, text), dim=1)
        at_joint = torch.cat((at_image, at_caption), dim=1)
        for block in model.layers:
            joint = block(joint, None, at_joint, adaln)
        out = model.all_final_layer[_KEY](joint[:, : rows * columns], c=adaln)
        return -_unpatchify(out, rows, columns).float()  # the model itself predicts picture minus noise

    def _rotation(self, rows: int, columns: int, bucket: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotations of picture and caption; the picture comes after the padded caption, its padding is at 0."""
        key = (rows, columns, bucket)
        if key not in self._rotations:
            model = self._transformer
            grid = model.create_coordinate_grid
            image = grid((1, rows, columns), (bucket + 1, 0, 0), device=device).flatten(0, 2)
            image = torch.cat((image, image.new_zeros(-len(image) % SEQUENCE_MULTIPLE, 3)))
            caption = grid((bucket, 1, 1), (1, 0, 0), device=device).flatten(0, 2)
            at_image, at_caption = (
                torch.view_as_real(model.rope_embedder(ids))[None, :, None] for ids in (image, caption)
            )
            self._rotations[key] = at_image, at_caption
        return self._rotations[key]


def _patchify(latents: Tensor) -> Tensor:
    batch, channels, height, width = latents.shape
    grid = latents.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, PATCH * PATCH * channels)


def _unpatchify(tokens: Tensor, rows: int, columns: int) -> Tensor:
    grid = tokens.view(-1, rows, columns, PATCH, PATCH, LATENT_CHANNELS)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(-1, LATENT_CHANNELS, rows * PATCH, columns * PATCH)


class _RealRotaryAttention:
    """The stock attention with rotary factors as pairs of real numbers: compilers do not fuse complex ones."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        freqs_cis: Tensor | None = None,
    ) -> Tensor:
        heads = (attn.heads, -1)
        query = _rotate(attn.norm_q(attn.to_q(hidden_states).unflatten(-1, heads)), freqs_cis)
        key = _rotate(attn.norm_k(attn.to_k(hidden_states).unflatten(-1, heads)), freqs_cis)
        value = attn.to_v(hidden_states).unflatten(-1, heads)
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = functional.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
        return attn.to_out[0](out.transpose(1, 2).flatten(2, 3))


def _rotate(values: Tensor, rotation: Tensor | None) -> Tensor:
    """Turn neighbouring pairs of `values` (batch, tokens, heads, width) by `rotation` (1, tokens, 1, width / 2, 2)."""
    if rotation is None:
        return values
    cos, sin = rotation.unbind(-1)
    even, odd = values.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def sampler_sigmas(steps: int, shift: float) -> Tensor:
    """The noise levels of `steps` Euler steps, one more than steps; those of the product's scheduler."""
    even = torch.linspace(1.0, 1 / steps, steps)
    return torch.cat((shift * even / (1 + (shift - 1) * even), torch.zeros(1)))


@torch.no_grad()
def sample(velocity: Callable[[Tensor, Tensor], Tensor], noise: Tensor, sigmas: Tensor) -> Tensor:
    """Euler's way from `noise` to clean latents; `velocity` takes latents and sigmas (batch,)."""
    latents = noise
    for now, then in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        at = torch.full((len(latents),), now, device=latents.device)
        latents = latents + (then - now) * velocity(latents, at)
    return latents
