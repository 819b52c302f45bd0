"""How much a picture costs in arithmetic, counted from the configurations of the model's parts.

Counted are matrix products, convolutions and attention, two operations for a multiplication with its addition; norms,
activations and modulation are left out (less than 1 % of it). It is the work that any implementation has to do, so it
is the same for all that are compared: the prompt's own tokens through all layers of the text encoder but the last,
whose output nobody reads; the caption's refiner once a picture, not once a step; the decoder. Who does more than that
(the stock pipeline pads a prompt to 512 tokens) is not credited for it. Attention counts in full, also where it is
causal.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_ui.generator.fast.shapes import PATCH, DenoiserShape, padded

Config = Mapping[str, Any]
TERA = 1e12


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations.

    Attributes:
        products: of matrix products and convolutions with weights.
        attention: of the two products inside attention.
    """

    products: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.products + self.attention

    def __add__(self, other: Work) -> Work:
        return Work(self.products + other.products, self.attention + other.attention)

    def __mul__(self, times: int) -> Work:
        return Work(self.products * times, self.attention * times)


@dataclass(frozen=True, slots=True)
class ModelWork:
    """The work of one model, from the `config.json` of its parts."""

    transformer: Config
    text_encoder: Config
    vae: Config

    @classmethod
    def of_folder(cls, folder: Path) -> ModelWork:
        """Of a model in diffusers layout.

        Raises:
            OSError, ValueError: a configuration cannot be read.
        """
        return cls(*(json.loads((folder / part / "config.json").read_text("utf-8")) for part in cls.__slots__))

    def shape(self, width: int, height: int, prompt_tokens: int) -> DenoiserShape:
        """What the transformer sees of a picture of `width` x `height` pixels."""
        scale = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return DenoiserShape(height // scale, width // scale, padded(prompt_tokens))

    def encode(self, prompt_tokens: int) -> Work:
        """A prompt's way through the text encoder."""
        return text_encoder_work(self.text_encoder, prompt_tokens)

    def forwards(self, width: int, height: int, prompt_tokens: int, steps: int) -> Work:
        """All `steps` of a picture, its caption's refiner included."""
        shape = self.shape(width, height, prompt_tokens)
        return step_work(self.transformer, shape) * steps + caption_work(self.transformer, shape)

    def decode(self, width: int, height: int) -> Work:
        """The latents' way through the VAE's decoder."""
        shape = self.shape(width, height, 0)
        return decoder_work(self.vae, shape.height, shape.width)

    def picture(self, width: int, height: int, prompt_tokens: int, steps: int) -> Work:
        """From prompt to pixels."""
        forwards = self.forwards(width, height, prompt_tokens, steps)
        return self.encode(prompt_tokens) + forwards + self.decode(width, height)


def linear_work(rows: int, width_in: int, width_out: int) -> int:
    """Of `rows` vectors through one matrix."""
    return 2 * rows * width_in * width_out


def attention_work(tokens: int, width: int) -> int:
    """Of queries with keys and of weights with values, all heads together `width` wide."""
    return 4 * tokens * tokens * width


def block_matrices(dim: int) -> dict[str, tuple[int, int]]:
    """Width in and out of the products of one transformer block, those of one input as one."""
    hidden = int(dim / 3 * 8)
    return {
        "query, key, value": (dim, 3 * dim),
        "out": (dim, dim),
        "gate, up": (dim, 2 * hidden),
        "down": (hidden, dim),
    }


def block_work(dim: int, tokens: int) -> Work:
    """Of one transformer block."""
    products = sum(linear_work(tokens, *widths) for widths in block_matrices(dim).values())
    return Work(products, attention_work(tokens, dim))


def step_work(config: Config, shape: DenoiserShape) -> Work:
    """Of what one step of one picture has to do in the transformer: embedding, refiner, layers, projection."""
    dim, patch_width = config["dim"], PATCH * PATCH * config["in_channels"]
    image, all_tokens = shape.padded_image_tokens, shape.tokens
    refiners, layers = int(config["n_refiner_layers"]), int(config["n_layers"])
    ends = Work(linear_work(image, patch_width, dim) + linear_work(image, dim, patch_width))
    return ends + block_work(dim, image) * refiners + block_work(dim, all_tokens) * layers


def caption_work(config: Config, shape: DenoiserShape) -> Work:
    """Of what a prompt's embedding needs before the first step: its projection and its refiner."""
    dim, tokens = config["dim"], shape.caption_tokens
    projection = Work(linear_work(tokens, config["cap_feat_dim"], dim))
    return projection + block_work(dim, tokens) * int(config["n_refiner_layers"])


def text_encoder_work(config: Config, tokens: int) -> Work:
    """Of all layers but the last."""
    width, hidden = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    products = linear_work(tokens, width, 2 * queries + 2 * keys) + linear_work(tokens, width, 3 * hidden)
    return Work(products, attention_work(tokens, queries)) * (int(config["num_hidden_layers"]) - 1)


def decoder_work(config: Config, height: int, width: int) -> Work:
    """Of the VAE's decoder for latents of `height` x `width`; see diffusers' `Decoder`, `UNetMidBlock2D` and
    `UpDecoderBlock2D`.
    """
    channels = list(reversed(config["block_out_channels"]))
    latents, lowest, pixels = config["latent_channels"], channels[0], height * width
    work = Work(_convolution(pixels, latents, lowest) + 2 * _residual(pixels, lowest, lowest))
    if config.get("mid_block_add_attention", True):
        work += Work(linear_work(pixels, lowest, 4 * lowest), attention_work(pixels, lowest))
    if config.get("use_post_quant_conv", True):
        work += Work(_convolution(pixels, latents, latents, side=1))
    before = lowest
    for place, after in enumerate(channels):
        products = _residual(pixels, before, after) + config["layers_per_block"] * _residual(pixels, after, after)
        if place < len(channels) - 1:
            pixels *= 4
            products += _convolution(pixels, after, after)
        work, before = work + Work(products), after
    return work + Work(_convolution(pixels, before, config["out_channels"]))


def _convolution(pixels: int, channels_in: int, channels_out: int, side: int = 3) -> int:
    return linear_work(pixels, channels_in * side * side, channels_out)


def _residual(pixels: int, before: int, after: int) -> int:
    """Two convolutions, and one of a single pixel around them where the channels change."""
    around = _convolution(pixels, before, after, side=1) if before != after else 0
    return _convolution(pixels, before, after) + _convolution(pixels, after, after) + around
