"""The third stage: the model learns to take the sampler's few large steps, with guidance built in.

The teacher, the model as it was, goes from one of the sampler's sigmas to the next in several small steps with
guidance; the student learns the direction of the whole step. Afterwards it needs neither the small steps nor the
second forward of guidance. (Progressive distillation, Salimans and Ho, arXiv:2202.00512, in a single round, and
guidance distillation, Meng et al., arXiv:2210.03142.)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from training.average import RunningMean
from training.flow import make_optimizers
from training.model import SHIFT
from training.pool import Batch, LatentPool
from training.run import Stage, learning_rate, set_learning_rate
from training.velocity import Captions, Velocity, sampler_sigmas

_STEPS = 8
_SUBSTEPS = 4
_RATE = 0.25
_WARMUP_STEPS = 50
_DECAY_FROM = 0.3
_CLIP_NORM = 1.0
_EMA_DECAY, _EMA_WARMUP_STEPS = 0.995, 20
_LOG_EVERY = 50


class Teacher(Protocol):
    """What is asked of a teacher, as `Velocity` has it."""

    def encode(self, captions: Captions) -> Tensor:
        """The captions' embeddings."""

    def __call__(self, latents: Tensor, sigma: Tensor, captions: Captions, states: Tensor | None = None) -> Tensor:
        """The velocity at `latents`."""


def distil(
    velocity: Velocity, teacher: Teacher, pool: LatentPool, stage: Stage, *, guidance: float, more: Callable[[], None]
) -> None:
    """Train `velocity` in place until the stage's time is up; its weights end as their running mean.

    Args:
        velocity: the student.
        teacher: what it starts from, frozen.
        pool: latents and captions.
        stage: the clock and the log.
        guidance: how far the teacher goes beyond the conditional direction, away from the unconditional one; 0 is off.
        more: called before every step.
    """
    rng = random.Random("distil")
    parameters = velocity.parameters
    optimizers = make_optimizers(velocity, muon=False, scale=_RATE)
    average = RunningMean(parameters, decay=_EMA_DECAY, warmup_steps=_EMA_WARMUP_STEPS)
    step = 0
    while not stage.is_over:
        more()
        rate = learning_rate(1.0, step, stage.progress, warmup_steps=_WARMUP_STEPS, decay_from=_DECAY_FROM)
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
        batch = pool.draw(rng)
        empty = pool.empty_captions(1, batch.captions.ids.shape[1])
        loss = distillation_loss(velocity, teacher, batch, empty, guidance)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, _CLIP_NORM)
        for optimizer in optimizers:
            optimizer.step()
        average.update(step)
        if step % _LOG_EVERY == 0:
            stage.log(step=step, loss=round(loss.item(), 5), gradient_norm=round(norm.item(), 4))
        step += 1
    average.keep()
    stage.log(steps=step)


def distillation_loss(student: Velocity, teacher: Teacher, batch: Batch, empty: Captions, guidance: float) -> Tensor:
    """Mean squared error of the student's direction against the teacher's way, at random steps of the sampler."""
    device = batch.latents.device
    sigmas = sampler_sigmas(_STEPS, SHIFT).to(device)
    index = torch.randint(_STEPS, (len(batch.latents),), device=device)
    start, end = sigmas[index], sigmas[index + 1]
    noisy = torch.lerp(batch.latents, torch.randn_like(batch.latents), start[:, None, None, None])
    with torch.autocast(device.type, torch.bfloat16):
        target = taught(teacher, batch.captions, empty, noisy, (start, end), guidance)
        predicted = student(noisy, start, batch.captions)
    return functional.mse_loss(predicted, target)


@torch.no_grad()
def taught(
    teacher: Teacher,
    captions: Captions,
    empty: Captions,
    noisy: Tensor,
    span: tuple[Tensor, Tensor],
    guidance: float,
) -> Tensor:
    """The mean velocity on the teacher's way from one sigma to the other.

    Args:
        teacher: whose way it is.
        captions: what is on the pictures.
        empty: the empty prompt, in a batch of one and in the bucket of `captions`.
        noisy: latents at the first sigma.
        span: both sigmas, (batch,) each.
        guidance: as for `distil`.
    """
    start, end = span
    states = teacher.encode(captions)
    nothing = teacher.encode(empty).expand(len(noisy), -1, -1)
    lengths = torch.cat((captions.lengths, empty.lengths.expand(len(noisy))))
    both = Captions(captions.ids.repeat(2, 1), lengths)
    latents = noisy
    for substep in range(_SUBSTEPS):
        at, to = (torch.lerp(start, end, (substep + more) / _SUBSTEPS) for more in (0, 1))
        if guidance:
            answers = teacher(latents.repeat(2, 1, 1, 1), at.repeat(2), both, torch.cat((states, nothing)))
            told, untold = answers.chunk(2)
            velocity = told + guidance * (told - untold)
        else:
            velocity = teacher(latents, at, captions, states)
        latents = latents + (to - at)[:, None, None, None] * velocity
    return (latents - noisy) / (end - start)[:, None, None, None]
