"""Encoded pictures in memory: every one that is not safe on disk yet, and the newest of the safe ones.

The page asks for a picture the moment it is announced, before it is on disk, and again a little later: both are
answered from here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from zimage_ui.request import ImageFormat


@dataclass(slots=True)
class _Held:
    data: bytes
    image_format: ImageFormat
    safe: bool


class PictureMemory:
    """Thread-safe. Safe pictures are forgotten, oldest first, when they take more than `safe_bytes` together."""

    def __init__(self, safe_bytes: int) -> None:
        self._capacity_bytes = safe_bytes
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._safe_bytes = 0

    def hold(self, picture_id: str, data: bytes, image_format: ImageFormat) -> None:
        """Keep a picture until `release`, whatever it costs."""
        with self._lock:
            self._held[picture_id] = _Held(data, image_format, safe=False)

    def release(self, picture_id: str) -> None:
        """The picture is safe elsewhere (or given up): it may be forgotten when its bytes are needed."""
        with self._lock:
            held = self._held.get(picture_id)
            if held is None or held.safe:
                return
            held.safe = True
            self._safe_bytes += len(held.data)
            self._held.move_to_end(picture_id)
            for oldest in [key for key, other in self._held.items() if other.safe]:
                if self._safe_bytes <= self._capacity_bytes:
                    break
                self._safe_bytes -= len(self._held.pop(oldest).data)

    def get(self, picture_id: str) -> tuple[bytes, ImageFormat] | None:
        """The picture, if it is held."""
        with self._lock:
            held = self._held.get(picture_id)
            return (held.data, held.image_format) if held else None

    @property
    def size_bytes(self) -> int:
        """All that is held, safe or not."""
        with self._lock:
            return sum(len(held.data) for held in self._held.values())
