"""Encoding the prompt of a job that waits, beside the steps of the present one, or one that is still being written.

Where the text encoder lives in host memory, a new prompt costs one pass of 7 GB over the bus (0.2 s on an H100, more
with slower buses), in which the device computes next to nothing; and while steps are computed, the bus carries nothing
but streamed layers. The thread that owns the device does it, a few layers at a time: after a step is enqueued that
thread only waits, so it enqueues some layers on a second stream and goes back to waiting. No graph is replayed there
(graphs share one pool of memory and must not run side by side), and the layers are the stock ones, which a job whose
encoder is away would run itself: the same bits come out. A cancelled job leaves a few layers under way behind it, and a
job that comes before its prompt is done goes on with it where it stands.

While no job is there, the same pieces are done one after the other of what somebody writes, as soon as the writing
pauses. Each is waited for: a job that comes then shares the bus with one piece at most, and a piece is all that is done
in vain when the text changes.

An encoder that lives on the device takes 5 ms. Beside steps it would take them from those very steps, and pictures in a
row came no sooner (by a graph in a pool of its own, on an H100): nothing is done then. What somebody writes is encoded
at once, as a job would do it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from zimage_ui.generator.clock import Stopwatch, stopwatch
from zimage_ui.generator.components import Components
from zimage_ui.generator.embedding_cache import PromptEmbedding
from zimage_ui.generator.encoding import TokenizedPrompt, tokenize, with_layers
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.text_encoder import embedded, through_stock
from zimage_ui.generator.transfers import to_host

if TYPE_CHECKING:
    from transformers import Qwen3Model

# With 35 layers, seven pieces: as many as there are waits between the eight steps of a picture. Enqueuing one takes the
# host about 5 ms, far less than a step on a card that has no room for the encoder.
LAYERS_A_PIECE = 5
# Prompts that are done and not asked for yet: the order of those who wait may change, others write, and nobody encodes
# them twice.
_KEPT = 4
# The weights of the layer that visits, and as much again for what it computes.
_ROOM_IN_LAYERS = 2


class SideLane(Protocol):
    """A second order of work on the device."""

    def beside(self) -> AbstractContextManager[object]:
        """Whatever is enqueued in this context runs beside what is enqueued outside."""

    def join(self) -> None:
        """What is enqueued outside from now on begins when all that was enqueued beside is done."""

    def free_bytes(self) -> int:
        """Memory that nobody has yet."""

    def times_squeezed(self) -> int:
        """How often so far an allocation had to wait until memory was given back that was kept for later."""


class CudaSideLane:
    """A stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def beside(self) -> AbstractContextManager[object]:
        """On that stream."""
        return torch.cuda.stream(self._stream)

    def join(self) -> None:
        """The current stream waits, not the caller."""
        torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def free_bytes(self) -> int:
        """What the driver has left, and this process may take."""
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        allowed_bytes = int(torch.cuda.get_per_process_memory_fraction(self._device) * total_bytes)
        return min(free_bytes, allowed_bytes - torch.cuda.memory_reserved(self._device))

    def times_squeezed(self) -> int:
        """By the allocator's own count."""
        return torch.cuda.memory_stats(self._device).get("num_alloc_retries", 0)


@dataclass(slots=True)
class _UnderWay:
    """A prompt whose first layers are done.

    Attributes:
        rows: (tokens, features), what came out of them.
        left: the layers to come.
        watches: one for each piece that is enqueued.
    """

    prompt: str
    tokens: TokenizedPrompt
    rows: torch.Tensor
    left: list[Qwen3Model]
    watches: list[Stopwatch] = field(default_factory=list)


