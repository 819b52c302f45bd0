"""The first stage: an autoencoder that makes latents which are easy to draw, and pictures from them.

It learns from crops, then from whole pictures (its group norms see other statistics there). The decoder gets latents
with a little noise on them, since a sampler never hits exactly: it learns to clean up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training.pool import PicturePool, to_floats
from training.run import Stage, learning_rate

_PEAK_LR = 1.2e-3
_WARMUP_STEPS = 200
_KL_WEIGHT = 3e-4
_EDGE_WEIGHT = 0.5
_SQUARE_WEIGHT = 2.0
_ROUGHNESS = 0.06
_CROP, _CROP_CHUNKS = 128, 4
_WHOLE = 48
_WHOLE_FROM = 0.7
_LOG_EVERY = 200


def train_autoencoder(vae: AutoencoderKL, pictures: PicturePool, more: Iterable[None], stage: Stage) -> None:
    """Train `vae` in place until the stage's time is up, and set its scale and shift.

    Args:
        vae: fresh, on the stage's device.
        pictures: what it learns from; grows meanwhile.
        more: asked for its next value before every step, to let pictures arrive.
        stage: the clock and the log.
    """
    rng = random.Random("autoencoder")
    vae.train().to(memory_format=torch.channels_last)
    encoder, decoder = vae.encoder, vae.decoder
    if stage.device.type == "cuda":
        encoder, decoder = torch.compile(vae.encoder, dynamic=False), torch.compile(vae.decoder, dynamic=False)
    optimizer = torch.optim.AdamW(vae.parameters(), _PEAK_LR, betas=(0.9, 0.99), weight_decay=0.0)
    average = [parameter.detach().clone() for parameter in vae.parameters()]
    for step, _ in enumerate(more):
        if stage.is_over:
            break
        rate = learning_rate(_PEAK_LR, step, stage.progress, warmup_steps=_WARMUP_STEPS, decay_from=0.3)
        optimizer.param_groups[0]["lr"] = rate
        whole = stage.progress > _WHOLE_FROM
        batch = pictures.whole(rng, (256, 256), _WHOLE) if whole else pictures.crops(rng, _CROP_CHUNKS, _CROP)
        with torch.autocast(stage.device.type, torch.bfloat16):
            mean, log_variance = encoder(batch.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)
            log_variance = log_variance.clamp(-20, 10)
            spread = torch.randn_like(mean) * (0.5 * log_variance).exp() + _ROUGHNESS * torch.randn_like(mean)
            decoded = decoder(mean + spread)
        loss = _loss(decoded.float(), batch, mean.float(), log_variance.float())
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [p.detach() for p in vae.parameters()], 1 - min(0.999, step / (step + 100)))
        if step % _LOG_EVERY == 0:
            stage.log(step=step, loss=round(loss.item(), 5), gradient_norm=round(norm.item(), 3), rate=rate)
    with torch.no_grad():
        for parameter, mean_value in zip(vae.parameters(), average, strict=True):
            parameter.copy_(mean_value)
    vae.eval().requires_grad_(False)
    _set_scale(vae, pictures, rng)
    stage.log(steps=step, psnr_db=round(psnr_db(vae, pictures.whole(rng, (256, 256), 64)), 2), **_scale(vae))


def _loss(decoded: Tensor, batch: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Absolute and squared error, the same for edges, and a pull of the latents towards the unit normal."""
    error = decoded - batch
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    return error.abs().mean() + _SQUARE_WEIGHT * error.square().mean() + _EDGE_WEIGHT * edges + _KL_WEIGHT * divergence


def _set_scale(vae: AutoencoderKL, pictures: PicturePool, rng: random.Random) -> None:
    """Make the latents of zero mean and unit spread, as the sampler's noise has it."""
    with torch.no_grad():
        latents = torch.cat([vae.encode(pictures.whole(rng, (256, 256), 64)).latent_dist.mean for _ in range(8)])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


def _scale(vae: AutoencoderKL) -> dict[str, float]:
    return {"shift_factor": vae.config.shift_factor, "scaling_factor": vae.config.scaling_factor}


@torch.no_grad()
def psnr_db(vae: AutoencoderKL, batch: Tensor) -> float:
    """Peak signal to noise of reconstructions, mean over the pictures; `batch` is (n, 3, height, width) in -1..1."""
    decoded = vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)
    errors = functional.mse_loss(decoded, batch, reduction="none").mean(dim=(1, 2, 3))
    return float((10 * torch.log10(4 / errors)).mean())


@torch.no_grad()
def to_latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Bytes (n, height, width, 3) to latents of unit spread, (n, 16, height / 8, width / 8)."""
    with torch.autocast(pictures.device.type, torch.bfloat16):
        parts = [
            vae.encode(to_floats(part).contiguous(memory_format=torch.channels_last)).latent_dist.mean
            for part in pictures.split(32)
        ]
    return (torch.cat(parts).float() - vae.config.shift_factor) * vae.config.scaling_factor


@torch.no_grad()
def to_pictures(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """Latents of unit spread to bytes, (n, height, width, 3)."""
    decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    return ((decoded.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
