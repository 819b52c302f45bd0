"""Long work that is in nobody's way: it asks now and then whether somebody waits, and is then begun anew later.

Finding out which kernel is the fastest takes seconds for each size on a machine's first start. A job that comes in the
meantime is not to wait for its end: what was measured so far is worth less than that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from zimage_ui.generator.base import SomebodyWaits, nobody_waits

# What such work answers instead, when it gave way.
GAVE_WAY: Final = "gave way"

_asked: ContextVar[SomebodyWaits] = ContextVar("somebody_waits", default=nobody_waits)


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
    if _asked.get()():
        raise GaveWayError
