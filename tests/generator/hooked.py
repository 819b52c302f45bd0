"""Hooks on the passes through the model's parts, which are no module's forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from zimage_ui.generator.engine import Engine


class HookedPass(torch.nn.Module):
    """Calls what it was made of; a module, so hooks can be put on it."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self._call = call

    def forward(self, *arguments: Any) -> torch.Tensor:
        return self._call(*arguments)


def transformer_pass(engine: Engine) -> HookedPass:
    """Every pass of `engine` through its transformer, from now on, as a module: of plan, latents, rows, captions."""
    return _hooked(engine._transformer.network, "velocity")


def text_encoder_pass(engine: Engine) -> HookedPass:
    """Every pass of `engine` through its text encoder, from now on, as a module: of the tokens' rows."""
    return _hooked(engine._text_encoder, "_run")


def decoder_pass(engine: Engine) -> HookedPass:
    """Every pass of `engine` through its VAE's decoder, from now on, as a module: of scaled latents."""
    return _hooked(engine._decoder, "_run")


def _hooked(owner: Any, name: str) -> HookedPass:
    call = getattr(owner, name)
    if not isinstance(call, HookedPass):
        call = HookedPass(call)
        setattr(owner, name, call)
    return call
