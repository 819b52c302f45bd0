"""Hooks on the passes through the transformer, which are no module's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zimage_ui.generator.engine import Engine


class HookedPass(torch.nn.Module):
    """Calls what it was made of; a module, so hooks can be put on it. Its inputs: plan, latents, rows, captions."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._call = call

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self._call(*arguments)


def transformer_pass(engine: Engine) -> HookedPass:
    """Every pass of `engine` through its transformer, from now on, as a module."""
    network = engine._transformer.network
    if not isinstance(network.velocity, HookedPass):
        network.velocity = HookedPass(network.velocity)
    return network.velocity
