"""Work recorded once as a CUDA graph and replayed: a thousand launches for the price of one.

A graph replays the same kernels on the same addresses. So what changes is copied into static inputs before, and what
comes out is copied away after; both are small here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Generic, Protocol, TypeVar

import torch

_Key = TypeVar("_Key", bound=Hashable)
_Kept = TypeVar("_Kept")

# The first run compiles, loads kernels and lets libraries choose; the second allocates as all later ones will.
_RUNS_BEFORE_RECORDING = 2


class Recorder(Protocol):
    """Turns work on a device into a recording of it."""

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Record what `work` enqueues.

        Args:
            work: reads and writes tensors that stay where they are, waits for nothing, and answers a tensor.

        Returns:
            What does that work again, and the tensor that then holds its answer.
        """


class CudaRecorder:
    """Records CUDA graphs, all into one pool of memory: they never run at the same time, so they share what they need.

    The answer of one graph stays whole while others run; anything else of it does not.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """Run `work` twice, then record it, on a stream of its own."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            for _ in range(_RUNS_BEFORE_RECORDING):
                work()
        self._stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may well use CUDA in the meantime, to pin memory or to read sensors
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            answer = work()
        torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return graph.replay, answer


class SharedRecorder:
    """One recorder for several parts of a model that work one after the other, so that they share its memory, too.

    Whoever gives up what it recorded asks for a new one, and gets this object with another recorder inside: a pool that
    a failed recording wrote to, or whose last graph is gone, takes no more. Graphs that are kept keep their pool.
    """

    def __init__(self, make_recorder: Callable[[], Recorder]) -> None:
        self._make_recorder = make_recorder
        self._recorder = make_recorder()

    def renewed(self) -> SharedRecorder:
        """Itself, with a pool that holds nothing."""
        self._recorder = self._make_recorder()
        return self

    def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        """As the present recorder does it."""
        return self._recorder.record(work)


def recorders_for(device: torch.device) -> Callable[[], Recorder] | None:
    """What makes recorders on `device`: CUDA graphs on a GPU; None elsewhere, where nothing is recorded."""
    return SharedRecorder(partial(CudaRecorder, device)).renewed if device.type == "cuda" else None


class RecordedFunction:
    """A function of tensors, recorded for the sizes of its examples; called with others of the same sizes.

    Called on the thread and stream of the device's one user, within inference mode if it was made there.
    """

    def __init__(
        self, function: Callable[..., torch.Tensor], examples: tuple[torch.Tensor, ...], recorder: Recorder
    ) -> None:
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


class RecentlyUsed(Generic[_Key, _Kept]):
    """A bounded number of things, those that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()

    def __contains__(self, key: _Key) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: _Key) -> _Kept | None:
        """What is kept under `key`, which is thereby used; None if nothing is."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: _Key, kept: _Kept) -> None:
        """Keep `kept`; what was not used for longest goes if there are too many."""
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
