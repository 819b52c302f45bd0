"""What may fail without harm: compiling and recording, which only make a picture faster."""

from __future__ import annotations

import logging
import traceback
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
        # As text: a record that is kept must not keep the frames of the failure, and with them memory of the device.
        _log.warning("%s: %s: %s\n%s", otherwise, type(error).__name__, str(error), traceback.format_exc().rstrip())
        return None
