"""Trains the judge: a pool of renders that grows while training goes on, and a one-cycle rate by the clock."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from training.judge.augment import augment
from training.judge.examples import Examples, ExampleStream
from training.judge.network import JudgeNetwork
from training.judge.targets import loss_of
from training.pixels import to_floats

_PEAK_RATE, _WEIGHT_DECAY, _CLIP = 2e-3, 0.02, 5.0
_WARMUP_SHARE = 0.08
_REPORT_EVERY_S = 10.0
# Pictures before the first step; on a pool any smaller it would only learn by heart.
_FIRST_PICTURES = 2_048
# New chunks taken before each step; many fast processes must not keep the device waiting.
_CHUNKS_A_STEP = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples on the training device."""

    pictures: Tensor
    objects: Tensor
    backgrounds: Tensor


class ExamplePool:
    """Examples as bytes on `device`, up to `capacity` pictures; the oldest go first."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        self._device, self._capacity = device, capacity
        self._held: Batch | None = None
        self._added = 0

    def __len__(self) -> int:
        return min(self._added, self._capacity)

    @property
    def added(self) -> int:
        """How many pictures were added in all."""
        return self._added

    def add(self, examples: Examples) -> None:
        """Take a chunk."""
        new = [torch.from_numpy(part) for part in (examples.pictures, examples.objects, examples.backgrounds)]
        if self._held is None:
            self._held = Batch(
                *(torch.empty((self._capacity, *part.shape[1:]), dtype=part.dtype, device=self._device) for part in new)
            )
        places = (self._added + torch.arange(len(new[0]))).remainder(self._capacity).to(self._device)
        held = (self._held.pictures, self._held.objects, self._held.backgrounds)
        for kept, part in zip(held, new, strict=True):
            kept[places] = part.to(self._device)
        self._added += len(new[0])

    def draw(self, batch: int) -> Batch:
        """`batch` random pictures."""
        if self._held is None:
            raise ValueError("the pool is empty")
        picked = torch.randint(len(self), (batch,), device=self._device)
        return Batch(self._held.pictures[picked], self._held.objects[picked], self._held.backgrounds[picked])


class Trainer:
    """One network, its optimizer and its steps."""

    def __init__(self, network: JudgeNetwork, device: torch.device) -> None:
        self.network = network.to(device)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        matrices = [value for value in network.parameters() if value.ndim > 1]
        others = [value for value in network.parameters() if value.ndim <= 1]
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
            lr=_PEAK_RATE,
            fused=device.type == "cuda",
        )
        self._device = device

    def step(self, batch: Batch, progress: float, *, augmented: bool = True) -> Tensor:
        """One step at the rate for `progress` (0..1) of the time; the loss, still on the device."""
        for group in self._optimizer.param_groups:
            group["lr"] = one_cycle(progress)
        self.network.train()
        pictures, objects = to_floats(batch.pictures), batch.objects
        if augmented:
            pictures, objects = augment(pictures, objects)
        height, width = pictures.shape[-2:]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            output = self.network(pictures.contiguous(memory_format=torch.channels_last))
        loss = loss_of(output, objects, batch.backgrounds, height, width)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), _CLIP)
        self._optimizer.step()
        return loss.detach()


def one_cycle(progress: float) -> float:
    """The learning rate at `progress` (0..1): a linear rise, then half a cosine down to a thousandth."""
    if progress < _WARMUP_SHARE:
        return _PEAK_RATE * max(0.02, progress / _WARMUP_SHARE)
    falling = (min(progress, 1.0) - _WARMUP_SHARE) / (1 - _WARMUP_SHARE)
    return _PEAK_RATE * max(1e-3, (1 + math.cos(math.pi * falling)) / 2)


@dataclass(frozen=True, slots=True)
class TrainingFigures:
    """What a training run came to."""

    steps: int
    pictures_rendered: int
    seconds: float
    last_loss: float


def train(
    trainer: Trainer,
    stream: ExampleStream,
    pool: ExamplePool,
    *,
    batch: int,
    seconds: float,
    report: Callable[[str], None],
) -> TrainingFigures:
    """Train for `seconds`, waiting for the first pictures included."""
    begun = time.monotonic()
    # A few slow processes must not use up the time of a short run.
    while pool.added < _FIRST_PICTURES and (pool.added < batch or time.monotonic() - begun < seconds / 4):
        pool.add(stream.take())
    ready = time.monotonic()
    end = max(begun + seconds, ready + 0.1)
    report(f"{pool.added} pictures after {ready - begun:.1f} s")
    steps, loss, reported = 0, torch.zeros(()), ready
    while (now := time.monotonic()) < end:
        for _ in range(_CHUNKS_A_STEP):
            if stream.is_ready:
                pool.add(stream.take())
        loss = trainer.step(pool.draw(batch), (now - ready) / (end - ready))
        steps += 1
        if steps % 20 == 0:
            float(loss)  # waits for the device: the clock sets the rate, and must not run ahead of it
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            report(f"{now - begun:5.0f} s  step {steps}  {pool.added} pictures  loss {float(loss):.4f}")
    return TrainingFigures(steps, pool.added, time.monotonic() - begun, float(loss))
