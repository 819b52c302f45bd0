"""Work recorded once as a CUDA graph and replayed: a thousand launches for the price of one.

A graph replays the same kernels on the same addresses. So what changes is copied into static inputs before, and what
comes out is copied away after; both are small here. Each part of a model keeps those of the sizes in use.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import Generic, Protocol, TypeVar
from weakref import WeakSet

import torch

from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.recently_used import RecentlyUsed

_log = logging.getLogger(__name__)

_Key = TypeVar("_Key", bound=Hashable)
_Way = TypeVar("_Way", bound=Hashable)
_Answer = TypeVar("_Answer")
_Handle = TypeVar("_Handle")

# The first run compiles, loads kernels and lets libraries choose; the second allocates as all later ones will.
_RUNS_BEFORE_RECORDING = 2


class Recorder(Protocol):
    """Turns work on a device into a recording of it."""

    def record(self, work: Callable[[], _Answer]) -> tuple[Callable[[], None], _Answer]:
        """Record what `work` enqueues.

        Args:
            work: reads and writes tensors that stay where they are, waits for nothing, and answers tensors.

        Returns:
            What does that work again, and the tensors that then hold its answer.
        """


class GraphPool(Generic[_Handle]):
    """The memory that graphs share. Torch gives it up with the last graph in it, and takes none into it any more."""

    def __init__(self, make_handle: Callable[[], _Handle]) -> None:
        """Nothing is in it, nor has been.

        Args:
            make_handle: names a new pool.
        """
        self._make_handle = make_handle
        self._handle: _Handle | None = None
        self._graphs: WeakSet[object] = WeakSet()

    def handle(self) -> tuple[_Handle, list[object]]:
        """Where the next graph belongs, and those that are there: whoever holds them keeps the pool from ending."""
        graphs = list(self._graphs)
        if self._handle is None or not graphs:
            self._handle = self._make_handle()
        return self._handle, graphs

    def add(self, graph: object) -> None:
        """That graph is in it now, for as long as somebody has it."""
        self._graphs.add(graph)


class CudaRecorder:
    """Records CUDA graphs, all into one pool of memory: they never run at the same time, so they share what they need.

    The answer of a graph stays whole until another runs, whose own work may have been recorded where it lies. A
    recording that fails leaves those before it as they are, and later ones begin another pool.
    """

    def __init__(self, device: torch.device) -> None:
        """Nothing is recorded yet."""
        self._device = device
        self._pool = GraphPool(torch.cuda.graph_pool_handle)

    def record(self, work: Callable[[], _Answer]) -> tuple[Callable[[], None], _Answer]:
        """Run `work` twice, then record it."""
        pool, _alive = self._pool.handle()  # before those runs, in which the last of them might be collected
        current, stream = torch.cuda.current_stream(self._device), _stream(self._device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(_RUNS_BEFORE_RECORDING):
                work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may well use CUDA in the meantime, to pin memory or to read sensors
        with ExitStack() as failed:
            failed.callback(self._leave, current, pool)
            with (
                _scratch_memory_of_the_pool(),
                torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"),
            ):
                answer = work()
            failed.pop_all()
        self._pool.add(graph)
        current.wait_stream(stream)
        return graph.replay, answer

    def _leave(self, current: torch.cuda.Stream, pool: tuple[int, int]) -> None:
        """Go on with `current` after a capture into `pool` that may not have come to its end.

        Torch would stay on its stream, where no other shall begin; its generator of random numbers would wait for the
        end, so that nobody gets any (torch 2.11); and its allocator, too, which meanwhile gives back nothing that a
        second stream has used. Into such a pool nothing can be recorded any more.
        """
        self._pool = GraphPool(torch.cuda.graph_pool_handle)
        torch.cuda.set_stream(current)
        _stream.cache_clear()
        place = current.device.index
        torch.cuda.default_generators[place].graphsafe_set_state(torch.Generator(current.device).graphsafe_get_state())
        with suppress(RuntimeError):  # it has come to that end, and the work failed for another reason
            torch._C._cuda_endAllocateToPool(place, pool)
            torch._C._cuda_releasePool(place, pool)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """Where all record: torch keeps what is freed for the stream that used it."""
    return torch.cuda.Stream(device)


@contextmanager
def _scratch_memory_of_the_pool() -> Iterator[None]:
    """Whatever is recorded in this context has cuBLAS's scratch memory from the pool of its graph, and keeps it.

    Torch keeps that memory for each stream, and a graph the address. Left to itself it would be that of the runs
    before, the same for all graphs, whatever their pool: torch 2.13 gives it up with the first of them that goes, and
    the others would write to what is somebody else's by then (https://github.com/pytorch/pytorch/issues/193402).
    """
    torch._C._cuda_clearCublasWorkspaces()
    try:
        yield
    finally:
        torch._C._cuda_clearCublasWorkspaces()


def recorder_for(device: torch.device) -> Recorder | None:
    """What records on `device`: CUDA graphs on a GPU; None elsewhere, where nothing is recorded."""
    return CudaRecorder(device) if device.type == "cuda" else None


class RecordedFunction:
    """A function of tensors, recorded for the sizes of its examples; called with others of the same sizes.

    Called on the thread and stream of the device's one user, within inference mode if it was made there.
    """

    def __init__(
        self, function: Callable[..., torch.Tensor], examples: tuple[torch.Tensor, ...], recorder: Recorder
    ) -> None:
        self._function = function  # and with it all that the recording reads, such as tables
        self._inputs = tuple(example.clone(memory_format=torch.contiguous_format) for example in examples)
        self._replay, self._answer = recorder.record(lambda: function(*self._inputs))

    def __call__(self, *arguments: torch.Tensor) -> torch.Tensor:
        """The function's answer; a tensor of its own, which later calls leave alone.

        Raises:
            ValueError: an argument is not of the size that was recorded.
        """
        for static, argument in zip(self._inputs, arguments, strict=True):
            if static.shape != argument.shape:
                raise ValueError(f"Recorded for {tuple(static.shape)}, called with {tuple(argument.shape)}.")
            static.copy_(argument)
        self._replay()
        return self._answer.clone()


class Recordings(Generic[_Key, _Way]):
    """What one part of a model has ready for the sizes in use, by a key for each; and what records it.

    A part prepares a size by a function of a way and a recorder, which answers what then runs that size: a
    `RecordedFunction`, or any other that keeps no memory.
    """

    def __init__(self, capacity: int, recorder: Recorder | None, ways: Sequence[_Way]) -> None:
        """Nothing is ready yet.

        Args:
            capacity: how many are kept, those that were used last.
            recorder: records them, and those of other parts; None is where nothing is ever prepared.
            ways: of making what is recorded, tried in this order for each size until one works. One that fails before
                it has ever worked is not tried again, but for the last: each failure costs time and, within a
                recording, a pool of memory that those before and after it do not share.
        """
        self._recorder = recorder
        self._ways = tuple(ways)
        self._proven: set[_Way] = set()
        self._kept: RecentlyUsed[_Key, Callable[..., torch.Tensor]] = RecentlyUsed(capacity)

    @property
    def ways(self) -> tuple[_Way, ...]:
        """Those that are tried, in their order."""
        return self._ways

    @property
    def can_record(self) -> bool:
        """Whether anything can be prepared here."""
        return self._recorder is not None

    def __contains__(self, key: _Key) -> bool:
        return key in self._kept

    def get(self, key: _Key) -> Callable[..., torch.Tensor] | None:
        """What runs `key`, which is thereby used; None if it is not prepared."""
        return self._kept.get(key)

    def prepare(self, key: _Key, record: Callable[[_Way, Recorder], Callable[..., torch.Tensor]], what: str) -> bool:
        """Have `key` ready. Costs nothing when it is; a failure is logged.

        Args:
            key: of what `record` answers.
            record: makes it, in one of the ways, with a recorder.
            what: is prepared, for the log.

        Returns:
            Whether it is ready.
        """
        if self._recorder is None or key in self._kept:
            return self._recorder is not None
        for way in self._ways:
            begun, run = time.perf_counter(), partial(record, way, self._recorder)
            try:
                recorded = attempt(run, f"{what} could not be prepared", but=(torch.OutOfMemoryError,))
            except torch.OutOfMemoryError as error:  # no other way takes less
                _log.warning("%s could not be prepared: %s", what, str(error))
                return False
            if recorded is not None:
                self._proven.add(way)
                self._kept.put(key, recorded)
                _log.info("%s is prepared in %.1f s", what, time.perf_counter() - begun)
                return True
            if way not in self._proven and way != self._ways[-1]:
                self._ways = tuple(other for other in self._ways if other != way)
        return False

    def keep_only(self, is_wanted: Callable[[_Key], bool]) -> None:
        """Drop what else is ready."""
        self._kept.keep_only(is_wanted)

    def release(self) -> bool:
        """Drop all that is ready.

        Returns:
            Whether that held memory for its activations.
        """
        held_memory = any(isinstance(kept, RecordedFunction) for kept in self._kept.values())
        self._kept.clear()
        return held_memory
