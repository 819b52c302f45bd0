"""Recorded functions, with a recorder that replays by running again; and those that a part of a model keeps."""

import gc
import logging
import weakref
from collections.abc import Callable
from functools import partial
from itertools import count

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.fast.graphs import (
    GraphPool,
    RecordedFunction,
    Recorder,
    Recordings,
    recorder_for,
)

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


def test_what_a_recording_reads_lives_as_long_as_it_does():
    """A graph has addresses, and no hold on what lies there."""

    class Table:
        values = torch.ones(3)

        def add_to(self, a):
            return a + self.values

    class Graph:
        """Replays without a hold on what it recorded."""

        def record(self, work):
            return lambda: None, work()

    table = Table()
    alive = weakref.ref(table)
    recorded = RecordedFunction(table.add_to, (torch.zeros(3),), Graph())
    del table
    gc.collect()
    assert alive() is not None
    del recorded
    gc.collect()
    assert alive() is None


def test_another_size_is_refused(doubled):
    with pytest.raises(ValueError, match=r"\(3,\), called with \(1,\)"):
        doubled(torch.ones(1), torch.ones(3))


def test_a_missing_argument_is_refused(doubled):
    with pytest.raises(ValueError, match="zip"):
        doubled(torch.ones(3))


class TestGraphPool:
    """Torch cannot be asked to record without a GPU: here a graph is anything that can be held."""

    class Graph:
        pass

    @pytest.fixture
    def pool(self) -> GraphPool:
        return GraphPool(partial(next, ((number, 0) for number in count())))

    def test_all_graphs_share_it_while_one_of_them_lives(self, pool):
        graphs = []
        for _ in range(3):
            handle, _ = pool.handle()
            assert handle == (0, 0)
            graphs.append(self.Graph())
            pool.add(graphs[-1])
        del graphs[:2]
        assert pool.handle()[0] == (0, 0)

    def test_once_all_are_gone_another_begins(self, pool):
        handle, _ = pool.handle()
        pool.add(self.Graph())
        gc.collect()
        assert pool.handle()[0] != handle

    def test_what_fails_to_be_recorded_leaves_it_to_those_that_are_there(self, pool):
        graph = self.Graph()
        handle, _ = pool.handle()
        pool.add(graph)
        pool.handle()
        assert pool.handle()[0] == handle

    def test_whoever_records_keeps_the_others_alive_meanwhile(self, pool):
        """A graph that is collected while the next is recorded would take the pool with it."""
        graph = self.Graph()
        pool.add(graph)
        handle, alive = pool.handle()
        del graph
        gc.collect()
        assert pool.handle()[0] == handle
        assert len(alive) == 1


