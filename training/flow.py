"""The second stage: text encoder and transformer learn, together, to turn noise into pictures (flow matching).

On the straight way from a picture (sigma 0) to noise (sigma 1) the model learns the direction. Sigmas are drawn as the
sampler visits them: evenly, then shifted towards noise. (Lipman et al., arXiv:2210.02747; the shift is that of
Esser et al., arXiv:2403.03206.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from training.average import RunningMean, assign
from training.model import SHIFT
from training.muon import StackedMuon
from training.pool import Batch, LatentPool
from training.run import Stage, learning_rate, save_atomically, set_learning_rate
from training.velocity import Velocity

_ADAMW_PEAK_LR = 6e-4
_MUON_PEAK_LR = 2e-3
_WARMUP_STEPS = 800
_DECAY_FROM = 0.6
_CLIP_NORM = 1.0
_EMA_DECAY, _EMA_WARMUP_STEPS = 0.9993, 100
_LOG_EVERY = 200
_REFRESH_EVERY = 100


class FlowTrainer:
    """Trains `velocity` on `pool`, keeps a running mean of its weights, and goes on after an interruption.

    Args:
        velocity: text encoder and transformer, on the stage's device.
        pool: latents and captions, already filled with some.
        stage: the clock and the log.
        muon: matrices within the blocks are trained by Muon, the rest by AdamW; else all by AdamW.
        rate: of learning, as a share of the usual one: less than 1 for weights that have learned already.
    """

    def __init__(
        self, velocity: Velocity, pool: LatentPool, stage: Stage, *, muon: bool = True, rate: float = 1.0
    ) -> None:
        self.velocity = velocity
        self.step = 0  # the next one
        self._pool = pool
        self._stage = stage
        self._rng = random.Random("flow")
        self._parameters = velocity.parameters
        self._optimizers = make_optimizers(velocity, muon=muon, scale=rate)
        self._average = RunningMean(self._parameters, decay=_EMA_DECAY, warmup_steps=_EMA_WARMUP_STEPS)

    def train(self, more: Callable[[], None], pause: Callable[[], None]) -> None:
        """Train until the stage's time is up.

        Args:
            more: called before every step, to let latents arrive.
            pause: called after every log line, to save and show what is there.
        """
        begun_at = self.step
        while not self._stage.is_over:
            more()
            if self.step % _REFRESH_EVERY == 0:
                self._pool.refresh()
            loss, norm = self._train_step(self._pool.draw(self._rng))
            done, self.step = self.step, self.step + 1  # what `pause` saves goes on with the next one
            if done % _LOG_EVERY == 0 or done in (1, 10, 50):
                self._report(done, loss, norm)
                pause()
        if self.step > begun_at:
            self._stage.log(steps=self.step, pictures=self._pool.pictures)

    def _train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        rate = learning_rate(1.0, self.step, self._stage.progress, warmup_steps=_WARMUP_STEPS, decay_from=_DECAY_FROM)
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, rate)
        loss = flow_loss(self.velocity, batch, self._stage.device)
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, _CLIP_NORM)
        for optimizer in self._optimizers:
            optimizer.step()
        self._average.update(self.step)
        return loss, norm

    def _report(self, step: int, loss: Tensor, norm: Tensor) -> None:
        norms = {
            name: parameter.grad.norm().item()
            for name, parameter in self.velocity.named_parameters.items()
            if parameter.grad is not None
        }
        largest = sorted(norms, key=norms.__getitem__, reverse=True)[:3]
        self._stage.log(
            step=step,
            loss=round(loss.item(), 4),
            gradient_norm=round(norm.item(), 3),
            largest={name: round(norms[name], 3) for name in largest},
            pictures=self._pool.pictures,
        )

    def averaged(self) -> AbstractContextManager[None]:
        """Within, the weights are their running mean."""
        return self._average.swapped_in()

    def finish(self) -> None:
        """Keep the running mean as the weights."""
        self._average.keep()

    def save(self, path: Path) -> None:
        """Store all that `load` needs to go on."""
        content: dict[str, Any] = {
            "step": self.step,
            "spent_s": self._stage.elapsed_s,
            "weights": [parameter.detach() for parameter in self._parameters],
            "average": self._average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "random": self._rng.getstate(),
            "random_device": _device_random(self._stage.device).get_rng_state(),
        }
        save_atomically(content, path)

    def load(self, path: Path) -> None:
        """Go on from what `save` stored.

        Raises:
            OSError: there is no such file.
        """
        content = torch.load(path, map_location=self._stage.device, weights_only=True)
        self.step = content["step"]
        self._stage.spent_s = content["spent_s"]
        assign(self._parameters, content["weights"])
        self._average.values = content["average"]
        for optimizer, state in zip(self._optimizers, content["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._rng.setstate(content["random"])
        _device_random(self._stage.device).set_rng_state(content["random_device"].cpu())


def _device_random(device: torch.device) -> Any:
    """The module that keeps the state of the device's random numbers."""
    return torch.cuda if device.type == "cuda" else torch


def make_optimizers(velocity: Velocity, *, muon: bool, scale: float = 1.0) -> list[torch.optim.Optimizer]:
    """The optimizers of all weights; `scale` of their usual rates. Each group knows its peak, "peak_lr".

    Muon (Jordan et al., 2024) steps by orthogonalised gradients; its rate is matched to AdamW's by root mean square.
    """
    matrices = [
        parameter
        for name, parameter in velocity.named_parameters.items()
        if muon and parameter.ndim == 2 and "layers." in name.replace("refiner.", "layers.") and "adaLN" not in name
    ]
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in velocity.parameters if id(parameter) not in chosen]
    fused = rest[0].device.type == "cuda"
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, _ADAMW_PEAK_LR * scale, betas=(0.9, 0.99), weight_decay=0.0, fused=fused)
    ]
    if matrices:
        optimizers.append(StackedMuon(matrices, _MUON_PEAK_LR * scale, weight_decay=0.01))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def flow_loss(velocity: Velocity, batch: Batch, device: torch.device) -> Tensor:
    """Mean squared error of the direction, at random sigmas."""
    clean = batch.latents
    noise = torch.randn_like(clean)
    even = torch.rand(len(clean), device=device)
    sigma = SHIFT * even / (1 + (SHIFT - 1) * even)
    noisy = torch.lerp(clean, noise, sigma[:, None, None, None])
    with torch.autocast(device.type, torch.bfloat16):
        predicted = velocity(noisy, sigma, batch.captions)
    return functional.mse_loss(predicted, noise - clean)
