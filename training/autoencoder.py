"""The first stage: an autoencoder that makes latents which are easy to draw, and pictures from them.

It learns from crops, then from whole pictures (its group norms see other statistics there). The decoder gets latents
with a little noise on them, since a sampler never hits exactly: it learns to clean up.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from training.average import RunningMean
from training.farm import Size
from training.pixels import to_bytes, to_floats
from training.pool import PicturePool
from training.run import Stage, learning_rate

_PEAK_LR = 1.2e-3
_WARMUP_STEPS = 200
_DECAY_FROM = 0.3
_CLIP_NORM = 1.0
_EMA_DECAY, _EMA_WARMUP_STEPS = 0.999, 100
_KL_WEIGHT = 3e-4
_EDGE_WEIGHT = 0.5
_SQUARE_WEIGHT = 2.0
_ROUGHNESS = 0.06
_WHOLE_FROM = 0.7
_MEASURED, _MEASURED_BATCHES = 64, 8
_LOG_EVERY = 200


@dataclass(frozen=True, slots=True)
class PictureBatches:
    """What the autoencoder learns from at a step.

    Attributes:
        crop_px: side of the squares, at first.
        crop_chunks: chunks that they come from, up to 32 of each.
        whole_size: width and height of the whole pictures, later on.
        whole: how many of them.
    """

    crop_px: int = 128
    crop_chunks: int = 4
    whole_size: Size = (256, 256)
    whole: int = 48


@dataclass(frozen=True, slots=True)
class _Coded:
    """A batch after the autoencoder, all in fp32."""

    decoded: Tensor
    mean: Tensor
    log_variance: Tensor


def train_autoencoder(
    vae: AutoencoderKL, pictures: PicturePool, more: Iterable[None], stage: Stage, batches: PictureBatches
) -> None:
    """Train `vae` in place until the stage's time is up, and set its scale and shift.

    Args:
        vae: fresh, on the stage's device; frozen afterwards.
        pictures: what it learns from; grows meanwhile.
        more: asked for its next value before every step, to let pictures arrive.
        stage: the clock and the log.
        batches: how much of what is learned from at a step.
    """
    rng = random.Random("autoencoder")
    trainer = _Trainer(vae, stage)
    for _ in more:
        if stage.is_over:
            break
        if stage.progress > _WHOLE_FROM:
            batch = pictures.whole(rng, batches.whole_size, batches.whole)
        else:
            batch = pictures.crops(rng, batches.crop_chunks, batches.crop_px)
        trainer.step(batch)
    trainer.finish()
    measured = [pictures.whole(rng, batches.whole_size, _MEASURED) for _ in range(_MEASURED_BATCHES)]
    _set_scale(vae, measured)
    stage.log(
        steps=trainer.steps,
        psnr_db=round(psnr_db(reconstructed(vae, measured[0]), measured[0]), 2),
        shift_factor=vae.config.shift_factor,
        scaling_factor=vae.config.scaling_factor,
    )


class _Trainer:
    """Takes `vae` step by step, and keeps the running mean of its weights."""

    def __init__(self, vae: AutoencoderKL, stage: Stage) -> None:
        self.steps = 0
        self._vae = vae.train().to(memory_format=torch.channels_last)
        self._stage = stage
        self._encoder, self._decoder = vae.encoder, vae.decoder
        if stage.device.type == "cuda":
            self._encoder = torch.compile(vae.encoder, dynamic=False)
            self._decoder = torch.compile(vae.decoder, dynamic=False)
        self._parameters = list(vae.parameters())
        self._optimizer = torch.optim.AdamW(self._parameters, _PEAK_LR, betas=(0.9, 0.99), weight_decay=0.0)
        self._average = RunningMean(self._parameters, decay=_EMA_DECAY, warmup_steps=_EMA_WARMUP_STEPS)

    def step(self, batch: Tensor) -> None:
        """Learn from `batch`, (n, 3, height, width) in -1..1."""
        rate = learning_rate(
            _PEAK_LR, self.steps, self._stage.progress, warmup_steps=_WARMUP_STEPS, decay_from=_DECAY_FROM
        )
        self._optimizer.param_groups[0]["lr"] = rate
        loss = _loss(self._code(batch), batch)
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP_NORM)
        self._optimizer.step()
        self._average.update(self.steps)
        if self.steps % _LOG_EVERY == 0:
            self._stage.log(step=self.steps, loss=round(loss.item(), 5), gradient_norm=round(norm.item(), 3), rate=rate)
        self.steps += 1

    def finish(self) -> None:
        """Keep the running mean, for good."""
        self._average.keep()
        self._vae.eval().requires_grad_(False)

    def _code(self, batch: Tensor) -> _Coded:
        with torch.autocast(self._stage.device.type, torch.bfloat16):
            mean, log_variance = self._encoder(batch.contiguous(memory_format=torch.channels_last)).chunk(2, dim=1)
            log_variance = log_variance.clamp(-20, 10)
            spread = torch.randn_like(mean) * (0.5 * log_variance).exp() + _ROUGHNESS * torch.randn_like(mean)
            decoded = self._decoder(mean + spread)
        return _Coded(decoded.float(), mean.float(), log_variance.float())


def _loss(coded: _Coded, batch: Tensor) -> Tensor:
    """Absolute and squared error, the same for edges, and a pull of the latents towards the unit normal."""
    error = coded.decoded - batch
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    divergence = 0.5 * (coded.mean.square() + coded.log_variance.exp() - 1 - coded.log_variance).mean()
    return error.abs().mean() + _SQUARE_WEIGHT * error.square().mean() + _EDGE_WEIGHT * edges + _KL_WEIGHT * divergence


@torch.no_grad()
def _set_scale(vae: AutoencoderKL, batches: list[Tensor]) -> None:
    """Make the latents of zero mean and unit spread, as the sampler's noise has it."""
    latents = torch.cat([vae.encode(batch).latent_dist.mean for batch in batches])
    vae.register_to_config(shift_factor=latents.mean().item(), scaling_factor=1 / latents.std().item())


@torch.no_grad()
def reconstructed(vae: AutoencoderKL, batch: Tensor) -> Tensor:
    """What is left of `batch`, (n, 3, height, width) in -1..1, after encoding to the mean and decoding."""
    return vae.decode(vae.encode(batch).latent_dist.mean).sample.clamp(-1, 1)


def psnr_db(pictures: Tensor, others: Tensor) -> float:
    """Peak signal to noise, mean over the pictures, (n, 3, height, width) in -1..1; infinite if they are equal."""
    errors = functional.mse_loss(pictures, others, reduction="none").mean(dim=(1, 2, 3))
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
    return to_bytes(decoded)