class TestRecordings:
    @pytest.fixture
    def recorder(self) -> ReplayingRecorder:
        return ReplayingRecorder()

    @pytest.fixture
    def recordings(self, recorder) -> Recordings[int, str]:
        return Recordings(2, recorder, ["usual"])

    @staticmethod
    def tripled(size: int, way: str, recorder: Recorder) -> Callable[..., torch.Tensor]:
        return RecordedFunction(lambda a: 3 * a, (torch.zeros(size),), recorder)

    @staticmethod
    def broken(way: str, recorder: Recorder) -> Callable[..., torch.Tensor]:
        raise RuntimeError("no compiler here")

    def prepared(self, recordings: Recordings[int, str], size: int) -> bool:
        return recordings.prepare(size, partial(self.tripled, size), f"tripling {size}")

    def test_what_is_prepared_runs_and_costs_nothing_again(self, recordings, recorder, caplog):
        assert recordings.get(4) is None
        with caplog.at_level(logging.INFO, "zimage_ui"):
            assert self.prepared(recordings, 4)
            assert self.prepared(recordings, 4)
        assert caplog.text.count("tripling 4 is prepared in") == 1
        assert recorder.recorded == 1
        assert (4 in recordings, 5 in recordings) == (True, False)
        run = recordings.get(4)
        assert run is not None
        assert torch.equal(run(torch.ones(4)), torch.full((4,), 3.0))

    def test_those_used_last_are_kept(self, recordings):
        for size in (1, 2):
            assert self.prepared(recordings, size)
        assert recordings.get(1) is not None
        assert self.prepared(recordings, 3)
        assert [size in recordings for size in (1, 2, 3)] == [True, False, True]

    def test_a_failure_is_logged_once_and_costs_nothing_that_is_ready(self, recordings, caplog):
        assert self.prepared(recordings, 1)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not recordings.prepare(2, self.broken, "something")
        assert caplog.text.count("something could not be prepared: RuntimeError: no compiler here") == 1
        assert (1 in recordings, 2 in recordings) == (True, False)
        assert self.prepared(recordings, 2)

    def test_released_they_begin_anew(self, recordings, recorder):
        assert not recordings.release()
        assert self.prepared(recordings, 1)
        assert recordings.release()
        assert 1 not in recordings
        assert self.prepared(recordings, 1)
        assert recorder.recorded == 2

    def test_what_is_ready_without_a_recording_holds_no_memory(self, recordings):
        assert recordings.prepare(1, lambda way, recorder: torch.neg, "negating")
        assert not recordings.release()
        assert 1 not in recordings

    def tried_for(self, sizes, ways, failing, recorder):
        """The ways that are tried for each of `sizes`; one in `failing` fails, alone or with its size."""
        recordings: Recordings[int, str] = Recordings(8, recorder, ways)
        tried: list[tuple[int, str]] = []

        def record(size: int, way: str, recorder: Recorder) -> Callable[..., torch.Tensor]:
            tried.append((size, way))
            if (size, way) in failing or way in failing:
                raise RuntimeError("no compiler here")
            return self.tripled(size, way, recorder)

        for size in sizes:
            recordings.prepare(size, partial(record, size), f"tripling {size}")
        return tried

    def test_a_way_that_never_worked_is_tried_once(self, recorder):
        """Each failure costs time; within a recording also a pool of its own for what is recorded before the next."""
        tried = self.tried_for([1, 2, 3], ["ours", "compiled"], {"ours"}, recorder)
        assert tried == [(1, "ours"), (1, "compiled"), (2, "compiled"), (3, "compiled")]
        assert recorder.recorded == 3

    def test_a_way_that_has_worked_is_tried_for_other_sizes_after_it_failed_for_one(self, recorder):
        tried = self.tried_for([1, 2, 3], ["ours", "compiled"], {(2, "ours")}, recorder)
        assert tried == [(1, "ours"), (2, "ours"), (2, "compiled"), (3, "ours")]

    def test_the_last_way_is_always_tried(self, recorder):
        tried = self.tried_for([1, 2], ["ours", "compiled"], {"ours", (1, "compiled")}, recorder)
        assert tried == [(1, "ours"), (1, "compiled"), (2, "compiled")]

    def test_where_memory_is_full_no_other_way_takes_less(self, recorder, caplog):
        recordings: Recordings[int, str] = Recordings(8, recorder, ["ours", "compiled"])
        tried = []

        def record(way: str, _recorder: Recorder) -> Callable[..., torch.Tensor]:
            tried.append(way)
            if len(tried) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return self.tripled(1, way, recorder)

        assert not recordings.prepare(1, record, "tripling")
        assert "tripling could not be prepared: CUDA out of memory." in caplog.text
        assert recordings.prepare(1, record, "tripling")
        assert tried == ["ours", "ours"]

    def test_without_a_recorder_nothing_is_ever_prepared(self):
        recordings: Recordings[int, str] = Recordings(2, None, ["usual"])
        assert not recordings.can_record
        assert not self.prepared(recordings, 1)
        assert not recordings.release()
        assert 1 not in recordings


def test_a_cpu_records_nothing():
    assert recorder_for(torch.device("cpu")) is None
