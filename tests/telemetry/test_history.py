from __future__ import annotations

import pytest

from zimage_ui.telemetry.history import History
from zimage_ui.telemetry.probe import Snapshot


def at(second: float) -> Snapshot:
    return Snapshot(at_s=second, unix_s=second)


def test_the_oldest_falls_out() -> None:
    history = History(3)

    for second in range(5):
        history.append(at(second))

    assert [snapshot.at_s for snapshot in history.since()] == [2, 3, 4]
    assert len(history) == 3


def test_since_gives_only_what_is_newer() -> None:
    history = History(10)
    for second in range(5):
        history.append(at(second))

    assert [snapshot.at_s for snapshot in history.since(2)] == [3, 4]
    assert history.since(4) == ()


@pytest.mark.parametrize(("interval_s", "capacity"), [(1.0, 900), (0.1, 3_600), (60.0, 15), (10_000.0, 1)])
def test_a_ring_covers_a_quarter_of_an_hour_and_stays_small(interval_s: float, capacity: int) -> None:
    assert History.covering(interval_s).capacity == capacity


def test_a_ring_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity is 0"):
        History(0)
