"""Where the text encoder lives: on the device, or in host memory, from where its layers visit the device one by one.

A card with 16 GB holds the transformer (12.3 GB in bf16) or the text encoder (8.0 GB), not both. Visiting layer by
layer, the encoder needs the room of one layer (0.2 GB), and nothing is ever copied back: the weights in host memory
stay what they were, and leaving is dropping the copy. The price is one pass of the weights over the bus for each new
prompt, which a job does not pay that waited or was long enough in the writing (`encoding_ahead`); a cached prompt costs
nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from zimage_ui.generator.page_locked import HostBuffer

_Fetch = Callable[[torch.Tensor], torch.Tensor]

# Locked pages cannot be swapped: the host keeps so many bytes to move in, or nothing is locked.
_LEFT_TO_HOST_BYTES = 4 * 10**9
_ALIGNMENT_BYTES = 256


class VisitingLayers:
    """Lets each module of `layers` compute on fetched copies of its weights, for the length of its own forward.

    Attributes:
        away: how many layers have their copies out right now; never more than one in a forward pass.
    """

    def __init__(self, layers: nn.ModuleList, fetch: _Fetch) -> None:
        self.away = 0
        self._fetch = fetch
        self._home: dict[int, torch.Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for layer in layers:
            self._handles.append(layer.register_forward_pre_hook(self._go))
            # always_call: a layer that fails (out of memory, say) has to come home too
            self._handles.append(layer.register_forward_hook(self._come_home, always_call=True))

    def end(self) -> None:
        """Stop the visits; every layer is at home."""
        for handle in self._handles:
            handle.remove()

    def _go(self, layer: nn.Module, _arguments: Any) -> None:
        self.away += 1
        # A copy made in inference mode could not become the data of a parameter that was made outside it.
        with torch.inference_mode(False), torch.no_grad():
            for parameter in layer.parameters():
                self._home[id(parameter)] = parameter.data
                parameter.data = self._fetch(parameter.data)

    def _come_home(self, layer: nn.Module, _arguments: Any, _output: Any) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for parameter in layer.parameters():
                parameter.data = self._home.pop(id(parameter), parameter.data)
        self.away -= 1


class TextEncoderResidence:
    """Moves a text encoder between the device and the host; both ways leave its results the same."""

    def __init__(self, text_encoder: nn.Module, device: torch.device) -> None:
        self._text_encoder = text_encoder
        self._device = device
        self._visits: VisitingLayers | None = None
        self._homes: list[HostBuffer] = []
        self._is_resident: bool | None = None

    @property
    def visits(self) -> bool:
        """Whether layers visit the device."""
        return self._visits is not None

    @property
    def is_at_home(self) -> bool:
        """Whether all weights are where it computes; not while they move, nor after they could not."""
        return self._device.type == "cpu" or self._is_resident is True

    @property
    def visits_unnoticed(self) -> bool:
        """Whether layers visit the device without the host's waiting for their copies: from locked pages only."""
        return self.visits and all(home.is_locked for home in self._homes)

    def settle(self, *, resident: bool) -> None:
        """Bring the weights to the device, or to the host with visits; costs nothing when they are there already.

        Raises:
            torch.OutOfMemoryError: the device has no room; the weights may then be in both places, and the next
                `settle` puts that right.
        """
        if resident == self._is_resident or self._device.type == "cpu":  # for a CPU, host and device are one
            return
        self._is_resident = None
        with torch.inference_mode(False), torch.no_grad():
            if self._visits is not None:
                self._visits.end()
                self._visits = None
            if resident:
                self._come()
            else:
                self._leave()
        self._is_resident = resident

    @property
    def _layers(self) -> nn.ModuleList:
        layers = self._text_encoder.get_submodule("layers")
        assert isinstance(layers, nn.ModuleList)
        return layers

    def _come(self) -> None:
        for layer in self._layers:
            if next(layer.parameters()).device.type != self._device.type:
                size_bytes = _size_bytes(layer)
                _gather(layer, torch.empty(size_bytes, dtype=torch.uint8, device=self._device))
        self._text_encoder.to(self._device)
        self._homes.clear()

    def _leave(self) -> None:
        homes: list[HostBuffer] = []
        for layer in self._layers:
            locked = psutil.virtual_memory().available > _LEFT_TO_HOST_BYTES
            homes.append(HostBuffer(_size_bytes(layer), locked=locked))
            _gather(layer, homes[-1].bytes)
        self._homes = homes
        # The table of tokens does not visit: its rows are looked up where it is.
        for parameter in self._text_encoder.parameters():
            parameter.data = parameter.data.cpu()
        # Buffers stay: the only ones are the rotary frequencies, and the model brings those along by itself.
        self._visits = VisitingLayers(self._layers, lambda weight: weight.to(self._device, non_blocking=True))


def _size_bytes(layer: nn.Module) -> int:
    return sum(_aligned(parameter.nbytes) for parameter in layer.parameters())


def _gather(layer: nn.Module, memory: torch.Tensor) -> None:
    """Move the parameters of `layer` into `memory` (`_size_bytes`,), of which they are views from now on.

    In their own order: so matrices that are one product's lie below each other, and `projections.fused` finds them.
    """
    begin = 0
    for parameter in layer.parameters():
        view = memory[begin : begin + parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        parameter.data = view.copy_(parameter.data)
        begin += _aligned(parameter.nbytes)


def _aligned(size_bytes: int) -> int:
    return size_bytes + -size_bytes % _ALIGNMENT_BYTES
