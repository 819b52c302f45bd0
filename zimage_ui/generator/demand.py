"""Which shapes people ask for, and in what order they are worth preparing for that.

Where there is no memory for all of them, preparing one more means giving up all that is prepared: their graphs share
their memory. So what was asked for twice of late takes the place of what nobody asked for, and what was asked for three
times in a row takes any; nothing less, or people who ask for more sizes in turns than fit would find each of them cold.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from zimage_ui.generator.fast.shapes import PictureShape

# Shapes that people asked for, those that were used last. With the profiles' own no more than the engine's parts
# keep at a time, and those drop what is forgotten here: so what was prepared for one never has to go for another.
KEPT_SEEN = 8
# Requests that are "of late": so many that all of as many sizes in turns as are remembered were asked for twice.
_LATE = 2 * KEPT_SEEN
_IN_A_ROW = 3


class Demand:
    """The shapes that are worth preparing: the profile's, and those that people ask for.

    For one thread; `known` may be asked from any.
    """

    def __init__(self, presets: Sequence[PictureShape]) -> None:
        """Nobody has asked for anything.

        Args:
            presets: the profile's shapes, in its order.
        """
        self._presets = tuple(presets)
        self._seen: tuple[PictureShape, ...] = ()  # the last first
        self._late: deque[tuple[PictureShape, ...]] = deque(maxlen=_LATE)  # of each request, the last first

    def made(self, *shapes: PictureShape) -> None:
        """A request for `shapes` was just fulfilled: for one, or with guidance for those of both prompts."""
        self._seen = _once(reversed(shapes), self._seen)[:KEPT_SEEN]
        self._late.appendleft(shapes)

    def known(self) -> tuple[PictureShape, ...]:
        """Every shape once: the profile's in its order, then those that were asked for, the last first."""
        return _once(self._presets, self._seen)

    def by_worth(self) -> tuple[PictureShape, ...]:
        """All of them, where all fit: the last one, then others of its size, then those asked for, then the rest."""
        last = self._seen[0] if self._seen else self._presets[0]
        return _once([last], self._sized_like(last), self._seen, self._presets)

    def by_worth_where_few_fit(self) -> tuple[PictureShape, ...]:
        """All of them: those asked for twice of late, then others sized like the last of those, then as in `known`."""
        in_use = self._asked_for_twice()
        last = in_use[0] if in_use else self._presets[0]
        return _once(in_use, self._sized_like(last), self.known())

    def is_in_use(self, shape: PictureShape) -> bool:
        """Whether it was asked for twice of late."""
        return shape in self._asked_for_twice()

    def takes_a_place(self, shape: PictureShape, kept: Iterable[PictureShape]) -> bool:
        """Whether `shape` is worth giving up what is kept, to keep it with the most of that."""
        is_any_idle = any(self._times(other) == 0 for other in kept)
        in_a_row = [shape in request for request in self._late][:_IN_A_ROW] == [True] * _IN_A_ROW
        return in_a_row or (is_any_idle and self.is_in_use(shape))

    def _asked_for_twice(self) -> tuple[PictureShape, ...]:
        known = self.known()
        of_late = _once(*(reversed(request) for request in self._late))
        return tuple(shape for shape in of_late if self._times(shape) > 1 and shape in known)

    def _times(self, shape: PictureShape) -> int:
        return sum(shape in request for request in self._late)

    def _sized_like(self, shape: PictureShape) -> list[PictureShape]:
        return [other for other in self.known() if other.is_sized_like(shape)]


def _once(*groups: Iterable[PictureShape]) -> tuple[PictureShape, ...]:
    return tuple(dict.fromkeys(shape for group in groups for shape in group))
