"""Recorded functions, with a recorder that replays by running again; and keeping what was used last."""

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.fast.graphs import RecentlyUsed, RecordedFunction, SharedRecorder, recorders_for

pytestmark = pytest.mark.model


@pytest.fixture
def doubled():
    return RecordedFunction(lambda a, b: 2 * a + b, (torch.zeros(3), torch.zeros(3)), ReplayingRecorder())


def test_it_computes_with_what_it_is_called_with(doubled):
    assert torch.equal(doubled(torch.ones(3), torch.full((3,), 5.0)), torch.full((3,), 7.0))
    assert torch.equal(doubled(torch.full((3,), 4.0), torch.zeros(3)), torch.full((3,), 8.0))


def test_an_answer_outlives_the_next_call(doubled):
    first = doubled(torch.ones(3), torch.zeros(3))
    doubled(torch.zeros(3), torch.zeros(3))
    assert torch.equal(first, torch.full((3,), 2.0))


def test_the_examples_are_left_alone():
    example = torch.zeros(3)
    recorded = RecordedFunction(lambda a: a + 1, (example,), ReplayingRecorder())
    recorded(torch.ones(3))
    assert torch.equal(example, torch.zeros(3))


def test_views_can_be_examples_and_arguments():
    recorded = RecordedFunction(lambda a: a + 1, (torch.zeros(1, 3).expand(2, 3),), ReplayingRecorder())
    assert torch.equal(recorded(torch.ones(1, 3).expand(2, 3)), torch.full((2, 3), 2.0))


def test_another_size_is_refused(doubled):
    with pytest.raises(ValueError, match=r"\(3,\), called with \(1,\)"):
        doubled(torch.ones(1), torch.ones(3))


def test_a_missing_argument_is_refused(doubled):
    with pytest.raises(ValueError, match="zip"):
        doubled(torch.ones(3))


class TestRecentlyUsed:
    def test_keeps_what_was_used_last(self):
        kept: RecentlyUsed[str, int] = RecentlyUsed(2)
        kept.put("a", 1)
        kept.put("b", 2)
        assert kept.get("a") == 1
        kept.put("c", 3)
        assert ("a" in kept, "b" in kept, "c" in kept) == (True, False, True)
        assert kept.get("b") is None
        assert len(kept) == 2

    def test_looking_whether_it_is_there_is_no_use(self):
        kept: RecentlyUsed[str, int] = RecentlyUsed(1)
        kept.put("a", 1)
        assert "a" in kept
        kept.put("a", 2)
        assert kept.get("a") == 2

    def test_can_be_cleared(self):
        kept: RecentlyUsed[str, int] = RecentlyUsed(2)
        kept.put("a", 1)
        kept.clear()
        assert len(kept) == 0


def test_parts_that_share_a_recorder_get_its_successor_together():
    made: list[ReplayingRecorder] = []

    def make() -> ReplayingRecorder:
        made.append(ReplayingRecorder())
        return made[-1]

    shared = SharedRecorder(make)
    first, second = shared.renewed(), shared.renewed()
    assert first is second is shared
    first.record(lambda: torch.zeros(1))
    second.record(lambda: torch.zeros(1))
    assert [recorder.recorded for recorder in made] == [0, 0, 2]
    first.renewed()
    second.record(lambda: torch.zeros(1))
    assert [recorder.recorded for recorder in made] == [0, 0, 2, 1]


def test_a_cpu_records_nothing():
    assert recorders_for(torch.device("cpu")) is None
