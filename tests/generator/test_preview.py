"""The preview's projection: solved from the VAE that is loaded, and nothing else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from zimage_ui.generator.preview import PreviewProjection, fit_projection

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


class LinearVae:
    """A VAE whose truth is known: each colour is a mix of the channels, each channel a mix of the colours."""

    dtype = torch.float32

    def __init__(self, *, encoder_fits: bool = True) -> None:
        generator = torch.Generator().manual_seed(5)
        self.mix = torch.randn((3, 16), generator=generator)
        back = torch.linalg.pinv(self.mix)
        self.back = back if encoder_fits else torch.randn(back.shape, generator=generator)
        spread = float((back @ (torch.rand((3, 1000), generator=generator) * 2 - 1)).std())
        self.config = SimpleNamespace(scaling_factor=1 / spread, shift_factor=0.1, block_out_channels=[8, 8, 8, 8])

    def encode(self, picture: torch.Tensor) -> Any:
        latents = torch.einsum("cx,bxhw->bchw", self.back, F.avg_pool2d(picture, 8))
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (F.interpolate(torch.einsum("xc,bchw->bxhw", self.mix, latents), scale_factor=8),)


def test_a_linear_vae_is_found_out():
    vae = LinearVae()
    projection = fit_projection(vae, CPU, torch.float32)
    assert projection.explained > 0.99
    colours = torch.rand((3, 6, 9), generator=torch.Generator().manual_seed(1))
    painting = F.interpolate(colours[None] * 2 - 1, scale_factor=8)
    latents = (vae.encode(painting).latent_dist.mode()[0] - 0.1) * vae.config.scaling_factor
    drawn = projection.draw(latents)
    assert drawn.shape == (6, 9, 3)
    assert drawn.dtype == torch.uint8
    assert (drawn / 255 - colours.permute(1, 2, 0)).abs().max() < 0.03


def test_an_encoder_that_does_not_fit_its_decoder_is_not_believed():
    vae = LinearVae(encoder_fits=False)
    projection = fit_projection(vae, CPU, torch.float32)
    latents = torch.randn((16, 8, 8), generator=torch.Generator().manual_seed(2))
    truth = vae.decode(latents[None] / vae.config.scaling_factor + 0.1, return_dict=False)[0][0, :, ::8, ::8]
    drawn = projection.draw(latents).permute(2, 0, 1) / 255
    assert torch.corrcoef(torch.stack([drawn.flatten(), (truth * 0.5 + 0.5).clamp(0, 1).flatten()]))[0, 1] > 0.9


def test_the_loaded_vae_is_explained_better_than_by_its_mean(stock):
    with torch.inference_mode():
        projection = fit_projection(stock.vae, CPU, torch.float32)
    assert projection.weights.shape == (16, 3)
    assert 0 < projection.explained <= 1


def test_another_vae_gets_another_projection(stock):
    with torch.inference_mode():
        ours = fit_projection(stock.vae, CPU, torch.float32)
    other = fit_projection(LinearVae(), CPU, torch.float32)
    assert not torch.allclose(ours.weights, other.weights, atol=1e-2)


def test_the_fit_is_the_same_each_time_and_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    first, second = (fit_projection(LinearVae(), CPU, torch.float32) for _ in range(2))
    assert torch.equal(first.weights, second.weights)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_colours_beyond_the_range_are_clipped():
    projection = PreviewProjection(weights=torch.eye(16)[:, :3] * 4, bias=torch.full((3,), 0.5), explained=1.0)
    latents = torch.zeros(16, 1, 3)
    latents[:3, 0, 0], latents[:3, 0, 2] = -1.0, 1.0
    assert projection.draw(latents)[0, :, 0].tolist() == [0, 128, 255]
