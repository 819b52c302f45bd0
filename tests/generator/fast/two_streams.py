"""A device in slow motion: what copies and what computes are two queues, and a policy says whose turn it is.

Streams of a GPU run as they like between the marks that order them. Here every interleaving that the marks allow can be
tried, the worst ones on purpose: copies that dawdle, copies that rush ahead, and any mixture.
"""

from __future__ import annotations

import queue
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import torch

from zimage_ui.generator.page_locked import HostBuffer

Policy = Callable[[bool, bool], bool]


def copies_dawdle(copy_can: bool, compute_can: bool) -> bool:
    return not compute_can


def copies_rush(copy_can: bool, compute_can: bool) -> bool:
    return copy_can


def any_order(seed: int) -> Policy:
    generator = random.Random(seed)
    return lambda copy_can, compute_can: copy_can and (not compute_can or generator.random() < 0.5)


class SimulatedTransfer:
    """A `Transfer` whose work is enqueued, and done by `run`.

    Attributes:
        log: what was done, in order.
    """

    def __init__(self, careless: str = "") -> None:
        self.log: list[str] = []
        self._careless = careless
        self._copies: deque[tuple[threading.Event | None, Callable[[], object]]] = deque()
        self._computing: deque[tuple[threading.Event | None, Callable[[], object]]] = deque()

    def home(self, size_bytes: int) -> HostBuffer:
        return HostBuffer(size_bytes, locked=False)

    def slot(self, size_bytes: int) -> torch.Tensor:
        return torch.zeros(size_bytes, dtype=torch.uint8)

    def copy(self, slot: torch.Tensor, source: torch.Tensor, after: threading.Event) -> threading.Event:
        arrived = threading.Event()
        half = len(source) // 2
        self._copies.append((None if self._careless == "copies" else after, lambda: slot[:half].copy_(source[:half])))
        self._copies.append((None, lambda: slot[half : len(source)].copy_(source[half:])))
        self._copies.append((None, arrived.set))
        return arrived

    def mark(self) -> threading.Event:
        passed = threading.Event()
        self.compute(passed.set)
        return passed

    def wait(self, mark: threading.Event) -> None:
        if self._careless != "computing":
            self._computing.append((mark, lambda: None))

    def compute(self, work: Callable[[], object]) -> None:
        self._computing.append((None, work))

    def run(self, policy: Policy) -> None:
        """Do all that is enqueued."""
        while self._copies or self._computing:
            can = [
                bool(work) and (work[0][0] is None or work[0][0].is_set()) for work in (self._copies, self._computing)
            ]
            assert any(can), "each waits for the other"
            turn = self._copies if policy(*can) else self._computing
            turn.popleft()[1]()


class ThreadedTransfer:
    """A `Transfer` with a thread that copies; computing is the caller's own. To be closed."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="copies")
        self._thread.start()

    def home(self, size_bytes: int) -> HostBuffer:
        return HostBuffer(size_bytes, locked=False)

    def slot(self, size_bytes: int) -> torch.Tensor:
        with torch.inference_mode(False):  # the thread that copies is never in that mode
            return torch.full((size_bytes,), 255, dtype=torch.uint8)

    def copy(self, slot: torch.Tensor, source: torch.Tensor, after: threading.Event) -> threading.Event:
        arrived = threading.Event()

        def work() -> None:
            assert after.wait(30)
            slot[: len(source)] = 255  # as bf16 and fp32 not a number: whoever reads too early computes nothing else
            slot[: len(source)].copy_(source)
            arrived.set()

        self._work.put(work)
        return arrived

    def mark(self) -> threading.Event:
        passed = threading.Event()
        passed.set()  # whatever was computed before is done
        return passed

    def wait(self, mark: threading.Event) -> None:
        assert mark.wait(30)

    def close(self) -> None:
        self._work.put(None)
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()

    def __enter__(self) -> ThreadedTransfer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
