"""Host memory that a GPU reads at the bus's full speed and while it computes: page-locked, and not a byte more of it.

torch's own pinned memory comes in powers of two, so a transformer block of 354 MB would take 537. Here ordinary memory
is allocated and then registered with the driver (`cudaHostRegister`), which locks just those pages.
"""

from __future__ import annotations

import logging
import weakref
from typing import Any

import torch

_log = logging.getLogger(__name__)


class HostBuffer:
    """Bytes of host memory, page-locked where a GPU is to read them and the system allows it.

    Attributes:
        bytes: (size,), uint8. Its pages are locked for as long as this object lives.
        is_locked: whether they are. Copies from other memory work, too, at half the speed and waiting for each other.
    """

    def __init__(self, size_bytes: int, *, locked: bool) -> None:
        """Allocate `size_bytes`, which hold anything.

        Args:
            size_bytes: how many.
            locked: lock its pages; False where no GPU reads them.

        Raises:
            RuntimeError: the host has no such memory.
        """
        with torch.inference_mode(False):  # it becomes the data of parameters
            self.bytes = torch.empty(size_bytes, dtype=torch.uint8)
        self.is_locked = locked and size_bytes > 0 and _lock(self.bytes)
        if self.is_locked:
            # not at exit: the driver may be gone by then, and takes the locks along
            weakref.finalize(self, _unlock, self.bytes).atexit = False


def _lock(memory: torch.Tensor) -> bool:
    cudart: Any = torch.cuda.cudart()
    failure = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))
    if failure:
        _log.warning("%d MB of host memory could not be locked (CUDA error %d)", memory.nbytes // 10**6, failure)
        _forget_last_error()
    return not failure


def _unlock(memory: torch.Tensor) -> None:
    torch.cuda.synchronize()  # a copy may be under way
    cudart: Any = torch.cuda.cudart()
    cudart.cudaHostUnregister(memory.data_ptr())


def _forget_last_error() -> None:
    """Let something harmless report the failed call's error: the next kernel that starts takes it for its own."""
    try:
        torch.zeros(1, device="cuda").add_(1)
    except RuntimeError as error:
        _log.debug("as expected: %s", error)
