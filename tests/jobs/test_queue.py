import threading
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_ui.errors import NotReadyError, QueueFullError
from zimage_ui.jobs.queue import Job, JobQueue
from zimage_ui.request import GenerationRequest

REQUEST = GenerationRequest(prompt="a boat", seed=1)


def job(job_id: str) -> Job:
    """A job of the client that its id begins with: "a1" is client a's first."""
    return Job(job_id=job_id, client=job_id[0], request=REQUEST)


def filled(*job_ids: str, capacity: int = 100) -> JobQueue:
    queue = JobQueue(capacity)
    for job_id in job_ids:
        queue.put(job(job_id))
    return queue


def taken(queue: JobQueue) -> str:
    found = queue.take()
    assert found is not None
    return found.job_id


def emptied(queue: JobQueue) -> list[str]:
    return [taken(queue) for _ in range(len(queue))]


def test_one_client_is_served_first_come_first_served():
    assert emptied(filled("a1", "a2", "a3")) == ["a1", "a2", "a3"]


def test_clients_take_turns():
    assert emptied(filled("a1", "a2", "a3", "b1", "b2", "c1")) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_a_newcomer_goes_before_the_client_who_was_just_served():
    queue = filled("a1", "a2", "a3")
    assert taken(queue) == "a1"
    queue.put(job("b1"))
    assert emptied(queue) == ["b1", "a2", "a3"]


def test_whoever_waited_longer_goes_before_a_newcomer():
    queue = filled("a1", "a2", "b1")
    assert taken(queue) == "a1"
    queue.put(job("c1"))
    assert emptied(queue) == ["b1", "c1", "a2"]


def test_who_comes_next_is_known_and_stays():
    queue = filled("a1", "a2")
    assert queue.peek() is queue.peek()
    assert queue.peek().job_id == taken(queue) == "a1"
    queue.put(job("b1"))
    assert queue.peek().job_id == "b1"
    assert queue.remove("b1")
    assert queue.peek().job_id == taken(queue) == "a2"
    assert queue.peek() is None


def test_one_job_too_many_is_refused_and_leaves_no_trace():
    queue = filled("a1", "a2", capacity=2)
    assert queue.full
    with pytest.raises(QueueFullError, match="2 jobs are waiting"):
        queue.put(job("b1"))
    assert queue.order() == ("a1", "a2")
    assert taken(queue) == "a1"
    queue.put(job("b1"))


def test_a_waiting_job_can_be_removed_once():
    queue = filled("a1", "a2", "b1")
    assert queue.remove("a1")
    assert not queue.remove("a1")
    assert not queue.remove("never")
    assert queue.order() == ("a2", "b1")


def test_removing_a_clients_only_job_ends_its_turn():
    queue = filled("a1", "b1")
    assert queue.remove("a1")
    assert emptied(queue) == ["b1"]


def test_take_waits_for_a_job():
    queue = JobQueue(1)
    found: list[str] = []
    consumer = threading.Thread(target=lambda: found.append(taken(queue)))
    consumer.start()
    queue.put(job("a1"))
    consumer.join(10)
    assert found == ["a1"]


def test_closing_wakes_the_consumer_and_gives_back_what_waits():
    queue = JobQueue(5)
    found: list[Job | None] = []
    consumer = threading.Thread(target=lambda: found.append(queue.take()))
    consumer.start()
    assert queue.close() == []
    consumer.join(10)
    assert found == [None]
    assert [left.job_id for left in filled("a1", "b1").close()] == ["a1", "b1"]


def test_a_closed_queue_takes_and_gives_nothing():
    queue = filled("a1")
    queue.close()
    assert (len(queue), queue.order(), queue.take()) == (0, (), None)
    with pytest.raises(NotReadyError):
        queue.put(job("a2"))
    assert queue.close() == []


@given(st.lists(st.sampled_from("abcd"), max_size=30))
def test_the_announced_order_is_the_order_of_taking(clients: list[str]):
    queue = filled(*(f"{client}{number}" for number, client in enumerate(clients)))
    announced = queue.order()
    assert list(announced) == emptied(queue)
    assert sorted(announced) == sorted(f"{client}{number}" for number, client in enumerate(clients))


