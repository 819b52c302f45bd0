"""The third stage: latents become 8-bit RGB in host memory.

The pictures of a batch are decoded one after the other. The decoder's activations are by far the largest of a job
(gigabytes for one megapixel), one picture fills a GPU at the sizes where that matters, and a picture then comes out
the same alone and in a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from zimage_ui.generator.sampling import raise_if_cancelled, require_finite
from zimage_ui.generator.transfers import record_fence, to_host, works_meanwhile
from zimage_ui.request import GeneratedImage

# In latent positions (8 pixels each): a tile needs about a quarter of the memory of a megapixel, and the overlap is
# wide enough to hide that every tile is normalised by itself.
TILE = 64
TILE_OVERLAP = 16


class Decoder(Protocol):
    """What decoding needs of a VAE: a diffusers `AutoencoderKL`, or a `FastDecoder` in its place.

    Attributes:
        config: the VAE's.
        dtype: of the latents that it takes.
    """

    config: Any
    dtype: torch.dtype

    def decode(self, latents: torch.Tensor, return_dict: bool = ...) -> Any:
        """A tuple of the decoded pictures, (pictures, 3, pixel height, pixel width), without `return_dict`."""


def latent_scale(vae: Decoder) -> int:
    """Pixels along one side of a latent position."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def decode(
    vae: Decoder,
    latents: torch.Tensor,
    seeds: Sequence[int],
    *,
    tiled: bool,
    cancel: threading.Event,
    settle: Callable[[], object],
) -> tuple[GeneratedImage, ...]:
    """Decode each of `latents` (pictures, channels, height, width) and bring its pixels to the host.

    Args:
        vae: decodes.
        latents: may be under way on their device.
        seeds: of the pictures.
        tiled: in tiles, which need less memory.
        cancel: set when nobody wants the pictures any more.
        settle: waits until the latents are there, and says what is wrong with them. A GPU is given the first picture
            before that, so that it does not stand idle while the host wakes up; a CPU works when it is asked to.

    Raises:
        JobCancelledError: `cancel` was set; looked at before each picture.
        GenerationError: the VAE computed numbers that are not finite.
    """
    pixels, extremes = [], []
    waits_for = 1 if works_meanwhile(latents.device) else 0
    for number, picture in enumerate(latents.split(1)):
        raise_if_cancelled(cancel)
        if number == waits_for:
            settle()
        decoded = decode_tensor(vae, picture, tiled=tiled)
        extremes.append(decoded.abs().amax())  # not finite if anything is not
        pixels.append(to_host(to_rgb8(decoded)))
    if len(pixels) <= waits_for:
        settle()
    largest = to_host(torch.stack(extremes))
    record_fence(latents.device).wait()  # the one wait of this stage
    require_finite(largest, "VAE")
    return tuple(_image(index, seed, rgb) for index, (seed, rgb) in enumerate(zip(seeds, pixels, strict=True)))


def decode_tensor(vae: Decoder, latents: torch.Tensor, *, tiled: bool) -> torch.Tensor:
    """What the VAE makes of `latents`, (1, 3, pixel height, pixel width), about -1 to 1."""
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    if tiled and max(scaled.shape[-2:]) > TILE:
        return _decode_in_tiles(vae, scaled)
    return vae.decode(scaled, return_dict=False)[0]


def to_rgb8(decoded: torch.Tensor) -> torch.Tensor:
    """Decoded values of one picture (1, 3, h, w) as 8-bit RGB (h, w, 3), rounded as the stock pipeline rounds.

    Computed in fp32, where the stock pipeline halves and shifts in the VAE's dtype: the same in fp32, and in bf16 one
    rounding less.
    """
    unit = (decoded[0].float() * 0.5 + 0.5).clamp(0, 1)
    return unit.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles of one size start so that they cover `length`, spread evenly, overlapping by `overlap` or more.

    All tiles are whole: the decoder normalises over a tile, and a sliver at the edge would come out in other colours.
    """
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(index * (length - tile) / (count - 1)) for index in range(count)]


def _decode_in_tiles(vae: Decoder, scaled: torch.Tensor) -> torch.Tensor:
    scale = latent_scale(vae)
    height, width = scaled.shape[-2:]
    total = torch.zeros((1, 3, height * scale, width * scale), dtype=torch.float32, device=scaled.device)
    weight = torch.zeros_like(total[:, :1])
    for top in tile_starts(height, TILE, TILE_OVERLAP):
        for left in tile_starts(width, TILE, TILE_OVERLAP):
            tile = vae.decode(scaled[..., top : top + TILE, left : left + TILE], return_dict=False)[0].float()
            rows, columns = tile.shape[-2:]
            ramp = _ramp(rows, scale, tile.device)[:, None] * _ramp(columns, scale, tile.device)
            place = (..., slice(top * scale, top * scale + rows), slice(left * scale, left * scale + columns))
            total[place] += tile * ramp
            weight[place] += ramp
    return total / weight


def _ramp(length: int, scale: int, device: torch.device) -> torch.Tensor:
    """Weights along one side of a tile: rising over the overlap, 1 in the middle, falling again; never 0."""
    position = torch.arange(length, dtype=torch.float32, device=device) + 0.5
    return torch.minimum(position, length - position).div(TILE_OVERLAP * scale).clamp(max=1)


def _image(index: int, seed: int, rgb: torch.Tensor) -> GeneratedImage:
    """The picture whose bytes are those of `rgb`, which it keeps alive, so that nobody else is given that memory."""
    height, width, _ = rgb.shape
    pixels = rgb.numpy().data.cast("B").toreadonly()
    return GeneratedImage(index=index, seed=seed, width=width, height=height, pixels=pixels)
