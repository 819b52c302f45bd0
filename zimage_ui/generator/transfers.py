"""Copies between host and device that wait for nobody, and the fence that says when they are done.

On the CPU nothing moves and every fence has been passed already, so callers need no second way for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Fence(Protocol):
    """A point in the device's work that can be waited for."""

    def wait(self) -> None:
        """Return when the device has done all that was enqueued before the fence."""


class _Passed:
    """The fence of a device that has finished whenever a call returns."""

    def wait(self) -> None:
        """Return at once."""


class _CudaFence:
    def __init__(self, device: torch.device) -> None:
        # blocking: the waiting thread sleeps instead of spinning on a core that savers and the page need
        self._event = torch.cuda.Event(blocking=True)
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Sleep until the device has come this far."""
        self._event.synchronize()


def works_meanwhile(device: torch.device) -> bool:
    """Whether `device` computes while the host goes on; a CPU has done what it was asked to when a call returns."""
    return device.type == "cuda"


def record_fence(device: torch.device) -> Fence:
    """A fence after everything that is enqueued on the current stream of `device` now."""
    return _CudaFence(device) if device.type == "cuda" else _Passed()


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in pinned host memory, complete when a fence recorded after this call is passed; a CPU tensor as it is.

    Pinning memory is slow, so torch keeps what was freed and gives it out again: once nobody refers to the copy any
    more, and not before the device has finished writing it. A copy is thus its holder's own for as long as it is held.
    """
    if tensor.device.type != "cuda":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def host_memory(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """An fp32 tensor of anything on the host, to be filled and then copied by `to_device` without another copy.

    For a GPU it is pinned, and after the first of a size it was so before, as in `to_host`. Ordinary memory of a
    megabyte is new each time and mapped page by page as it is written to: drawing the noise of 1024 x 1024 there, and
    copying it twice, took 13 ms on one machine.
    """
    return torch.empty(shape, pin_memory=device.type == "cuda")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy on `device` in the order of its current stream, without waiting for what runs there."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
    return pinned.to(device, non_blocking=True)