class PromptsAhead:
    """Encodes prompts before they are asked for, in pieces or whole; for the one thread that owns the device."""

    def __init__(self, components: Components, lane: SideLane) -> None:
        """Keep what encoding needs.

        Args:
            components: whose text encoder, without the last layer, is used where it is.
            lane: where it computes.
        """
        self._components = components
        self._lane = lane
        self._slices: list[Qwen3Model] = []
        self._under_way: _UnderWay | None = None
        self._done: dict[str, PromptEmbedding] = {}  # who was asked for least recently first
        self._has_room = False
        self._room_in_layers = _ROOM_IN_LAYERS
        self._squeezed = 0
        self._has_failed = False

    def advance(self, prompt: str, *, wait: bool = False) -> bool:
        """Do the next piece of `prompt`, and `wait` for it or not; another prompt that is under way is given up.

        Without memory for it, twice as much has to be free before it is tried again. Any other failure is logged, and
        nothing is done ahead any more: whatever it was, the job itself will tell.

        Returns:
            Whether something was done: not if the prompt is done already, and not without room on the device.
        """
        try:
            return self._attempt(prompt, partial(self._advance, prompt, wait=wait))
        except torch.OutOfMemoryError:
            self._room_in_layers *= 2
            self.forget()
            return False

    def do_whole(self, prompt: str, encode: Callable[[], PromptEmbedding]) -> bool:
        """Have `encode` do all of `prompt` at once, and wait for it. A failure is treated as by `advance`.

        Args:
            prompt: of some job to come.
            encode: makes its embedding; nothing else may be under way on the device.

        Returns:
            Whether something was done: not if the prompt is done already, and not without memory for it.
        """
        try:
            return self._attempt(prompt, partial(self._do_whole, prompt, encode))
        except torch.OutOfMemoryError:
            return False

    def _attempt(self, prompt: str, work: Callable[[], bool]) -> bool:
        if self._has_failed:
            return False
        if prompt in self._done:
            self._done[prompt] = self._done.pop(prompt)  # who asks for it keeps it
            return False
        advanced = attempt(work, "no prompt is encoded ahead any more", but=(torch.OutOfMemoryError,))
        if advanced is None:
            self._has_failed, self._under_way = True, None
        return bool(advanced)

    def take(self, prompt: str) -> PromptEmbedding | None:
        """The embedding of `prompt`, for work that is enqueued from now on; None if it was not even begun.

        What is left of it is enqueued now.

        Raises:
            torch.OutOfMemoryError: there is too little memory for that.
        """
        done, under_way = self._done.pop(prompt, None), self._under_way
        if done is None and under_way is not None and under_way.prompt == prompt:
            self._under_way = None
            ahead = tuple(under_way.watches)
            while under_way.left:
                self._run_piece(under_way)
            done = self._finished(under_way, ahead)
        if done is not None:
            self._lane.join()
        return done

    def forget(self) -> None:
        """Give up what is under way, and ask for room anew: weights are to move, or memory ran out."""
        self._under_way = None
        self._has_room = False

    def _advance(self, prompt: str, *, wait: bool) -> bool:
        if not self._finds_room():
            return False
        under_way = self._under_way
        if under_way is None or under_way.prompt != prompt:
            under_way = self._under_way = self._begin(prompt)
        self._run_piece(under_way)
        if wait:
            under_way.watches[-1].elapsed_ms()
        if not under_way.left:
            self._under_way = None
            self._keep(prompt, self._finished(under_way, under_way.watches))
        return True

    def _do_whole(self, prompt: str, encode: Callable[[], PromptEmbedding]) -> bool:
        embedding = encode()
        embedding.elapsed_ms()
        self._keep(prompt, replace(embedding, ahead_ms=embedding.elapsed_ms))
        return True

    def _keep(self, prompt: str, embedding: PromptEmbedding) -> None:
        self._done[prompt] = embedding
        if len(self._done) > _KEPT:
            del self._done[next(iter(self._done))]

    def _begin(self, prompt: str) -> _UnderWay:
        parts = self._components
        tokens = tokenize(parts.tokenizer, prompt, parts.max_prompt_tokens)
        with torch.inference_mode(), self._lane.beside():
            rows = embedded(parts.text_encoder, tokens.ids, parts.device)
        return _UnderWay(prompt, tokens, rows, list(self._pieces()))

    def _run_piece(self, under_way: _UnderWay) -> None:
        with torch.inference_mode(), self._lane.beside():
            watch = stopwatch(self._components.device)
            watch.start()
            layers = under_way.left.pop(0)
            under_way.rows = through_stock(layers, under_way.rows)
            if not under_way.left:
                under_way.rows = to_host(under_way.rows)
            watch.stop()
        under_way.watches.append(watch)

    def _finished(self, under_way: _UnderWay, ahead: Iterable[Stopwatch]) -> PromptEmbedding:
        return PromptEmbedding(
            prompt_embeds=under_way.rows,
            prompt_tokens=len(under_way.tokens.ids),
            truncated_tokens=under_way.tokens.truncated,
            elapsed_ms=_sum_of(under_way.watches),
            ahead_ms=_sum_of(ahead),
        )

    def _pieces(self) -> list[Qwen3Model]:
        if not self._slices:
            encoder = self._components.text_encoder
            layers = len(encoder.layers)
            self._slices = [
                with_layers(encoder, begin, min(begin + LAYERS_A_PIECE, layers))
                for begin in range(0, layers, LAYERS_A_PIECE)
            ]
        return self._slices

    def _finds_room(self) -> bool:
        """Whether a layer has room beside what is there.

        The stream keeps what it once took, until somebody else was short of it: from then on each would take it from
        the other again and again, and wait for the device each time.
        """
        squeezed = self._lane.times_squeezed()
        if not self._has_room or squeezed != self._squeezed:
            self._squeezed = squeezed
            layer_bytes = max(
                sum(parameter.nbytes for parameter in layer.parameters())
                for layer in self._components.text_encoder.layers
            )
            self._has_room = self._lane.free_bytes() >= self._room_in_layers * layer_bytes
        return self._has_room


def _sum_of(watches: Iterable[Stopwatch]) -> Callable[[], float]:
    """Asks all `watches`, which may wait for the device, once somebody wants to know."""
    watches = tuple(watches)
    return lambda: sum(watch.elapsed_ms() for watch in watches)
