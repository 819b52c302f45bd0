"""The running mean of weights, which is better than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class RunningMean:
    """The exponential mean of `parameters`, which starts as they are now.

    Args:
        parameters: what is trained; the same objects for ever.
        decay: how much of the mean a step keeps, in the long run.
        warmup_steps: the mean looks back over fewer steps before so many are done.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], *, decay: float, warmup_steps: int) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._warmup_steps = warmup_steps
        self.values: list[Tensor] = self._copies()

    def update(self, step: int) -> None:
        """Let the weights after that step, counted from 0, enter the mean."""
        decay = min(self._decay, (step + 1) / (step + self._warmup_steps))
        torch._foreach_lerp_(self.values, [parameter.detach() for parameter in self._parameters], 1 - decay)

    def keep(self) -> None:
        """Make the mean the weights."""
        assign(self._parameters, self.values)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Within, the weights are their mean."""
        trained = self._copies()
        self.keep()
        try:
            yield
        finally:
            assign(self._parameters, trained)

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]


@torch.no_grad()
def assign(parameters: Sequence[torch.nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy `values` into `parameters`, one by one."""
    torch._foreach_copy_([parameter.data for parameter in parameters], list(values))
