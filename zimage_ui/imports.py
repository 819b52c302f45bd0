"""While slow libraries are imported, garbage is not collected.

Thousands of modules are made, none of which goes away again, and the collector walks through all of them whenever
their number has grown: a quarter of the time of importing torch, diffusers and transformers.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Pause:
    """How many are importing; the collector is the process's, and several threads import."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entered = 0
        self._was_enabled = True

    def begin(self) -> None:
        with self._lock:
            if not self._entered:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._entered += 1

    def end(self) -> None:
        with self._lock:
            self._entered -= 1
            if not self._entered and self._was_enabled:
                gc.freeze()  # or the first collection would walk through what was just imported, and find nothing
                gc.enable()


_pause = _Pause()


@contextmanager
def collector_paused() -> Iterator[None]:
    """While it is entered, by anybody, garbage stays; whatever is there at the end is not looked through again.

    That is this process's own modules. A program that calls this with much else in its memory freezes that, too.
    """
    _pause.begin()
    try:
        yield
    finally:
        _pause.end()
