"""Long work that is in nobody's way: it asks now and then whether somebody waits, and is then begun anew later.

Finding out which kernel is the fastest takes seconds for each size on a machine's first start. A job that comes in the
meantime is not to wait for its end, but for a tenth of a second: what was measured so far is worth less than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from zimage_ui.generator.base import SomebodyWaits

# What such work answers instead, when it gave way.
GAVE_WAY: Final = "gave way"

_asked: ContextVar[SomebodyWaits | None] = ContextVar("somebody_waits", default=None)


class GaveWayError(Exception):
    """Somebody waits: the work under way is to end here."""


@contextmanager
def giving_way(somebody_waits: SomebodyWaits) -> Iterator[None]:
    """A context in which `give_way` asks `somebody_waits`; outside of any, nobody ever does."""
    token = _asked.set(somebody_waits)
    try:
        yield
    finally:
        _asked.reset(token)


def give_way() -> None:
    """Called where work can end without harm.

    Raises:
        GaveWayError: somebody waits.
    """
    somebody_waits = _asked.get()
    if somebody_waits is not None and somebody_waits():
        raise GaveWayError
