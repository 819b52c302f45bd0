import asyncio
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace

import pytest

from zimage_ui.errors import GenerationError
from zimage_ui.events import (
    JobCancelled,
    JobFailed,
    JobFinished,
    JobQueued,
    PictureReady,
    PictureRef,
    PictureSaved,
    Sampled,
    StageStarted,
    StepDone,
)
from zimage_ui.generator.base import WarmupPhase, WarmupProgress
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.jobs.board import Board, Changes
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.request import GenerationRequest, ImageFormat, Precision, Preview
from zimage_ui.stages import Stage, Timings

REQUEST = GenerationRequest(prompt="a boat", seed=7, num_images_per_prompt=2, num_inference_steps=4)
PREVIEW = Preview(width=2, height=1, pixels=b"\0" * 6)
TIMINGS = Timings(queue_ms=1, encode_ms=1, sample_ms=1, decode_ms=1, save_ms=1, other_ms=0, total_ms=5)
LOADING = WarmupProgress(phase=WarmupPhase.LOADING, progress=0.3, detail="3 of 7 files")


def picture(seed: int, path: str = "") -> PictureRef:
    return PictureRef(
        picture_id=f"id-{seed}", seed=seed, width=64, height=64, image_format=ImageFormat.PNG, size_bytes=9, path=path
    )


def queued(board: Board, job_id: str = "job") -> JobRecord:
    board.publish(JobQueued(job_id=job_id, request=REQUEST, client="ann"))
    return known(board, job_id)


def known(board: Board, job_id: str = "job") -> JobRecord:
    record = board.get(job_id)
    assert record is not None
    return record


def done(board: Board, job_id: str = "job") -> JobRecord:
    queued(board, job_id)
    board.publish(JobFinished(job_id=job_id, timings=TIMINGS))
    return known(board, job_id)


def nothing() -> None:
    pass


def test_a_job_goes_its_way_from_queued_to_done():
    board = Board()
    record = queued(board)
    assert (record.phase, record.request, record.client) == (JobPhase.QUEUED, REQUEST, "ann")
    assert abs(record.submitted_unix_s - time.time()) < 60

    board.publish(StageStarted(job_id="job", stage=Stage.ENCODE, at_s=5.0))
    record = known(board)
    assert (record.phase, record.stage, record.stage_started_at_s) == (JobPhase.RUNNING, Stage.ENCODE, 5.0)

    board.publish(StageStarted(job_id="job", stage=Stage.SAMPLE))
    board.publish(StepDone(job_id="job", step=3, num_steps=4, preview=PREVIEW))
    record = known(board)
    assert (record.step, record.num_steps, record.preview) == (3, 4, PREVIEW)

    board.publish(
        Sampled(
            job_id="job", nfe=4, embedding_cache_hit=True, prompt_tokens=2, truncated_tokens=1, preview_ms=0.5,
            memory_plan="smallest", precision=Precision.INT8,
        )
    )  # fmt: skip
    board.publish(StageStarted(job_id="job", stage=Stage.SAVE))
    record = known(board)
    assert (record.phase, record.stage, record.preview) == (JobPhase.SAVING, Stage.SAVE, None)
    assert (record.nfe, record.embedding_cache_hit, record.prompt_tokens) == (4, True, 2)
    assert (record.truncated_tokens, record.preview_ms, record.memory_plan) == (1, 0.5, "smallest")
    assert record.precision is Precision.INT8

    board.publish(JobFinished(job_id="job", timings=TIMINGS, at_s=9.0))
    record = known(board)
    assert (record.phase, record.timings, record.ended_at_s) == (JobPhase.DONE, TIMINGS, 9.0)


def test_pictures_are_shown_in_the_order_of_their_seeds_and_get_their_path_when_saved():
    board = Board()
    queued(board)
    board.publish(PictureReady(job_id="job", picture=picture(8)))
    board.publish(PictureReady(job_id="job", picture=picture(7)))
    board.publish(PictureSaved(job_id="job", picture=picture(8, "2026/8.png")))
    assert known(board).pictures == (picture(7), picture(8, "2026/8.png"))


