"""What is done about memory: which plan a load starts with, and how memory is given back after it ran out."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch

from zimage_ui.generator.base import DeviceMemory
from zimage_ui.generator.components import MemoryPlan

# How many jobs have to go well before what memory ran out for is tried again, the first time and at most: what failed
# because another program held the memory may work now, what is simply too large costs one failed attempt in 64 jobs.
FIRST_PATIENCE = 8
LONGEST_PATIENCE = 64


class Patience:
    """How many jobs have to go well before something is tried that memory ran out for."""

    def __init__(self) -> None:
        self._jobs = FIRST_PATIENCE
        self._went_well = 0

    def went_well(self) -> bool:
        """A job was made; whether that is enough now. Then counting begins anew."""
        self._went_well += 1
        is_enough = self._went_well >= self._jobs
        if is_enough:
            self._went_well = 0
        return is_enough

    def begin_anew(self) -> None:
        """Count from nothing."""
        self._went_well = 0

    def grow(self) -> None:
        """Count from nothing, and to twice as many, within bounds."""
        self._jobs = min(2 * self._jobs, LONGEST_PATIENCE)
        self.begin_anew()


class MemoryLadder:
    """Which memory plan to make a picture with.

    Starts from the plan that was chosen at load. A load (pixels of all pictures of a job) that ran out of memory goes
    one rung down, and so does every later one at least as large, at once: it would only fail first. Smaller ones keep
    the fast plan. After some jobs that went well the rung above gets another chance: one rung only, so that a failure
    leaves a plan that is known to work.
    """

    def __init__(self, plan: MemoryPlan, device: torch.device) -> None:
        self._rungs = _rungs(plan, device)
        self._too_much: dict[MemoryPlan, int] = {}
        self._patience = Patience()

    def plan_for(self, pixels: int, may_do: Callable[[MemoryPlan], bool] = lambda _: True) -> MemoryPlan:
        """The fastest plan that is not known to be too large for `pixels`; the smallest one when all are.

        Args:
            pixels: of all pictures of a job.
            may_do: what is known of a plan beforehand; by default, nothing is.
        """
        for plan in self._rungs:
            if pixels < self._too_much.get(plan, pixels + 1) and may_do(plan):
                return plan
        return self._rungs[-1]

    def ran_out(self, plan: MemoryPlan, pixels: int, *, decoding: bool = False) -> MemoryPlan | None:
        """Remember that `pixels` were too many for `plan`; the next smaller plan, if there is one.

        What ran out while `decoding` needs tiles, and what ran out before needs less of the model on the device: plans
        that bring nothing of the kind are passed over.
        """
        self._patience.begin_anew()
        place = self._rungs.index(plan)
        below = self._rungs[place + 1 :]
        helps = [rung for rung in below if (rung.tiles_decode if decoding else rung.weights_away > plan.weights_away)]
        smaller = next(iter(helps or below), None)
        passed = self._rungs[place : self._rungs.index(smaller) if smaller else None]
        for rung in passed:
            self._too_much[rung] = min(pixels, self._too_much.get(rung, pixels))
        return smaller

    def went_well(self, plan: MemoryPlan) -> None:
        """A job was made with `plan`; after enough of them the plan above is no longer held to be too small."""
        place = self._rungs.index(plan)
        if place > 0 and self._patience.went_well():
            self._patience.grow()
            self._too_much.pop(self._rungs[place - 1], None)


def _rungs(plan: MemoryPlan, device: torch.device) -> list[MemoryPlan]:
    """The plans from `plan` down; on a CPU, host and device are one, and only tiles gain anything."""
    plans = list(MemoryPlan)
    rungs = plans[plans.index(plan) :]
    if device.type == "cpu":
        rungs = [rung for rung in rungs if rung in (plan, MemoryPlan.TILED)]
    return rungs


def release_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more. Slow, and the next job is slower for it: only after running out."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def times_ran_out(device: torch.device) -> int:
    """How often an allocation failed in this process, whatever became of it; 0 where the device keeps no count."""
    return torch.cuda.memory_stats(device).get("num_ooms", 0) if device.type == "cuda" else 0


def start_counting(device: torch.device) -> None:
    """Let the peaks of a job begin now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def counted(device: torch.device) -> DeviceMemory | None:
    """The peaks since `start_counting`; None where the device keeps no count."""
    if device.type != "cuda":
        return None
    # All counts at once: whoever asks for one has all of them sorted by name, in a tenth of a millisecond.
    counts = torch.cuda.memory_stats_as_nested_dict(device)
    return DeviceMemory(
        allocated_peak_bytes=counts["allocated_bytes"]["all"]["peak"],
        reserved_peak_bytes=counts["reserved_bytes"]["all"]["peak"],
    )
