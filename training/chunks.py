"""Chunks of pictures made in the background: processes that work ahead, and hand over in a fixed order.

A chunk is decided by its number alone, so the same numbers give the same chunks however many processes there are.
Nothing here imports torch: the processes stay small.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType
from typing import Any, Generic, ParamSpec, Self, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")
_P = ParamSpec("_P")

# Chunks under way or waiting, for each process.
_AHEAD = 3


class ChunkProcesses(Generic[_T]):
    """Processes that make chunk after chunk, within their `with` block.

    Args:
        make: the chunk of a number; called in the processes, so it has to be picklable.
        processes: how many.
        prepare: called first in each process, with `given`.
        given: for `prepare`.
    """

    def __init__(
        self,
        make: Callable[[int], _T],
        processes: int,
        prepare: Callable[..., None] | None = None,
        given: tuple[Any, ...] = (),
    ) -> None:
        self._pool = ProcessPoolExecutor(
            processes, multiprocessing.get_context("spawn"), initializer=prepare, initargs=given
        )
        self._make = make
        self._ahead = _AHEAD * processes
        self._numbers = itertools.count()
        self._coming: deque[Future[_T]] = deque()

    def __enter__(self) -> Self:
        for _ in range(self._ahead):
            self._order()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[_T]:
        """Chunk after chunk; waits for each."""
        while True:
            yield self.take()

    def take(self) -> _T:
        """The next chunk; waits for it."""
        chunk = self._coming.popleft().result()
        self._order()
        return chunk

    @property
    def is_ready(self) -> bool:
        """Whether the next chunk is there."""
        return self._coming[0].done()

    def submit(self, work: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Have the processes do something else, too."""
        return self._pool.submit(work, *args, **kwargs)

    def _order(self) -> None:
        self._coming.append(self._pool.submit(self._make, next(self._numbers)))
