"""A store of so many things, those that were used last."""

import pytest

from zimage_ui.generator.fast.recently_used import RecentlyUsed

pytestmark = pytest.mark.model


def test_it_keeps_what_was_used_last():
    kept: RecentlyUsed[str, int] = RecentlyUsed(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert kept.get("a") == 1
    kept.put("c", 3)
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, False, True)
    assert kept.get("b") is None


def test_looking_whether_it_is_there_is_no_use():
    kept: RecentlyUsed[str, int] = RecentlyUsed(1)
    kept.put("a", 1)
    assert "a" in kept
    kept.put("a", 2)
    assert kept.get("a") == 2


def test_it_can_be_cleared():
    kept: RecentlyUsed[str, int] = RecentlyUsed(2)
    kept.put("a", 1)
    kept.clear()
    assert "a" not in kept
    assert list(kept.values()) == []


def test_looking_at_all_of_it_is_no_use():
    kept: RecentlyUsed[str, int] = RecentlyUsed(2)
    kept.put("a", 1)
    kept.put("b", 2)
    assert list(kept.values()) == [1, 2]
    kept.put("c", 3)
    assert list(kept.values()) == [2, 3]


def test_all_but_some_can_be_forgotten():
    kept = RecentlyUsed[int, str](3)
    for key in range(3):
        kept.put(key, str(key))
    kept.keep_only(lambda key: key != 1)
    assert list(kept.values()) == ["0", "2"]
    kept.put(3, "3")
    assert 0 in kept
