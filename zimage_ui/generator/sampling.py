"""The second stage: noise becomes latents, step by step.

The loop knows nothing of how one velocity is predicted (`Denoiser`), nothing of which solver uses it (`Schedule`), and
nothing of who watches (`StepWatcher`), so each can be replaced by a faster or a richer one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from zimage_ui.errors import GenerationError, JobCancelledError
from zimage_ui.generator.transfers import host_memory, record_fence, to_device, to_host
from zimage_ui.request import SchedulerName

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

_PATCH = 2


class Denoiser(Protocol):
    """Predicts velocities for one request; made anew for each, so it may prepare what no step changes.

    Attributes:
        forwards: passes through the transformer so far, for one picture of the batch. Guidance needs two for each
            step (with the prompt and with the negative prompt), also where both run in one batch.
    """

    forwards: int

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        """The velocity (noise minus picture) at `latents`.

        Args:
            latents: (pictures, channels, height, width), fp32.
            timestep: scalar tensor on the latents' device, 1000 (noise) to 0 (picture).
            step: from 0; which step of the schedule this is.

        Returns:
            fp32, of the latents' shape.
        """


@dataclass(frozen=True, slots=True)
class Schedule:
    """The time steps of one request and the solver that takes them; used once.

    Attributes:
        scheduler: diffusers' own, fresh: solvers of higher order carry state from step to step.
        timesteps: what the model is told, one for each step, on the latents' device.
        sigmas: noise levels on the CPU, one more than steps (the last is 0). There they are plain numbers to the
            device, so no step waits for one to be read back.
    """

    scheduler: Any
    timesteps: torch.Tensor
    sigmas: torch.Tensor

    def __len__(self) -> int:
        return self.timesteps.shape[0]

    @property
    def host_timesteps(self) -> tuple[float, ...]:
        """The same time steps as plain numbers, without waiting for the device."""
        return tuple((self.sigmas[:-1] * self.scheduler.config.num_train_timesteps).tolist())

    def advance(self, step: int, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The latents after `step`."""
        timestep = self.scheduler.timesteps[step]
        return self.scheduler.step(velocity, timestep, latents, return_dict=False)[0]

    def clean_estimate(self, step: int, velocity: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """The picture that `latents` before `step` would become if `velocity` held all the way: x - sigma * v."""
        return latents - self.sigmas[step] * velocity


def make_schedule(
    model_scheduler: FlowMatchEulerDiscreteScheduler,
    name: SchedulerName,
    num_inference_steps: int,
    latents: torch.Tensor,
) -> Schedule:
    """A fresh schedule for `latents`, by the noise table that the model was made for.

    UniPC and DPM++ 2M keep rounded integers as time steps; the model is told the exact ones, sigma * 1000, which for
    Euler are the scheduler's own.
    """
    config = model_scheduler.config
    mu = resolution_shift(config, latents.shape[-2] * latents.shape[-1] // _PATCH**2)
    if name is SchedulerName.EULER:
        scheduler = type(model_scheduler).from_config(config)
        sigmas = torch.linspace(1.0, 1 / num_inference_steps, num_inference_steps).tolist()
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
    else:
        scheduler = _multistep_scheduler(name, config.num_train_timesteps, _flow_shift(config, mu))
        scheduler.set_timesteps(num_inference_steps)
    scheduler.set_begin_index(0)
    timesteps = scheduler.sigmas[:-1] * config.num_train_timesteps
    return Schedule(scheduler, to_device(timesteps, latents.device), scheduler.sigmas)


def resolution_shift(config: Any, image_tokens: int) -> float:
    """The stock pipeline's `mu`: a line through (base tokens, base shift) and (max tokens, max shift)."""
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, top = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    slope = (top - base) / (high - low)
    return image_tokens * slope + (base - slope * low)


def _flow_shift(config: Any, mu: float) -> float:
    """The constant s of s * t / (1 + (s - 1) * t), which every time shift of the flow-match scheduler comes down to."""
    if not config.use_dynamic_shifting:
        return config.shift
    return math.exp(mu) if config.time_shift_type == "exponential" else mu


def _multistep_scheduler(name: SchedulerName, num_train_timesteps: int, flow_shift: float) -> Any:
    from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler

    flow_matching = {
        "num_train_timesteps": num_train_timesteps,
        "solver_order": 2,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": flow_shift,
    }
    if name is SchedulerName.UNIPC:
        return UniPCMultistepScheduler(**flow_matching)
    return DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", **flow_matching)


def initial_latents(seeds: Sequence[int], channels: int, height: int, width: int, device: torch.device) -> torch.Tensor:
    """The noise that pictures start from, (pictures, channels, height, width) in fp32; height and width of the latents.

    Drawn on the CPU, each picture from its own generator: a seed means the same noise on every card and on none, alone
    and at any place of a batch. It is the stock pipeline's noise for a list of CPU generators with these seeds.
    """
    noise = host_memory((len(seeds), channels, height, width), device)
    for picture, seed in zip(noise, seeds, strict=True):
        torch.randn(picture.shape, generator=torch.Generator("cpu").manual_seed(seed), out=picture)
    return to_device(noise, device)


class StepWatcher(Protocol):
    """Follows the loop, which enqueues work and may run ahead of the device."""

    def enqueued(self, step: int, clean: torch.Tensor) -> None:
        """The work of `step` (from 0) is enqueued; `clean` is its estimate of the finished latents.

        May wait, to keep the loop from running further ahead.
        """

    def finish(self) -> None:
        """No more steps come: wait for those that are under way."""


class Sampled:
    """Latents whose steps are enqueued. A GPU may still be at the last ones, and what comes next be enqueued meanwhile.

    Attributes:
        latents: when the steps are done.
    """

    def __init__(self, latents: torch.Tensor, watcher: StepWatcher, cancel: threading.Event) -> None:
        self.latents = latents
        self._watcher = watcher
        self._cancel = cancel
        self._largest = to_host(latents.abs().amax())  # not finite if anything is not
        self._done = record_fence(latents.device)

    def settle(self) -> torch.Tensor:
        """The latents, when the steps are done; waits for nothing that was enqueued since.

        Raises:
            JobCancelledError: the job was cancelled meanwhile.
            GenerationError: the latents hold numbers that are not finite.
        """
        self._watcher.finish()
        self._done.wait()
        raise_if_cancelled(self._cancel)
        require_finite(self._largest, "transformer")
        return self.latents


def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    latents: torch.Tensor,
    watcher: StepWatcher,
    cancel: threading.Event,
) -> Sampled:
    """Enqueue all steps for `latents`.

    Raises:
        JobCancelledError: `cancel` was set; looked at before every step.
    """
    for step in range(len(schedule)):
        raise_if_cancelled(cancel)
        velocity = denoiser.predict(latents, schedule.timesteps[step], step)
        clean = schedule.clean_estimate(step, velocity, latents)
        latents = schedule.advance(step, velocity, latents)
        watcher.enqueued(step, clean)
    return Sampled(latents, watcher, cancel)


def require_finite(values: torch.Tensor, part: str) -> None:
    """Turn what would be a black picture into an error.

    Raises:
        GenerationError: `values` on the host, which `part` of the model computed, are not all finite.
    """
    if not bool(torch.isfinite(values).all()):
        raise GenerationError(
            f"The model's {part} computed numbers that are not finite, so there is no picture.",
            "With fp16 this is an overflow: use a card with bf16, or the CPU. Otherwise the weights are damaged.",
        )


def raise_if_cancelled(cancel: threading.Event) -> None:
    """Raise a `JobCancelledError` when `cancel` is set."""
    if cancel.is_set():
        raise JobCancelledError("The job was cancelled.")
