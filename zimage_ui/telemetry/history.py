"""What was measured lately, in bounded rings: a service that runs for months keeps minutes."""

from __future__ import annotations

import math
import threading
from collections import deque

from zimage_ui.telemetry.probe import Snapshot

HISTORY_S = 15 * 60.0
_MAX_SNAPSHOTS = 3_600


class History:
    """The newest snapshots, oldest first; the oldest falls out when a new one comes to a full ring. Thread-safe.

    Args:
        capacity: how many snapshots are kept.

    Raises:
        ValueError: `capacity` is not positive.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; a history keeps at least one snapshot")
        self._ring: deque[Snapshot] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    @classmethod
    def covering(cls, interval_s: float, seconds: float = HISTORY_S) -> History:
        """A ring for `seconds` at one snapshot every `interval_s`, but never for more than an hour's worth at 1 Hz."""
        return cls(max(1, min(math.ceil(seconds / interval_s), _MAX_SNAPSHOTS)))

    @property
    def capacity(self) -> int:
        """How many snapshots are kept."""
        return self._ring.maxlen or 0

    def append(self, snapshot: Snapshot) -> None:
        """Keep `snapshot`."""
        with self._lock:
            self._ring.append(snapshot)

    def since(self, at_s: float = -math.inf) -> tuple[Snapshot, ...]:
        """The snapshots taken after `at_s` (monotonic seconds), oldest first."""
        with self._lock:
            return tuple(snapshot for snapshot in self._ring if snapshot.at_s > at_s)

    def __len__(self) -> int:
        with self._lock:
            return len(self._ring)
