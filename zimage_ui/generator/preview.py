"""Small pictures of unfinished latents: one pixel for each latent position, by a 16 -> 3 linear projection.

The projection is fitted by least squares to the VAE that is loaded, so it holds for any of them: latents go through
the decoder, the decoded picture is averaged over the square of pixels that each latent position stands for, and the
16 weights and the bias of each colour are solved for.

What is projected is the step's estimate of the finished latents, not the latents themselves: those are mostly noise
until the last steps, while the estimate shows the composition from the first step on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812

from zimage_ui.generator.decoding import decode_tensor, latent_scale
from zimage_ui.generator.transfers import to_device

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

# The latents to fit on: their side, and the paintings by grain (positions from one random colour to the next), each
# once with soft and once with hard edges.
_SIDE = 16
_GRAINS = (16, 8, 4, 2, 1) * 2
_EDGES = ("bilinear", "nearest-exact")
_SEED = 0
# Paintings that go through the VAE together: more than a picture of 256 x 256 would add to what a small card needs.
_AT_ONCE = 4
# Below this share of the paintings' variance, the encoder does not know what its decoder shows.
_RECONSTRUCTS = 0.5
# In units of the latents' variance, which a VAE's scaling factor sets to about 1: keeps a channel that the paintings
# leave (nearly) empty from getting a huge weight, and changes the others by a hundredth.
_RIDGE = 0.01


@dataclass(frozen=True, slots=True)
class PreviewProjection:
    """RGB = latents @ weights + bias, with 0 black and 1 white.

    Attributes:
        weights: (channels, 3), fp32, on the device.
        bias: (3,).
        explained: share of the variance of the fitted colours that the projection explains, 0 to 1.
    """

    weights: torch.Tensor
    bias: torch.Tensor
    explained: float

    def draw(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (channels, height, width) as 8-bit RGB (height, width, 3), on their device."""
        colours = torch.addmm(self.bias, latents.flatten(1).T, self.weights)
        return colours.mul(255).round().clamp(0, 255).to(torch.uint8).view(*latents.shape[1:], 3)


def fit_projection(vae: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> PreviewProjection:
    """Fit the projection to `vae`.

    It is fitted where pictures lie: on what the VAE's encoder makes of random paintings. An encoder that does not fit
    its decoder (random weights) finds no such place; then noise stands for the latents.
    """
    generator = torch.Generator("cpu").manual_seed(_SEED)
    paintings = _paintings(_SIDE * latent_scale(vae), generator)
    latents = torch.cat([_encode(vae, some, device, dtype) for some in paintings.split(_AT_ONCE)])
    decoded = _decode(vae, latents, device)
    if _explained(paintings, decoded) < _RECONSTRUCTS:
        latents = torch.randn(latents.shape, generator=generator)
        decoded = _decode(vae, latents, device)
    colours = F.avg_pool2d((decoded * 0.5 + 0.5).clamp(0, 1), latent_scale(vae))
    weights, bias = _ridge_regression(_rows(latents), _rows(colours))
    return PreviewProjection(
        weights=to_device(weights.float(), device),
        bias=to_device(bias.float(), device),
        explained=_explained(_rows(colours), _rows(latents) @ weights + bias),
    )


def _paintings(side: int, generator: torch.Generator) -> torch.Tensor:
    """Random colour fields, -1 to 1, (paintings, 3, side, side)."""
    fields = []
    for grain in _GRAINS:
        for mode in _EDGES:
            cells = _SIDE // grain + 1
            colours = torch.rand((1, 3, cells, cells), generator=generator) * 2 - 1
            fields.append(F.interpolate(colours, size=(side, side), mode=mode))
    return torch.cat(fields)


def _encode(vae: AutoencoderKL, paintings: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    encoded = vae.encode(to_device(paintings.to(dtype), device)).latent_dist.mode()
    return ((encoded.float() - vae.config.shift_factor) * vae.config.scaling_factor).cpu()


def _decode(vae: AutoencoderKL, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    pieces = latents.split(_AT_ONCE)
    return torch.cat([decode_tensor(vae, to_device(piece, device), tiled=False).float().cpu() for piece in pieces])


def _rows(maps: torch.Tensor) -> torch.Tensor:
    """(pictures, channels, height, width) as one row of channels for each position, in double precision."""
    return maps.double().permute(0, 2, 3, 1).flatten(0, 2)


def _ridge_regression(inputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias that minimise |inputs @ weights + bias - targets|^2 + ridge * rows * |weights|^2."""
    centre, middle = inputs.mean(0), targets.mean(0)
    centred = inputs - centre
    gram = centred.T @ centred
    gram.diagonal().add_(_RIDGE * len(inputs))
    weights = torch.linalg.solve(gram, centred.T @ (targets - middle))
    return weights, middle - centre @ weights


def _explained(truth: torch.Tensor, estimate: torch.Tensor) -> float:
    """The share of the variance of `truth` that `estimate` explains; below 0 when its mean explains more."""
    residual = (truth - estimate).square().mean()
    return float(1 - residual / truth.var().clamp(min=1e-12))
