"""Where torch's errors become ours, in one place.

An error outlives its job: the board keeps it, the page shows it. A traceback would keep the frames of the stages alive
with it, and with them latents and activations on the device, so what leaves here carries none from below.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import TypeVar

import torch

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, ZImageError

_log = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")

# Also raised as plain RuntimeErrors: by cuBLAS and cuDNN for their workspaces, and by the CPU's allocator.
_OUT_OF_MEMORY = ("out of memory", "_STATUS_ALLOC_FAILED", "DefaultCPUAllocator: can't allocate memory")

# CUDA errors after which every further call in this process fails (the texts are cudaGetErrorString's).
_DEVICE_LOST = (
    "an illegal memory access was encountered",
    "an illegal instruction was encountered",
    "device-side assert triggered",
    "hardware stack error",
    "invalid program counter",
    "misaligned address",
    "no CUDA-capable device is detected",
    "operation not supported on global/shared address space",
    "the launch timed out and was terminated",
    "uncorrectable ECC error encountered",
    "unspecified launch failure",
)


def translated(action: Callable[[], _Answer], device: torch.device) -> _Answer:
    """Run `action`; an error of torch or of the model code comes out as one of ours, without the frames below.

    Raises:
        DeviceMemoryError: memory ran out.
        DeviceLostError: the device answers no more; only a new process helps.
        GenerationError: anything else that went wrong.
        ZImageError: what `action` raised of our own tree.
    """
    try:
        return action()
    except ZImageError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - mapped, whatever it is: this is the room's border
        failure = as_ours(error, device)
        if not isinstance(failure, DeviceMemoryError):
            # as text: a log record with the exception would keep the frames as the exception does
            _log.error("making the picture failed\n%s", traceback.format_exc())
    # outside the handler: raised inside it, the failure would hold on to the foreign error as its context
    raise failure.with_traceback(None)


def as_ours(error: Exception, device: torch.device) -> GenerationError:
    """The error of our tree for a foreign one."""
    text = str(error)
    first_line = (text.strip().splitlines() or [""])[0]
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(phrase in text for phrase in _OUT_OF_MEMORY):
        return DeviceMemoryError(f"Out of memory: {first_line}", "Choose a smaller size or fewer pictures.")
    if any(phrase in text for phrase in _DEVICE_LOST) or not _answers(device):
        return DeviceLostError(
            f"The device {device} stopped answering: {first_line}",
            "The process has to be started anew; if it happens again, look for Xid in the kernel's log (dmesg).",
        )
    return GenerationError(
        f"Making the picture failed: {type(error).__name__}: {first_line}", "The log has the details; try again."
    )


def _answers(device: torch.device) -> bool:
    """Whether the device still takes orders: after a sticky error even an empty synchronisation fails."""
    if device.type != "cuda":
        return True
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True
