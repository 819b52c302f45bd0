import gc
import logging
import threading
from collections import Counter
from dataclasses import replace

import pytest

from zimage_ui.errors import (
    DeviceLostError,
    InvalidRequestError,
    ModelNotFoundError,
    NotReadyError,
    QueueFullError,
    ZImageError,
)
from zimage_ui.generator.base import GenerationListener, GenerationResult, WarmupPhase
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs import service as service_module
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import GenerationRequest
from zimage_ui.stages import Stage, Timings


class TestSubmitting:
    def test_a_request_becomes_a_finished_job(self, room):
        record = room.make("a boat", num_images_per_prompt=3, seed=7)
        assert record.phase is JobPhase.DONE
        assert [picture.seed for picture in record.pictures] == [7, 8, 9]
        assert all(picture.path for picture in record.pictures)
        assert (record.nfe, record.step, record.num_steps, record.prompt_tokens) == (2, 2, 2, 2)
        assert record.timings is not None

    def test_the_seed_is_drawn_when_it_is_submitted(self, open_room):
        room = open_room(start=False)
        record = room.record(room.submit())
        assert record.request.seed is not None
        assert record.phase is JobPhase.QUEUED
        assert record.position == 0

    def test_it_returns_at_once_with_the_place_in_the_queue(self, open_room):
        room = open_room(start=False)
        records = [room.record(room.submit(client=client)) for client in ("ann", "ann", "bob")]
        assert [record.position for record in records] == [0, 1, 1]
        assert [(record.client, record.position) for record in room.service.board.active()] == [
            ("ann", 0),
            ("bob", 1),
            ("ann", 2),
        ]
        assert room.service.queue_length == 3

    def test_places_move_up_as_jobs_are_taken(self, room):
        first = room.running(num_inference_steps=1)
        second, third = room.submit(), room.submit()
        assert [room.record(job_id).position for job_id in (first, second, third)] == [None, 0, 1]
        first_gate = room.generator.gate
        room.hold()
        first_gate.set()
        room.wait_for_phase(second, JobPhase.RUNNING)
        assert [room.record(job_id).position for job_id in (second, third)] == [None, 0]
        room.let_go()
        assert room.end(third).position is None

    def test_clients_take_turns(self, room):
        held = room.running(client="ann")
        jobs = [room.submit(client=client) for client in ("ann", "ann", "bob")]
        ended: list[str] = []
        for job_id in jobs:
            room.service.future(job_id).add_done_callback(lambda future: ended.append(future.result().client))
        room.let_go()
        room.end(held)
        assert [room.end(job_id).phase for job_id in jobs] == [JobPhase.DONE] * 3
        assert ended == ["bob", "ann", "ann"]

    def test_jobs_wait_while_the_model_is_being_loaded(self, open_room):
        room = open_room(FakeGenerator(FakeScript(load_s=0.05, warmup_s=0.05)), start=False)
        job_id = room.submit()
        room.service.start()
        assert room.end(job_id).phase is JobPhase.DONE

    def test_nobody_has_to_wait_for_the_job_to_be_finished_and_found_again(self, room):
        """Fault 19: the client is gone; the job is made, saved and shown to whoever opens the page."""
        job_id = room.running()
        assert not room.service.future(job_id).cancel()
        room.let_go()
        room.wait_for_phase(job_id, JobPhase.DONE)
        assert room.record(job_id) in room.service.board.recent(1)

    def test_there_is_no_future_of_an_unknown_job(self, room):
        with pytest.raises(KeyError):
            room.service.future("nobody")


class TestAFullQueue:
    def test_one_too_many_is_refused_with_a_time_to_come_back(self, open_room):
        room = open_room(start=False, queue_size=2)
        room.submit()
        room.submit()
        with pytest.raises(QueueFullError, match="2 jobs are waiting already") as caught:
            room.submit()
        assert caught.value.retry_after_s == 5
        assert "about 5 s" in caught.value.hint

    def test_the_time_to_come_back_is_what_the_last_jobs_took(self, open_room, monkeypatch):
        room = open_room(queue_size=1)
        took = Timings(
            queue_ms=9e9, encode_ms=500, sample_ms=11_000, decode_ms=1_000, save_ms=9e9, other_ms=0, total_ms=2e10
        )
        monkeypatch.setattr("zimage_ui.jobs.saving.MadeJob.account", lambda made, saved_at_s: took)
        room.make()
        assert room.service.retry_after_s() == 13  # 12.5 s, rounded up
        job_id = room.running()
        room.submit()
        assert 1 <= room.service.retry_after_s() <= 13
        with pytest.raises(QueueFullError) as caught:
            room.submit()
        assert caught.value.retry_after_s <= 13
        room.let_go()
        assert room.end(job_id).phase is JobPhase.DONE

    def test_a_flood_is_refused_leaves_nothing_behind_and_the_queue_recovers(self, open_room):
        """Fault 17."""
        room = open_room(queue_size=4, keep=5)
        held = room.running()
        waiting = [room.submit() for _ in range(4)]
        refused = 0
        for _ in range(200):
            with pytest.raises(QueueFullError):
                room.submit()
            refused += 1
        assert refused == 200
        assert len(room.service.board.active()) == 5
        assert len(room.service._jobs) == 5
        assert len(room.service.board._futures) == 5
        room.let_go()
        assert {room.end(job_id).phase for job_id in (held, *waiting)} == {JobPhase.DONE}
        assert room.make().phase is JobPhase.DONE
        assert room.service._jobs == {}
        assert room.service.board._futures == {}


