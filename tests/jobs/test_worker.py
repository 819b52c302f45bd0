import gc
import logging
import statistics
import threading
import weakref
from dataclasses import replace

import pytest

from zimage_ui.errors import DeviceMemoryError, GenerationError, OutputFolderError, StorageError
from zimage_ui.generator.base import SILENT, GenerationListener, GenerationResult, WarmupPhase, WarmupProgress
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import GenerationRequest, ImageFormat, Precision
from zimage_ui.stages import Stage, Timings


def test_one_thread_owns_the_generator(open_room):
    class Owned(FakeGenerator):
        """Notes which thread calls it."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.callers: list[str] = []

        def load(self, progress):
            self.callers.append(threading.current_thread().name)
            return super().load(progress)

        def warmup(self, progress):
            self.callers.append(threading.current_thread().name)
            super().warmup(progress)

        def generate(self, request, listener=SILENT, cancel=None):
            self.callers.append(threading.current_thread().name)
            return super().generate(request, listener, cancel)

        def close(self):
            self.callers.append(threading.current_thread().name)
            super().close()

    generator = Owned()
    room = open_room(generator)
    room.make()
    assert room.service.close(30)
    assert generator.callers == ["worker"] * 4


class TestWarmup:
    def progress_of(self, open_room, script: FakeScript, check_error: StorageError | None = None):
        """Everything that the board was told until it was ready or failed."""
        room = open_room(FakeGenerator(script), start=False)
        room.saver.check_error = check_error
        told: list[WarmupProgress] = []
        over = threading.Event()
        publish = room.service.board.publish_readiness

        def listen(progress: WarmupProgress) -> None:
            publish(progress)
            told.append(progress)
            if progress.phase in (WarmupPhase.READY, WarmupPhase.FAILED):
                over.set()

        room.service.board.publish_readiness = listen
        assert room.service.board.readiness == WarmupProgress(phase=WarmupPhase.STARTING, progress=0.0)
        room.service.start()
        assert over.wait(30)
        return told

    def test_it_goes_from_loading_to_ready_and_never_back(self, open_room):
        told = self.progress_of(open_room, FakeScript())
        phases = list(dict.fromkeys(progress.phase for progress in told))
        assert phases == [WarmupPhase.LOADING, WarmupPhase.WARMING, WarmupPhase.READY]
        values = [progress.progress for progress in told]
        assert values == sorted(values)
        assert 0 < values[0] < values[-1] == 1.0
        assert told[0].detail == "fake weights 1 of 4"
        assert told[-1].detail.startswith("ready after ")

    def test_it_is_ready_only_after_a_picture_could_be_saved(self, open_room):
        told = self.progress_of(open_room, FakeScript(), OutputFolderError("The disk is full.", "Make room."))
        assert told[-2].detail == "saving a test picture"
        assert told[-1].phase is WarmupPhase.FAILED
        assert told[-1].error == "The disk is full. Make room."
        assert told[-1].progress == told[-2].progress < 1

    def test_the_model_is_on_the_board_before_it_is_ready(self, open_room):
        room = open_room()
        room.wait_until(lambda: room.service.board.model is not None)
        room.wait_until(lambda: room.service.board.readiness.phase is WarmupPhase.READY)
        assert room.service.board.model is room.generator.info

    def test_anything_unexpected_is_a_failure_with_its_name(self, open_room, caplog):
        class Odd(FakeGenerator):
            def warmup(self, progress):
                raise ZeroDivisionError("by nothing")

        with caplog.at_level(logging.ERROR):
            room = open_room(Odd())
            room.wait_until(lambda: room.service.board.readiness.phase is WarmupPhase.FAILED)
        assert "ZeroDivisionError: by nothing" in room.service.board.readiness.error
        assert "Traceback" in caplog.text


class TestTheAccount:
    def test_the_parts_come_to_the_total_and_other_is_under_one_percent(self, open_room):
        script = FakeScript(encode_s=0.005, step_s=0.005, decode_s=0.005)
        room = open_room(FakeGenerator(script))
        jobs = [room.submit(num_inference_steps=20, num_images_per_prompt=count) for count in (1, 3, 1, 3, 1)]
        others: list[float] = []
        for job_id in jobs:
            record = room.end(job_id)
            timings = record.timings
            assert timings is not None
            assert record.ended_at_s is not None
            *parts, total = (getattr(timings, name) for name in Timings.__slots__)
            assert sum(parts) == pytest.approx(total)
            lasted_ms = (record.ended_at_s - record.submitted_at_s) * 1e3
            assert lasted_ms <= total < 1.5 * lasted_ms, "no time is counted twice"
            others.append(timings.other_ms / timings.total_ms)
            assert timings.sample_ms >= 100
            assert timings.encode_ms >= 0
            assert timings.decode_ms >= 5
            assert timings.save_ms > 0
        # The median: on a busy machine the worker may lose the processor just between two readings of the clock.
        assert statistics.median(others) < 0.01

    def test_the_queue_is_the_wait_from_submission_to_the_start_of_encode(self, room):
        room.hold()
        first, second = room.submit(), room.submit()
        room.let_go()
        begun, waited = room.end(first).timings, room.end(second).timings
        assert begun is not None
        assert waited is not None
        engine_ms = begun.encode_ms + begun.sample_ms + begun.decode_ms
        assert waited.queue_ms > begun.queue_ms
        assert (
            begun.queue_ms + engine_ms
            <= waited.queue_ms + (room.record(second).submitted_at_s - room.record(first).submitted_at_s) * 1e3
        )

    def test_saving_lasts_until_the_last_picture_and_the_worker_does_not_wait_for_it(self, room):
        room.saver.open.clear()
        first = room.submit(num_images_per_prompt=2)
        second = room.submit()
        room.wait_for_phase(second, JobPhase.SAVING)
        assert room.record(first).phase is JobPhase.SAVING
        began_at_s = room.record(first).stage_started_at_s
        room.saver.open.set()
        record = room.end(first)
        assert began_at_s is not None
        assert record.ended_at_s is not None
        assert record.timings is not None
        assert record.timings.save_ms == pytest.approx((record.ended_at_s - began_at_s) * 1e3)
        assert record.ended_at_s > room.record(second).stage_started_at_s


def test_every_picture_carries_how_it_was_made(room):
    record = room.make("一只猫", seed=5, num_images_per_prompt=2, image_format="webp")
    first, second = (order.metadata for order in room.saver.orders)
    assert [order.picture_id for order in room.saver.orders] == [first.picture_id, second.picture_id]
    assert first.picture_id < second.picture_id
    assert [metadata.request.seed for metadata in (first, second)] == [5, 6]
    assert [metadata.index for metadata in (first, second)] == [0, 1]
    assert first.request.num_images_per_prompt == 1
    assert first.request.prompt == "一只猫"
    assert first.request.image_format is ImageFormat.WEBP
    assert first.created_at.tzinfo is not None
    assert (first.model_name, first.model_trained, first.nfe) == ("fake", False, 2)
    assert first.memory_plan == record.memory_plan == "none"
    assert first.precision is record.precision is Precision.EXACT
    assert first.model_fingerprint == room.generator.info.fingerprint
    assert set(first.timings_ms) == {"queue", "encode", "sample", "decode"}
    assert first.timings_ms["sample"] == pytest.approx(record.timings.sample_ms, abs=1e-3)
    assert [picture.picture_id for picture in record.pictures] == [first.picture_id, second.picture_id]


def test_what_waits_for_its_saving_holds_no_pixels_but_its_own(room):
    """A picture that the disk refuses is kept for long, and with it the callbacks of its job."""
    room.make(num_images_per_prompt=2)
    for order in room.saver.orders:
        assert len(order.image.pixels) == 64 * 64 * 3
        assert order.on_saved.__self__._made.result.images == ()
        assert order.on_saved.__self__._images == ()


class TestFailures:
    @pytest.mark.parametrize("stage", [Stage.ENCODE, Stage.SAMPLE, Stage.DECODE])
    def test_a_job_that_fails_says_why_and_where_and_the_next_one_works(self, open_room, stage: Stage):
        room = open_room(FakeGenerator(FakeScript(fail_at=stage, failures=1)))
        record = room.make()
        assert (record.phase, record.stage, type(record.error)) == (JobPhase.FAILED, stage, GenerationError)
        assert room.make().phase is JobPhase.DONE

    def test_out_of_memory_is_told_and_the_next_one_works(self, open_room):
        """Fault 23, as far as it reaches this room."""
        room = open_room(FakeGenerator(FakeScript(out_of_memory_at=Stage.DECODE, failures=1)))
        assert isinstance(room.make().error, DeviceMemoryError)
        assert room.make().phase is JobPhase.DONE

    def test_the_unexpected_is_mapped_logged_and_survived(self, open_room, caplog):
        class Odd(FakeGenerator):
            broken = True

            def generate(self, request, listener=SILENT, cancel=None):
                if self.broken:
                    raise KeyError("transformer.layers.7")
                return super().generate(request, listener, cancel)

        generator = Odd()
        room = open_room(generator)
        with caplog.at_level(logging.ERROR):
            record = room.make()
        assert type(record.error) is GenerationError
        assert "KeyError: 'transformer.layers.7'" in record.error.message
        assert "Traceback" in caplog.text
        generator.broken = False
        assert room.make().phase is JobPhase.DONE

    def test_a_kept_error_keeps_nothing_else_in_memory(self, open_room, caplog):
        """Its traceback would hold the frames, and they the latents, as long as the board remembers the job."""

        class Latents:
            pass

        class Heavy(FakeGenerator):
            latents: weakref.ref[Latents] | None = None

            def generate(
                self,
                request: GenerationRequest,
                listener: GenerationListener = SILENT,
                cancel: threading.Event | None = None,
            ) -> GenerationResult:
                held = Latents()
                self.latents = weakref.ref(held)
                try:
                    raise MemoryError("no memory left")
                except MemoryError as error:
                    raise DeviceMemoryError("Out of memory.") from error

        generator = Heavy()
        room = open_room(generator)
        record = room.make()
        gc.collect()
        assert record.error is not None
        assert generator.latents is not None
        assert generator.latents() is None
        assert record.error.__traceback__ is None


def test_a_generator_that_lost_its_model_is_a_failure_and_no_cancellation(open_room):
    class Forgetful(FakeGenerator):
        def generate(self, request, listener, cancel=None):
            result = super().generate(request, listener, cancel)
            self.close()
            return result

    record = open_room(Forgetful()).make()
    assert record.phase is JobPhase.FAILED
    assert "who made pictures has a model" in record.error.message


class TestFailedSaves:
    def test_the_pictures_can_still_be_seen_and_the_error_says_which_failed(self, room):
        """Fault 32, as far as it reaches this room."""
        room.saver.failures[8] = StorageError("The disk is full (0 bytes free).", "Free some space.")
        record = room.make(seed=7, num_images_per_prompt=3)
        assert record.phase is JobPhase.FAILED
        assert [(picture.seed, bool(picture.path)) for picture in record.pictures] == [
            (7, True),
            (8, False),
            (9, True),
        ]
        assert str(record.error) == (
            "All 3 pictures were made and can be seen, but 1 of them could not be saved: "
            "The disk is full (0 bytes free). Free some space."
        )
        assert record.timings is None

    def test_a_single_picture_too(self, room):
        room.saver.failures[7] = StorageError("The disk is full.", "Free some space.")
        record = room.make(seed=7)
        assert "The picture was made and can be seen, but it could not be saved" in str(record.error)
        assert len(record.pictures) == 1
        assert room.make(seed=8).phase is JobPhase.DONE

    def test_a_picture_that_is_saved_after_all_gets_its_path(self, room):
        room.saver.failures[7] = StorageError("The disk is full.", "Free some space.")
        record = room.make(seed=7, num_images_per_prompt=2)
        (refused, _), (order, _) = record.pictures, room.saver.orders
        assert refused.path == ""
        order.on_saved(replace(refused, path="2026-11-21/x.png"))
        later = room.record(record.job_id)
        assert [picture.path != "" for picture in later.pictures] == [True, True]
        assert (later.phase, later.error, later.ended_at_s) == (JobPhase.FAILED, record.error, record.ended_at_s)

    def test_a_saver_that_takes_no_more_fails_the_job_and_not_the_worker(self, room):
        room.saver.refusal = StorageError("The saver is closed.")
        record = room.make(num_images_per_prompt=2)
        assert record.phase is JobPhase.FAILED
        assert "2 of them" in str(record.error)
        assert "can be seen," not in str(record.error)
        assert "2 of them cannot be seen and are lost" in str(record.error)
        room.saver.refusal = None
        assert room.make().phase is JobPhase.DONE