@pytest.mark.parametrize(
    "end",
    [
        JobFinished(job_id="job", timings=TIMINGS),
        JobFailed(job_id="job", error=GenerationError("no")),
        JobCancelled(job_id="job"),
    ],
    ids=lambda end: type(end).__name__,
)
def test_an_end_is_final_and_lets_go_of_the_preview(end: JobFinished | JobFailed | JobCancelled):
    board = Board()
    queued(board)
    board.publish(StepDone(job_id="job", step=1, num_steps=4, preview=PREVIEW))
    board.publish(end)
    record = known(board)
    assert record.phase.ended
    assert record.preview is None
    board.publish(StepDone(job_id="job", step=2, num_steps=4, preview=PREVIEW))
    board.publish(JobCancelled(job_id="job"))
    board.publish(JobFinished(job_id="job", timings=TIMINGS))
    assert known(board) is record


def test_a_picture_that_is_saved_after_the_job_failed_still_gets_its_path():
    board = Board()
    queued(board)
    board.publish(PictureReady(job_id="job", picture=picture(7)))
    board.publish(JobFailed(job_id="job", error=GenerationError("the disk is full")))
    board.publish(PictureSaved(job_id="job", picture=picture(7, "7.png")))
    record = known(board)
    assert (record.phase, record.pictures) == (JobPhase.FAILED, (picture(7, "7.png"),))


def test_a_step_without_a_preview_keeps_the_one_before():
    board = Board()
    queued(board)
    board.publish(StepDone(job_id="job", step=1, num_steps=4, preview=PREVIEW))
    board.publish(StepDone(job_id="job", step=2, num_steps=4, preview=None))
    assert known(board).preview is PREVIEW


def test_records_are_frozen_and_each_change_has_a_higher_revision():
    board = Board()
    first = queued(board)
    second = queued(board, "other")
    board.publish(StageStarted(job_id="job", stage=Stage.ENCODE))
    assert first.revision < second.revision < known(board).revision
    with pytest.raises(FrozenInstanceError):
        first.step = 1  # type: ignore[misc]


def test_events_of_unknown_jobs_are_ignored():
    board = Board()
    board.publish(JobCancelled(job_id="nobody"))
    assert board.get("nobody") is None
    assert board.active() == ()


def test_active_jobs_are_those_under_way_and_then_the_queue_in_its_order():
    board = Board()
    for job_id in ("running", "late", "soon"):
        queued(board, job_id)
    board.publish_order(lambda: ("running", "soon", "late"))
    assert [known(board, job_id).position for job_id in ("running", "soon", "late")] == [0, 1, 2]
    board.publish(StageStarted(job_id="running", stage=Stage.ENCODE))
    board.publish_order(lambda: ("soon", "late"))
    assert [(record.job_id, record.position) for record in board.active()] == [
        ("running", None),
        ("soon", 0),
        ("late", 1),
    ]


def test_an_unchanged_order_is_no_change():
    board = Board()
    queued(board)
    board.publish_order(lambda: ("job",))
    before = known(board)
    board.publish_order(lambda: ("job",))
    assert known(board) is before


def test_recent_jobs_come_newest_first_and_the_history_is_bounded():
    board = Board(keep=3)
    for number in range(5):
        done(board, f"job-{number}")
    assert [record.job_id for record in board.recent(2)] == ["job-4", "job-3"]
    assert [record.job_id for record in board.recent(99)] == ["job-4", "job-3", "job-2"]
    assert board.get("job-1") is None
    assert board.ended_counts() == {JobPhase.DONE: 5, JobPhase.FAILED: 0, JobPhase.CANCELLED: 0}


def test_timings_are_those_of_the_last_jobs_that_were_done_oldest_first():
    board = Board()
    done(board, "one")
    queued(board, "failed")
    board.publish(JobFailed(job_id="failed", error=GenerationError("no")))
    done(board, "two")
    done(board, "three")
    assert [record.job_id for record in board.recent_timings(2)] == ["two", "three"]
    assert [record.job_id for record in board.recent_timings(9)] == ["one", "two", "three"]


def test_a_reader_gets_the_newest_state_of_what_changed_and_is_woken_once():
    board = Board()
    queued(board, "old")
    wakes: list[None] = []
    with board.subscribe(lambda: wakes.append(None)) as reader:
        assert reader.changed() == Changes()
        queued(board)
        for step in range(1, 5):
            board.publish(StepDone(job_id="job", step=step, num_steps=4, preview=PREVIEW))
        board.publish(JobCancelled(job_id="old"))
        assert len(wakes) == 1
        assert reader.changed().jobs == (known(board), known(board, "old"))
        assert reader.changed() == Changes()
        board.publish(StageStarted(job_id="job", stage=Stage.DECODE))
        assert len(wakes) == 2


