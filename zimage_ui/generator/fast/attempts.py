"""What may fail without harm: compiling and recording, which only make a picture faster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

_log = logging.getLogger(__name__)

_Result = TypeVar("_Result")


def attempt(work: Callable[[], _Result], otherwise: str, *, but: tuple[type[Exception], ...] = ()) -> _Result | None:
    """What `work` answers; None, with the reason logged, when it fails: a compiler can fail in any way.

    Args:
        work: whose result is never None.
        otherwise: what happens instead, for the log.
        but: failures that are the caller's.
    """
    try:
        return work()
    except but:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, there is another way to the same picture
        _log.warning("%s: %s: %s", otherwise, type(error).__name__, error, exc_info=True)
        return None
