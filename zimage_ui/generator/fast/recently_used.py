"""A bounded store that forgets what was not used for longest: of graphs, and of tables."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)
_Kept = TypeVar("_Kept")


class RecentlyUsed(Generic[_Key, _Kept]):
    """A bounded number of things, those that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()

    def __contains__(self, key: _Key) -> bool:
        return key in self._kept

    def get(self, key: _Key) -> _Kept | None:
        """What is kept under `key`, which is thereby used; None if nothing is."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key]

    def put(self, key: _Key, kept: _Kept) -> None:
        """Keep `kept`; what was not used for longest goes if there are too many."""
        self._kept[key] = kept
        self._kept.move_to_end(key)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    def values(self) -> Iterable[_Kept]:
        """All that is kept, which is no use of it."""
        return self._kept.values()

    def keep_only(self, is_wanted: Callable[[_Key], bool]) -> None:
        """Forget the others."""
        for key in [key for key in self._kept if not is_wanted(key)]:
            del self._kept[key]

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
