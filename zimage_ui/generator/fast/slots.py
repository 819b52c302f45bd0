"""Memory on the device through which what lives on the host passes, copied ahead of the computing.

Two orders of work run side by side: copies in one, computing in the other. Each copy leaves a mark in its order, for
which the computing waits before it reads the slot; the computing leaves one when it has read a slot, for which the next
copy into that slot waits. Nobody waits on the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from zimage_ui.generator.components import STREAM_SLOTS
from zimage_ui.generator.page_locked import HostBuffer

_Mark = TypeVar("_Mark")


class Transfer(Protocol[_Mark]):
    """The two orders of work of one device, and the memory on both sides of the bus."""

    def home(self, size_bytes: int) -> HostBuffer:
        """Host memory to copy from."""

    def slot(self, size_bytes: int) -> torch.Tensor:
        """Device memory to copy into, (size_bytes,) uint8.

        Raises:
            torch.OutOfMemoryError: there is none.
        """

    def copy(self, slot: torch.Tensor, source: torch.Tensor, after: _Mark) -> _Mark:
        """Enqueue a copy that begins when the computing has come to `after`.

        Args:
            slot: what is copied into.
            source: of as many bytes, or fewer.
            after: a mark of the computing.

        Returns:
            A mark that is passed when the copy is complete.
        """

    def mark(self) -> _Mark:
        """A mark behind all computing that is enqueued now."""

    def wait(self, mark: _Mark) -> None:
        """Let the computing that is enqueued from now on begin when a copy's `mark` is passed."""


class CudaTransfer:
    """The current stream of a GPU computes, and one of its own copies."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def home(self, size_bytes: int) -> HostBuffer:
        """Page-locked memory; ordinary, where it cannot be locked."""
        return HostBuffer(size_bytes, locked=True)

    def slot(self, size_bytes: int) -> torch.Tensor:
        """Memory that is given to nobody else before the last copy into it is complete, also when it is dropped."""
        with torch.inference_mode(False):
            memory = torch.empty(size_bytes, dtype=torch.uint8, device=self._device)
        memory.record_stream(self._stream)
        return memory

    def copy(self, slot: torch.Tensor, source: torch.Tensor, after: torch.cuda.Event) -> torch.cuda.Event:
        """On the copying stream."""
        self._stream.wait_event(after)
        with torch.cuda.stream(self._stream):
            slot[: len(source)].copy_(source, non_blocking=True)
        return self._stream.record_event()

    def mark(self) -> torch.cuda.Event:
        """An event on the current stream."""
        return torch.cuda.current_stream(self._device).record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        """The current stream waits, not the caller."""
        torch.cuda.current_stream(self._device).wait_event(mark)


class _Copy(NamedTuple):
    """What is in a slot, or under way to it: the source's place in the round, the slot's number, and its mark."""

    place: int
    slot: int
    arrived: Any


class SlotRing:
    """Brings sources to the device in an endless round, each while the one before it is computed with.

    Whoever is done with the last source of a round finds the first ones there already.

    Attributes:
        slots: the device memory, the same for as long as the ring lives.
    """

    def __init__(self, sources: Sequence[torch.Tensor], transfer: Transfer[Any]) -> None:
        """Allocate the slots and order the first copies.

        Args:
            sources: (bytes,) uint8 in host memory, in the order in which they are used; more of them than slots.
            transfer: does the work.

        Raises:
            torch.OutOfMemoryError: there is no memory for the slots.
        """
        assert len(sources) > STREAM_SLOTS, "so few sources take no more memory than their slots"
        self._sources = sources
        self._transfer = transfer
        size_bytes = max(source.nbytes for source in sources)
        self.slots = [transfer.slot(size_bytes) for _ in range(STREAM_SLOTS)]
        self._copies: deque[_Copy] = deque()
        self._taken: _Copy | None = None
        self._start_at(0)

    def acquire(self, place: int) -> int:
        """The number of the slot that holds source `place`, for work enqueued from now on until `release`.

        In any other order than the round's, the slots are filled anew, which nothing hides.
        """
        self.release()  # of work that failed half-way
        if self._copies[0].place != place:
            self._start_at(place)
        self._taken = self._copies.popleft()
        self._transfer.wait(self._taken.arrived)
        return self._taken.slot

    def release(self) -> None:
        """All work with the acquired slot is enqueued: the next source may follow it."""
        if self._taken is not None:
            slot, self._taken = self._taken.slot, None
            self._order((self._copies[-1].place + 1) % len(self._sources), slot)

    def _start_at(self, place: int) -> None:
        self._copies.clear()
        for number in range(len(self.slots)):
            self._order((place + number) % len(self._sources), number)

    def _order(self, place: int, slot: int) -> None:
        arrived = self._transfer.copy(self.slots[slot], self._sources[place], self._transfer.mark())
        self._copies.append(_Copy(place, slot, arrived))
