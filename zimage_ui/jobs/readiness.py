"""The way from process start to the first fast picture, as one progress that never goes back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from zimage_ui.errors import JobCancelledError, ZImageError
from zimage_ui.generator.base import ProgressListener, WarmupPhase, WarmupProgress

logger = logging.getLogger(__name__)

# Where each part ends on the way of 0..1. Loading reads gigabytes, warming runs one full pass, saving writes one tiny
# file; a part is never known to take longer than its share, it only looks slower.
LOADED_AT = 0.75
WARMED_AT = 0.98


class ReadinessReporter:
    """Turns the 0..1 of each part of the warm-up into the one of the whole, and ends it as ready or failed.

    Setting `stopping` makes the next report raise a `JobCancelledError`, which ends a load that nobody waits for.
    """

    def __init__(self, publish: Callable[[WarmupProgress], None], stopping: threading.Event) -> None:
        self._publish = publish
        self._stopping = stopping
        self._progress = 0.0
        self._started_at_s = time.monotonic()

    def part(self, begin: float, end: float) -> ProgressListener:
        """A listener for a part of the warm-up that lies from `begin` to `end` of the whole."""

        def listen(progress: WarmupProgress) -> None:
            if self._stopping.is_set():
                raise JobCancelledError("The warm-up was ended: the service is stopping.")
            self._advance(replace(progress, progress=begin + (end - begin) * progress.progress))

        return listen

    def saving(self) -> None:
        """Note that the saver is being tried out."""
        self._advance(WarmupProgress(phase=WarmupPhase.WARMING, progress=WARMED_AT, detail="saving a test picture"))

    def ready(self) -> None:
        """Note that the next picture is fast."""
        elapsed_s = time.monotonic() - self._started_at_s
        detail = f"ready after {elapsed_s:.1f} s"
        logger.info(detail)
        self._advance(WarmupProgress(phase=WarmupPhase.READY, progress=1.0, detail=detail))

    def failed(self, error: ZImageError) -> None:
        """Note that no pictures can be made (any more), and why."""
        self._advance(
            WarmupProgress(phase=WarmupPhase.FAILED, progress=0.0, detail=error.message, error=str(error)),
        )

    def _advance(self, progress: WarmupProgress) -> None:
        self._progress = max(self._progress, min(1.0, progress.progress))
        self._publish(replace(progress, progress=self._progress))
