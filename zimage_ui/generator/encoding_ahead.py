"""Encoding the prompt of a job that waits, beside the steps of the present one, or one that is still being written.

Where the text encoder lives in host memory a new prompt costs one pass of 7 GB over the bus (0.2 s on an H100, more
with slower buses), in which the device computes next to nothing; and while steps are computed, the bus carries nothing
but streamed layers. The thread that owns the device does it, a few layers at a time: after a step is enqueued that
thread only waits, so it enqueues some layers on a second stream and goes back to waiting. The layers are the stock
ones, which a job whose encoder is away would run itself: the same bits come out. A cancelled job leaves a few layers
under way behind it, and a job that comes before its prompt is done goes on with it where it stands.

An encoder that lives on the device takes 5 ms, half of which the device waits for the host; all of it is one piece
then, a graph. It is recorded apart from all others: those share a pool of memory, and must not run side by side. Only
lengths that are prepared are done ahead.

While no job is there, the same pieces are done one after the other of what somebody writes, as soon as the writing
pauses. Each is waited for: a job that comes then shares the bus with one piece at most, and a piece is all that is done
in vain when the text changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from zimage_ui.generator.clock import Stopwatch, stopwatch
from zimage_ui.generator.components import Components
from zimage_ui.generator.embedding_cache import PromptEmbedding
from zimage_ui.generator.encoding import TokenizedPrompt, tokenize, with_layers
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.text_encoder import FastTextEncoder, embedded, through_stock
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
    """A prompt whose encoding is begun.

    Attributes:
        rows: (tokens, features), what came out of the pieces that are done.
        left: the pieces to come, which make rows of rows.
        watches: one for each piece that is enqueued.
    """

    prompt: str
    tokens: TokenizedPrompt
    rows: torch.Tensor
    left: list[Callable[[torch.Tensor], torch.Tensor]]
    watches: list[Stopwatch] = field(default_factory=list)


class PromptsAhead:
    """Encodes prompts a piece at a time, beside other work; for the one thread that owns the device."""

    def __init__(self, components: Components, lane: SideLane, at_home: FastTextEncoder | None = None) -> None:
        """Keep what encoding needs.

        Args:
            components: whose text encoder, without the last layer, is used where it is.
            lane: where it computes.
            at_home: the same text encoder, for when it lives on the device; records apart from all others. None is for
                one that never does.
        """
        self._components = components
        self._lane = lane
        self._at_home = at_home
        self._slices: list[Qwen3Model] = []
        self._under_way: _UnderWay | None = None
        self._done: dict[str, PromptEmbedding] = {}  # who was asked for least recently first
        self._has_room = self._is_full_at_home = False
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
        if self._has_failed:
            return False
        if prompt in self._done:
            self._done[prompt] = self._done.pop(prompt)  # who asks for it keeps it
            return False
        advance = partial(self._advance, prompt, wait=wait)
        try:
            advanced = attempt(advance, "no prompt is encoded ahead any more", but=(torch.OutOfMemoryError,))
        except torch.OutOfMemoryError:
            self._room_in_layers *= 2
            self.forget()
            self._is_full_at_home = self._is_at_home
            return False
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
        """Give up what is under way, and ask for room anew: weights are to move, or memory ran out.

        What is enqueued from now on, and may take the memory of either, begins when all is done that was enqueued.
        """
        self._under_way = None
        self._has_room = self._is_full_at_home = False
        self._lane.join()

    def _advance(self, prompt: str, *, wait: bool) -> bool:
        if self._is_full_at_home if self._is_at_home else not self._finds_room():
            return False
        under_way = self._under_way
        if under_way is None or under_way.prompt != prompt:
            under_way = self._under_way = self._begin(prompt)
        if under_way is None:
            return False
        self._run_piece(under_way)
        if wait:
            under_way.watches[-1].elapsed_ms()
        if not under_way.left:
            self._under_way = None
            self._done[prompt] = self._finished(under_way, under_way.watches)
            if len(self._done) > _KEPT:
                del self._done[next(iter(self._done))]
        return True

    @property
    def _is_at_home(self) -> bool:
        return self._at_home is not None and self._at_home.is_here

    def _begin(self, prompt: str) -> _UnderWay | None:
        """None if the text encoder is at home, and nobody prepared prompts of that length."""
        parts, at_home = self._components, self._at_home
        tokens = tokenize(parts.tokenizer, prompt, parts.max_prompt_tokens)
        if at_home is not None and at_home.is_here:
            if not at_home.is_prepared(len(tokens.ids)):
                return None
            return _UnderWay(prompt, tokens, torch.empty(0), [lambda _: at_home.encode(tokens.ids)])
        with torch.inference_mode(), self._lane.beside():
            rows = embedded(parts.text_encoder, tokens.ids, parts.device)
        return _UnderWay(prompt, tokens, rows, [partial(through_stock, layers) for layers in self._slices_of_layers()])

    def _run_piece(self, under_way: _UnderWay) -> None:
        with torch.inference_mode(), self._lane.beside():
            watch = stopwatch(self._components.device)
            watch.start()
            piece = under_way.left.pop(0)
            under_way.rows = piece(under_way.rows)
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

    def _slices_of_layers(self) -> list[Qwen3Model]:
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