def test_a_reader_hears_of_readiness_and_of_the_model():
    board = Board()
    with board.subscribe(nothing) as reader:
        board.publish_readiness(LOADING)
        assert reader.changed() == Changes(readiness=LOADING)
        model = FakeGenerator().load(lambda progress: None)
        board.publish_model(model)
        assert reader.changed() == Changes(readiness=LOADING)
        assert board.model is model


def test_a_closed_reader_is_woken_no_more():
    board = Board()
    wakes: list[None] = []
    reader = board.subscribe(lambda: wakes.append(None))
    reader.close()
    reader.close()
    queued(board)
    assert wakes == []


def test_a_reader_who_never_reads_costs_no_more_than_the_history():
    board = Board(keep=10)
    with board.subscribe(nothing) as reader:
        for number in range(1000):
            done(board, f"job-{number}")
        assert len(reader._dirty) == 10
        assert [record.job_id for record in reader.changed().jobs] == [f"job-{number}" for number in range(990, 1000)]


def test_a_reader_whose_event_loop_is_closed_is_dropped_and_disturbs_nobody():
    board = Board()
    loop = asyncio.new_event_loop()
    with board.subscribe(lambda: loop.call_soon_threadsafe(nothing)):
        loop.close()
        queued(board)
        assert board._subscriptions == {}


def test_a_wake_may_read_at_once():
    board = Board()
    seen: list[Changes] = []
    reader = board.subscribe(lambda: seen.append(reader.changed()))
    queued(board)
    board.publish(StageStarted(job_id="job", stage=Stage.ENCODE))
    assert [changes.jobs[0].phase for changes in seen] == [JobPhase.QUEUED, JobPhase.RUNNING]


def test_a_future_gives_the_record_of_the_end_whatever_it_is():
    board = Board()
    queued(board)
    future = board.future("job")
    assert not future.done()
    board.publish(JobFailed(job_id="job", error=GenerationError("no")))
    assert future.result(0) is known(board)
    assert board.future("job").result(0) is known(board)


def test_a_waiter_who_gives_up_takes_the_future_from_nobody():
    board = Board()
    queued(board)
    assert not board.future("job").cancel()
    waiting = board.future("job")
    board.publish(JobCancelled(job_id="job"))
    assert waiting.result(0).phase is JobPhase.CANCELLED


def test_there_is_no_future_of_an_unknown_job():
    with pytest.raises(KeyError, match="nobody"):
        Board().future("nobody")


def test_a_disconnected_async_waiter_leaves_the_job_and_the_other_waiter_alone():
    board = Board()
    queued(board)

    async def two_waiters() -> JobRecord:
        leaving, staying = (asyncio.wrap_future(board.future("job")) for _ in range(2))
        leaving.cancel()
        board.publish(JobFinished(job_id="job", timings=TIMINGS))
        return await staying

    assert asyncio.run(two_waiters()).phase is JobPhase.DONE


def test_the_newest_order_stays_when_two_threads_announce_one():
    """The second thread reads the order only after the first one's is on the board."""
    board = Board()
    queued(board)
    reading, may_go_on = threading.Event(), threading.Event()

    def slowly() -> tuple[str, ...]:
        reading.set()
        may_go_on.wait(10)
        return ("job",)

    first = threading.Thread(target=board.publish_order, args=(slowly,))
    first.start()
    assert reading.wait(10)
    second = threading.Thread(target=board.publish_order, args=(tuple,))
    second.start()
    may_go_on.set()
    first.join(10)
    second.join(10)
    assert known(board).position is None


def median_us(call: Callable[[], object], rounds: int = 500) -> float:
    spent: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent) * 1e6


def test_a_step_with_a_large_preview_costs_the_worker_microseconds_and_copies_nothing():
    board = Board()
    queued(board)
    large = Preview(width=256, height=256, pixels=bytes(256 * 256 * 3))
    event = StepDone(job_id="job", step=1, num_steps=4, preview=large)
    with board.subscribe(nothing), board.subscribe(nothing):
        small_us = median_us(lambda: board.publish(replace(event, preview=PREVIEW)))
        large_us = median_us(lambda: board.publish(event))
    assert known(board).preview is large
    assert large_us < 500, f"{large_us:.0f} µs with a large preview, {small_us:.0f} µs with a small one"
