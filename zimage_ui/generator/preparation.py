"""What is prepared ahead of the requests for it, and in what order: a piece at a time, whenever nobody waits.

Nothing is kept here that the engine knows better: a shape is warm when the engine says so. So shapes that were dropped
because memory ran out are cold again and get their turn again, without anybody telling.

A small card has no room for all of them beside the pictures themselves. Where memory runs out while one is prepared, or
for a picture that could be made once all were given up, fewer are kept from then on; which ones, `demand` says. After
some pictures that went well one more is tried.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, ZImageError
from zimage_ui.generator.base import (
    ModelProfile,
    ShapesListener,
    ShapeState,
    ShapeStatus,
    SomebodyWaits,
    nobody_waits,
)
from zimage_ui.generator.demand import Demand
from zimage_ui.generator.fast.giving_way import GAVE_WAY
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.memory import Patience

_log = logging.getLogger(__name__)

# Prompts of up to 64 tokens, the chat template's own 8 included: about 40 English words.
CAPTION_TOKENS = (32, 64)
# What a piece answers for which there was too little memory.
_RAN_OUT = object()

Piece = Callable[[], object]


class Preparable(Protocol):
    """What a `Preparation` needs of an engine."""

    @property
    def prepares(self) -> bool:
        """Whether anything can be prepared on this device."""

    def is_prepared(self, shape: PictureShape) -> bool:
        """Whether pictures of `shape` are made at full speed."""

    def preparations(self, shape: PictureShape, somebody_waits: SomebodyWaits) -> tuple[Piece, ...]:
        """What prepares `shape`, in pieces that cost nothing when they are done; whether it worked, it tells itself.

        A piece that answers `GAVE_WAY`, because somebody waits, is to be called again.
        """

    def rehearse(self, shape: PictureShape) -> None:
        """Go through what a picture of `shape` needs besides, so that no picture is the first to."""

    @property
    def times_out_of_memory(self) -> int:
        """How often an allocation failed so far, also where that did no harm."""

    def keep_only(self, shapes: Collection[PictureShape]) -> None:
        """Drop what was prepared for none of `shapes`."""

    def release(self, *, ran_out: bool) -> bool:
        """Give up all that was prepared, because memory `ran_out` or for others; whether any of it held memory."""


@dataclass(slots=True)
class _UnderWay:
    """The shape that is being prepared.

    Attributes:
        pieces: those that are left.
        failed: whether one of them failed for want of memory.
        ran_out: whether memory ran out in one, which may have found another way.
    """

    shape: PictureShape
    pieces: deque[Piece]
    failed: bool = False
    ran_out: bool = False


class Preparation:
    """Prepares shapes, those first that are worth it most.

    For the one thread that owns the device; `statuses` may be called from any.
    """

    def __init__(self, engine: Preparable, profile: ModelProfile) -> None:
        self._engine = engine
        self._demand = Demand(
            [PictureShape(width, height, tokens) for width, height in profile.sizes for tokens in CAPTION_TOKENS]
        )
        self._rehearsed: frozenset[PictureShape] = frozenset()  # without prompts: they make no difference
        self._refused: frozenset[PictureShape] = frozenset()
        self._given_up: tuple[PictureShape, ...] = ()  # for the request under way, as memory ran out
        self._most: int | None = None  # shapes that are kept prepared; None is all
        self._patience = Patience()
        self._under_way: _UnderWay | None = None

    def statuses(self) -> tuple[ShapeStatus, ...]:
        """How all shapes stand: the profile's in its order, then those that were asked for, the last first."""
        return tuple(self._status(shape) for shape in self._demand.known()) if self._engine.prepares else ()

    def made(self, *shapes: PictureShape) -> None:
        """Note that pictures of `shapes`, of one size, were just made: they come first now, and need no rehearsal."""
        self._under_way = None
        self._rehearsed |= {shape.promptless for shape in shapes}
        before = self._demand.known()
        self._demand.made(*shapes)
        self._mind_memory(shapes)
        known = self._demand.known()
        if not set(before) <= set(known):
            # Kept, one more would drop what was drawn longest ago instead: a preset, and all others after it.
            self._engine.keep_only(known)
        self._refused &= frozenset(known)
        self._rehearsed &= {kept.promptless for kept in known}

    def ran_out(self) -> None:
        """Note that memory ran out for the request under way, before anything is given up for it."""
        self._given_up = self._given_up or tuple(self._prepared())

    def interrupt(self) -> None:
        """A request goes first: afterwards, what to do is decided anew."""
        self._under_way = None
        self._given_up = ()

    def next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        """Do one piece, or begin it and give way; False when nothing is left to do.

        A shape that cannot be prepared is logged and left alone; it stays cold.

        Args:
            changed: hears of all shapes when one begins and when one is done.
            somebody_waits: is asked now and then during long pieces, which are then begun anew the next time; for all
                pieces of a shape it is who was given when it was begun.

        Raises:
            DeviceLostError: the device answers no more.
        """
        if self._under_way is None:
            shape = self._next_shape()
            if shape is None:
                return False
            kept = self._prepared()
            if self._is_full(kept) and shape not in kept:
                self._engine.release(ran_out=False)
            self._under_way = _UnderWay(shape, deque(self._pieces(shape, somebody_waits)))
            changed(self.statuses())
        under_way, times_before = self._under_way, self._engine.times_out_of_memory
        answer = _attempt(under_way.pieces[0], under_way.shape)
        if answer is GAVE_WAY:
            return True
        under_way.failed |= answer is _RAN_OUT
        under_way.ran_out |= under_way.failed or self._engine.times_out_of_memory > times_before
        under_way.pieces.popleft()
        if not under_way.pieces:
            self._under_way = None
            self._settle(under_way)
            changed(self.statuses())
        return True

    def _settle(self, under_way: _UnderWay) -> None:
        """All pieces were tried: what did not work then is not tried again and again, unless others were in its way."""
        shape = under_way.shape
        self._rehearsed |= {shape.promptless}
        is_prepared = self._engine.is_prepared(shape)
        others = sum(other != shape for other in self._prepared())
        if is_prepared and not (under_way.failed and others):
            return
        if under_way.ran_out:
            self._engine.release(ran_out=True)  # of what failed, too, some may be held
        if under_way.ran_out and others:
            _log.warning("memory ran out while %s was prepared beside %d others", shape, others)
            self._keep_at_most(others)
        else:
            _log.warning("%s could not be prepared: it is drawn without", shape)
            self._refused |= {shape}

    def _next_shape(self) -> PictureShape | None:
        """What is to be prepared now: of those that are worth it most, so many as are kept."""
        if not self._engine.prepares:
            return None
        by_worth = self._demand.by_worth() if self._most is None else self._demand.by_worth_where_few_fit()
        worth = [shape for shape in by_worth if shape not in self._refused]
        kept = self._prepared()
        is_full = self._is_full(kept)
        for shape in worth[: self._most]:
            if self._is_done(shape):
                continue
            if not is_full or shape in kept or self._demand.takes_a_place(shape, kept):
                return shape
        return None

    def _is_full(self, kept: Sequence[PictureShape]) -> bool:
        return self._most is not None and len(kept) >= self._most

    def _is_done(self, shape: PictureShape) -> bool:
        return shape.promptless in self._rehearsed and self._engine.is_prepared(shape)

    def _prepared(self) -> list[PictureShape]:
        return [shape for shape in self._demand.known() if self._engine.is_prepared(shape)]

    def _mind_memory(self, made: Sequence[PictureShape]) -> None:
        """A picture was made: keep fewer if others had to be given up for it, or else, at times, one more.

        The last one goes, too, where what it is given up for is in use: or that would run out of memory each time.
        """
        given_up, self._given_up = self._given_up, ()
        if len(given_up) == 1 and given_up[0].is_sized_like(made[0]):
            self._refused |= {shape for shape in self._demand.known() if shape.is_sized_like(made[0])}
        elif given_up:
            least = 0 if any(map(self._demand.is_in_use, made)) else 1
            self._keep_at_most(max(least, len(given_up) - 1))
        elif self._most is not None and self._patience.went_well():
            self._most += 1

    def _keep_at_most(self, shapes: int) -> None:
        self._most = shapes if self._most is None else min(shapes, self._most)
        self._patience.grow()
        _log.warning("memory is short: %d sizes are kept prepared from now on, those in use first", self._most)

    def _pieces(self, shape: PictureShape, somebody_waits: SomebodyWaits) -> tuple[Piece, ...]:
        pieces = self._engine.preparations(shape, somebody_waits)
        if shape.promptless in self._rehearsed:
            return pieces
        return (*pieces, lambda: self._engine.rehearse(shape))

    def _status(self, shape: PictureShape) -> ShapeStatus:
        under_way = self._under_way
        if under_way is not None and under_way.shape == shape:
            state = ShapeState.PREPARING
        else:
            state = ShapeState.WARM if self._engine.is_prepared(shape) else ShapeState.COLD
        return ShapeStatus(
            width=shape.width,
            height=shape.height,
            prompt_tokens=shape.caption_tokens,
            num_images=shape.num_images,
            state=state,
        )


def _attempt(piece: Piece, shape: PictureShape) -> object:
    try:
        return piece()
    except DeviceLostError:
        raise
    except ZImageError as error:
        _log.warning("while %s was prepared: %s", shape, str(error))
        return _RAN_OUT if isinstance(error, DeviceMemoryError) else None