@given(st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=60))
def test_nobody_is_overtaken_twice_by_the_same_client(script: list[str | None]):
    """A letter submits a job of that client, None takes one: while anyone waits, nobody else is served twice."""
    queue, waiting, served_since = JobQueue(100), set[str](), dict[str, list[str]]()
    for number, client in enumerate(script):
        if client is not None:
            queue.put(job(f"{client}{number}"))
            if client not in waiting:
                waiting.add(client)
                served_since[client] = []
        elif len(queue):
            served = taken(queue)[0]
            for other in waiting - {served}:
                served_since[other].append(served)
                assert served_since[other].count(served) <= 1
            served_since[served] = []
            if not any(job_id[0] == served for job_id in queue.order()):
                waiting.discard(served)


def test_a_cancelled_job_is_not_kept_and_a_kept_one_not_cancelled():
    cancelled, kept = job("a1"), job("a2")
    assert cancelled.request_cancel()
    assert cancelled.request_cancel()
    assert not cancelled.keep()
    assert kept.keep()
    assert not kept.request_cancel()
    assert not kept.cancel.is_set()


class TestStayingQuiet:
    def test_it_is_so_while_nobody_waits(self):
        queue = JobQueue(2)
        assert not queue.wanted
        assert queue.stays_quiet(0.01)
        queue.put(job("a1"))
        assert queue.wanted
        assert not queue.stays_quiet(60)
        queue.take()
        assert not queue.wanted
        assert queue.stays_quiet()

    @pytest.mark.parametrize(
        "end",
        [
            lambda queue: queue.put(job("a1")),
            lambda queue: queue.announce(REQUEST),
            lambda queue: queue.close(),
        ],
    )
    def test_a_job_a_draft_or_the_end_is_not_waited_out(self, end):
        queue, answers = JobQueue(2), []
        looking = threading.Thread(target=lambda: answers.append(queue.stays_quiet(60)))
        looking.start()
        end(queue)
        looking.join(10)
        assert answers == [False]

    def test_a_closed_queue_has_no_idle_time(self):
        queue = JobQueue(2)
        queue.close()
        assert queue.wanted
        assert not queue.stays_quiet()


def test_whoever_waits_for_a_job_that_is_gone_again_may_go_on_with_what_can_wait():
    queue, answers = filled("a1"), []
    assert queue.remove("a1")
    assert queue.take() is None
    assert not queue.closed
    waiting = threading.Thread(target=lambda: answers.append(queue.take()))
    waiting.start()
    queue.put(job("a2"))  # that was told once
    waiting.join(10)
    assert [each.job_id for each in answers] == ["a2"]


class TestWhatIsAnnounced:
    def test_it_takes_no_place_and_no_turn(self):
        queue, other = filled("a1", capacity=1), GenerationRequest(prompt="a boat at sea")
        queue.announce(other)
        assert (len(queue), queue.order(), queue.announced) == (1, ("a1",), other)
        assert taken(queue) == "a1"  # the job comes first
        assert queue.take() is None
        assert not queue.wanted
        assert not queue.closed

    def test_the_newest_counts_and_stays_when_an_older_one_is_done_with(self):
        queue, newer = JobQueue(1), GenerationRequest(prompt="a boat at sea")
        queue.announce(REQUEST)
        queue.announce(newer)
        queue.done_with(REQUEST)
        assert queue.announced is newer
        queue.done_with(newer)
        assert queue.announced is None
        assert queue.stays_quiet()

    def test_once_a_job_asks_for_it_it_is_done_with(self):
        queue = filled("a1")
        queue.announce(replace(REQUEST, seed=5, width=64))  # the prompts are what counts
        assert taken(queue) == "a1"
        assert queue.announced is None

    def test_whoever_waits_for_a_job_hears_of_it(self):
        queue, answers = JobQueue(2), []
        looking = threading.Thread(target=lambda: answers.append(queue.take()))
        looking.start()
        queue.announce(REQUEST)
        looking.join(10)
        assert answers == [None]