class TestCancelling:
    def test_a_waiting_job_is_removed_at_once(self, room):
        held = room.running()
        waiting, behind = room.submit(), room.submit()
        assert room.service.cancel(waiting)
        assert room.record(waiting).phase is JobPhase.CANCELLED
        assert room.record(behind).position == 0
        assert room.service.queue_length == 1
        room.let_go()
        assert room.end(held).phase is JobPhase.DONE

    def test_a_running_job_ends_within_one_step(self, room):
        job_id = room.running(num_inference_steps=50)
        assert room.service.cancel(job_id)
        room.let_go()
        record = room.end(job_id)
        assert record.phase is JobPhase.CANCELLED
        assert record.step <= 1
        assert record.pictures == ()
        assert record.ended_at_s is not None

    def test_the_worker_takes_the_next_job_after_a_cancelled_one(self, room):
        job_id = room.running()
        assert room.service.cancel(job_id)
        room.let_go()
        assert room.make().phase is JobPhase.DONE

    def test_twice_is_as_good_as_once(self, room):
        job_id = room.running()
        assert [room.service.cancel(job_id) for _ in range(3)] == [True] * 3
        room.let_go()
        assert room.end(job_id).phase is JobPhase.CANCELLED
        assert room.service.cancel(job_id)
        assert room.service.board.ended_counts()[JobPhase.CANCELLED] == 1

    def test_during_decode_it_takes_effect_at_the_end_of_decode(self, open_room):
        class SlowDecode(FakeGenerator):
            """Decodes without looking at `cancel`, as one call into a GPU library does."""

            decoding, decoded = threading.Event(), threading.Event()

            def generate(
                self,
                request: GenerationRequest,
                listener: GenerationListener = GenerationListener(),  # noqa: B008
                cancel: threading.Event | None = None,
            ) -> GenerationResult:
                result = super().generate(request, listener, cancel)
                self.decoding.set()
                assert self.decoded.wait(30)
                return result

        generator = SlowDecode()
        room = open_room(generator)
        job_id = room.submit()
        assert generator.decoding.wait(30)
        assert room.service.cancel(job_id)
        generator.decoded.set()
        assert room.end(job_id).phase is JobPhase.CANCELLED
        assert room.saver.orders == []

    def test_once_the_pictures_are_made_it_is_too_late(self, room):
        room.saver.open.clear()
        job_id = room.submit()
        assert room.saver.saving.wait(30)
        assert not room.service.cancel(job_id)
        room.saver.open.set()
        assert room.end(job_id).phase is JobPhase.DONE
        assert not room.service.cancel(job_id)

    def test_a_failed_or_unknown_job_cannot_be_cancelled(self, open_room):
        room = open_room(FakeGenerator(FakeScript(fail_at=Stage.SAMPLE)))
        assert room.make().phase is JobPhase.FAILED
        assert not room.service.cancel(room.service.board.recent(1)[0].job_id)
        assert not room.service.cancel("nobody")

    def test_cancelling_many_at_once_from_many_threads_ends_each_once(self, room):
        held = room.running()
        jobs = [room.submit(client=str(number % 3)) for number in range(20)]
        threads = [
            threading.Thread(target=lambda: [room.service.cancel(job_id) for job_id in jobs]) for _ in range(4)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        room.let_go()
        assert room.end(held).phase is JobPhase.DONE
        assert {room.end(job_id).phase for job_id in jobs} == {JobPhase.CANCELLED}
        assert room.service.board.ended_counts() == {
            JobPhase.DONE: 1, JobPhase.FAILED: 0, JobPhase.CANCELLED: 20,
        }  # fmt: skip


def test_many_rounds_leave_no_more_behind_than_the_history(open_room):
    """Fault 49, in small: what lives after 100 jobs is the history's, and what the last ones are just letting go."""
    before = living()  # of other tests, whose rooms Gradio may still hold
    room = open_room(keep=10)
    with room.service.board.subscribe(lambda: None):
        for _ in range(5):
            futures = {}
            for _ in range(20):
                job_id = room.submit(num_images_per_prompt=2)
                futures[job_id] = room.service.future(job_id)
            for job_id in list(futures)[::2]:
                room.service.cancel(job_id)
            assert all(future.result(30).phase.ended for future in futures.values())
    assert room.saver.drain(30)
    futures.clear()
    room.saver.orders.clear()
    room.saver._pending.clear()
    names = ("JobRecord", "Job", "MadeJob", "JobSaving", "Future", "GenerationRequest")
    more = living() - before
    assert {name: more[name] for name in names if more[name] > 20} == {}


def living() -> Counter[str]:
    gc.collect()
    return Counter(type(thing).__name__ for thing in gc.get_objects())


class FatalLog:
    """Remembers what `on_fatal` was told, and what the readiness said at that moment."""

    def __init__(self) -> None:
        self.errors: list[ZImageError] = []
        self.called = threading.Event()

    def __call__(self, error: ZImageError) -> None:
        self.errors.append(error)
        self.called.set()


class TestGivingUp:
    def test_a_model_that_cannot_be_loaded_fails_whoever_waits_and_refuses_the_rest(self, open_room, caplog):
        fatal = FatalLog()
        room = open_room(FakeGenerator(FakeScript(fail_load=True)), start=False, on_fatal=fatal)
        waiting = room.submit()
        with caplog.at_level(logging.ERROR):
            room.service.start()
            assert fatal.called.wait(30)
        assert isinstance(fatal.errors[0], ModelNotFoundError)
        assert len(fatal.errors) == 1
        assert "not to be found" in caplog.text

        record = room.end(waiting)
        assert (record.phase, type(record.error)) == (JobPhase.FAILED, NotReadyError)
        assert "not to be found" in str(record.error)
        with pytest.raises(NotReadyError, match=r"No picture can be made.*not to be found.*Change its script"):
            room.submit()
        assert room.service.queue_length == 0

        readiness = room.service.board.readiness
        assert readiness.phase is WarmupPhase.FAILED
        assert "not to be found" in readiness.error

    def test_a_lost_device_fails_the_running_job_and_the_waiting_ones(self, open_room):
        """Fault 24."""
        fatal = FatalLog()
        generator = FakeGenerator()
        room = open_room(generator, on_fatal=fatal)
        running = room.running()
        waiting = [room.submit(client=str(number)) for number in range(3)]
        generator.script = replace(generator.script, lose_device_at=Stage.DECODE)
        room.let_go()
        assert isinstance(room.end(running).error, DeviceLostError)
        for job_id in waiting:
            record = room.end(job_id)
            assert record.phase is JobPhase.FAILED
            assert "device was lost" in str(record.error)
        assert fatal.called.wait(30)
        assert [type(error) for error in fatal.errors] == [DeviceLostError]
        assert room.service.board.readiness.phase is WarmupPhase.FAILED
        assert generator.info is not None, "a lost device is not closed: that would only raise again"
        with pytest.raises(NotReadyError, match="device was lost"):
            room.submit()

    def test_the_readiness_says_failed_before_anybody_is_told(self, open_room):
        told: list[WarmupPhase] = []
        done = threading.Event()

        def on_fatal(_error: ZImageError) -> None:
            told.append(room.service.board.readiness.phase)
            done.set()

        room = open_room(FakeGenerator(FakeScript(fail_load=True)), start=False, on_fatal=on_fatal)
        room.service.start()
        assert done.wait(30)
        assert told == [WarmupPhase.FAILED]


def test_guidance_is_refused_once_it_is_known_that_the_model_works_without(room):
    room.wait_until(lambda: room.service.board.readiness.phase is WarmupPhase.READY)
    with pytest.raises(InvalidRequestError, match="works without guidance") as refused:
        room.submit(guidance_scale=4.0)
    assert refused.value.param == "guidance_scale"
    assert room.service.board.active() == ()


class TestClosing:
    def test_nothing_is_taken_any_more_and_the_waiting_are_told(self, room):
        running, waiting = room.running(), room.submit()
        closed: list[bool] = []
        closing = threading.Thread(target=lambda: closed.append(room.service.close(30)))
        closing.start()
        record = room.end(waiting)
        assert (record.phase, type(record.error)) == (JobPhase.FAILED, NotReadyError)
        with pytest.raises(NotReadyError, match="stopping"):
            room.submit()
        assert room.record(running).phase is JobPhase.RUNNING
        room.let_go()
        closing.join(30)
        assert closed == [True]
        assert room.record(running).phase is JobPhase.DONE

    def test_a_running_job_is_cancelled_when_its_time_is_over(self, room):
        job_id = room.running(num_inference_steps=3)
        opener = threading.Thread(target=room.service.close, args=(0.0,))
        opener.start()
        assert room.service._jobs[job_id].cancel.wait(30)
        room.let_go()
        opener.join(30)
        assert room.record(job_id).phase is JobPhase.CANCELLED

    def test_a_hurry_cancels_the_running_job_and_ends_the_wait(self, room):
        job_id = room.running(num_inference_steps=3)
        closed: list[bool] = []
        closing = threading.Thread(target=lambda: closed.append(room.service.close(3600)))
        closing.start()
        room.service.hurry()
        assert room.service._jobs[job_id].cancel.is_set()
        room.let_go()
        closing.join(30)
        assert closed == [True]
        assert room.record(job_id).phase is JobPhase.CANCELLED

    def test_a_hurry_does_not_wait_long_for_a_worker_that_hangs(self, room, monkeypatch):
        monkeypatch.setattr(service_module, "CANCEL_GRACE_S", 0.0)
        room.running()
        room.service.hurry()
        assert not room.service.close(3600)

    def test_who_waits_for_the_running_job_can_be_dismissed_and_the_job_goes_on(self, room):
        job_id = room.running()
        answer = room.service.future(job_id)
        room.service.dismiss()
        record = answer.result(0)
        assert (record.phase, type(record.error)) == (JobPhase.RUNNING, NotReadyError)
        assert job_id in room.service._jobs
        room.let_go()
        assert room.end(job_id).phase is JobPhase.DONE
        assert room.record(job_id).error is None

    def test_who_waits_for_a_model_that_is_not_loaded_any_more_is_told(self, open_room):
        room = open_room(start=False)
        room.service.stop()
        assert room.service.board.readiness.phase is WarmupPhase.FAILED
        assert "stopping" in room.service.board.readiness.error

    def test_a_worker_that_hangs_does_not_hold_up_the_close(self, room, monkeypatch):
        monkeypatch.setattr(service_module, "CANCEL_GRACE_S", 0.0)
        room.running()
        assert not room.service.close(0.0)

    def test_the_pictures_that_wait_are_saved_first(self, room):
        room.saver.open.clear()
        jobs = [room.submit() for _ in range(3)]
        for job_id in jobs:
            room.wait_for_phase(job_id, JobPhase.SAVING)
        closed: list[bool] = []
        closing = threading.Thread(target=lambda: closed.append(room.service.close(30)))
        closing.start()
        room.saver.open.set()
        closing.join(30)
        assert closed == [True]
        assert {room.record(job_id).phase for job_id in jobs} == {JobPhase.DONE}

    def test_a_saver_that_does_not_come_to_an_end_is_told(self, room, monkeypatch):
        monkeypatch.setattr(service_module, "MIN_SAVER_DRAIN_S", 0.0)
        room.saver.open.clear()
        job_id = room.submit()
        room.wait_for_phase(job_id, JobPhase.SAVING)
        assert not room.service.close(0.0)

    def test_a_load_that_nobody_waits_for_is_ended_at_its_next_report(self, open_room):
        class LongLoad(FakeGenerator):
            loading, go_on = threading.Event(), threading.Event()

            def warmup(self, progress):
                self.loading.set()
                assert self.go_on.wait(30)
                super().warmup(progress)
                pytest.fail("the warm-up should have been ended")

        generator = LongLoad()
        fatal = FatalLog()
        room = open_room(generator, on_fatal=fatal)
        assert generator.loading.wait(30)
        closing = threading.Thread(target=room.service.close, args=(30.0,))
        closing.start()
        assert room.service._worker._stopping.wait(30)
        generator.go_on.set()
        closing.join(30)
        assert not closing.is_alive()
        assert fatal.errors == []
        assert generator.info is None, "the worker closes what it loaded"

    def test_twice_is_as_good_as_once_and_leaves_no_thread(self, open_room):
        room = open_room()
        room.make()
        assert room.service.close(30)
        assert room.service.close(30)
        assert not [thread for thread in threading.enumerate() if thread.name == "worker" and thread.is_alive()]
        assert room.generator.info is None

    def test_a_room_that_never_started_closes_too(self, open_room):
        assert open_room(start=False).service.close(0)
