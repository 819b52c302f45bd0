"""The third stage: the model learns to take the sampler's few large steps, with guidance built in.

The teacher, the model as it was, goes from one of the sampler's sigmas to the next in several small steps with
guidance; the student learns the direction of the whole step. Afterwards it needs neither the small steps nor the
second forward of guidance. (Progressive distillation, Salimans and Ho, arXiv:2202.00512, in a single round, and
guidance distillation, Meng et al., arXiv:2210.03142.)
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from training.flow import make_optimizers
from training.model import SHIFT
from training.pool import Batch, LatentPool
from training.run import Stage, learning_rate, set_learning_rate
from training.velocity import Captions, Velocity, sampler_sigmas

_STEPS = 8
_SUBSTEPS = 4
_RATE = 0.25
_WARMUP_STEPS = 50
_EMA_DECAY = 0.995
_LOG_EVERY = 50


def distil(
    velocity: Velocity, teacher: Velocity, pool: LatentPool, stage: Stage, *, guidance: float, more: Callable[[], None]
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
    average = [parameter.detach().clone() for parameter in parameters]
    step = 0
    while not stage.is_over:
        more()
        rate = learning_rate(1.0, step, stage.progress, warmup_steps=_WARMUP_STEPS, decay_from=0.3)
        for optimizer in optimizers:
            set_learning_rate(optimizer, rate)
            optimizer.zero_grad()
        loss = _loss(velocity, teacher, pool, pool.draw(rng), guidance, stage.device)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(_EMA_DECAY, (step + 1) / (step + 20))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        if step % _LOG_EVERY == 0:
            stage.log(step=step, loss=round(loss.item(), 5), gradient_norm=round(norm.item(), 4))
        step += 1
    with torch.no_grad():
        torch._foreach_copy_([parameter.data for parameter in parameters], average)


def _loss(
    student: Velocity, teacher: Velocity, pool: LatentPool, batch: Batch, guidance: float, device: torch.device
) -> Tensor:
    sigmas = sampler_sigmas(_STEPS, SHIFT).to(device)
    index = torch.randint(_STEPS, (len(batch.latents),), device=device)
    start, end = sigmas[index], sigmas[index + 1]
    noisy = torch.lerp(batch.latents, torch.randn_like(batch.latents), start[:, None, None, None])
    with torch.autocast(device.type, torch.bfloat16):
        target = _teach(teacher, pool, batch.captions, noisy, (start, end), guidance)
        predicted = student(noisy, start, batch.captions)
    return functional.mse_loss(predicted, target)


@torch.no_grad()
def _teach(
    teacher: Velocity,
    pool: LatentPool,
    captions: Captions,
    noisy: Tensor,
    span: tuple[Tensor, Tensor],
    guidance: float,
) -> Tensor:
    """The mean velocity on the teacher's way from one sigma to the other."""
    start, end = span
    states = teacher.encode(captions)
    empty = pool.empty_captions(1, captions.ids.shape[1])
    nothing = teacher.encode(empty).expand(len(noisy), -1, -1)
    lengths = torch.cat((captions.lengths, empty.lengths.expand(len(noisy))))
    both = Captions(captions.ids.repeat(2, 1), lengths)
    latents = noisy
    for substep in range(_SUBSTEPS):
        at, to = (torch.lerp(start, end, (substep + more) / _SUBSTEPS) for more in (0, 1))
        if guidance:
            told, untold = teacher(latents.repeat(2, 1, 1, 1), at.repeat(2), both, torch.cat((states, nothing))).chunk(
                2
            )
            velocity = told + guidance * (told - untold)
        else:
            velocity = teacher(latents, at, captions, states)
        latents = latents + (to - at)[:, None, None, None] * velocity
    return (latents - noisy) / (end - start)[:, None, None, None]
