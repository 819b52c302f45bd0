"""The one thread that owns the GPU: loads the model, warms it up, then takes jobs until the queue is closed.

While no job waits it prepares further shapes, a short piece at a time; a job that comes waits for one at the most.
While one does, its prompt is encoded beside the steps of the present job, where the generator gains by that; and what
somebody is still writing, whenever no job would wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zimage_ui.errors import DeviceLostError, GenerationError, JobCancelledError, ZImageError
from zimage_ui.events import Event, JobCancelled, JobFailed, Sampled, StageStarted, StepDone
from zimage_ui.generator.base import GenerationListener, GenerationResult, Generator
from zimage_ui.jobs.board import Board
from zimage_ui.jobs.queue import Job, JobQueue
from zimage_ui.jobs.readiness import LOADED_AT, WARMED_AT, ReadinessReporter
from zimage_ui.jobs.saving import JobSaving, MadeJob
from zimage_ui.request import Preview
from zimage_ui.stages import Stage
from zimage_ui.storage.saver import Saver

logger = logging.getLogger(__name__)

FatalHook = Callable[[ZImageError], None]

# Whoever has just got a picture often asks for the next one at once: that long nothing is begun that it would wait for.
IDLE_AFTER_S = 0.5


class Worker:
    """Runs one generator on one thread of its own.

    A job that fails leaves the worker alive. A model that cannot be loaded and a device that is lost end it: the
    readiness says FAILED, and `on_fatal` is called once, on this thread, with the reason.
    """

    def __init__(
        self,
        generator: Generator,
        queue: JobQueue,
        board: Board,
        saver: Saver,
        *,
        on_fatal: FatalHook,
        idle_after_s: float = IDLE_AFTER_S,
    ) -> None:
        self._generator = generator
        self._queue = queue
        self._board = board
        self._saver = saver
        self._on_fatal = on_fatal
        self._idle_after_s = idle_after_s
        self._stopping = threading.Event()
        # A daemon: a call into a driver that never returns must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="worker", daemon=True)

    def start(self) -> None:
        """Start the thread, which begins to load at once."""
        self._thread.start()

    def stop_warming(self) -> None:
        """End the warm-up at its next report of progress; a worker that is ready does not care."""
        self._stopping.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end (its queue has to be closed); False when it still runs."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        readiness = ReadinessReporter(self._board.publish_readiness, self._stopping)
        error = self._prepare(readiness) or self._work()
        if error is not None:
            logger.error("no more pictures can be made: %s", error)
            readiness.failed(error)
            self._on_fatal(error)
        if not isinstance(error, DeviceLostError):  # a lost device would only raise again
            self._release()

    def _prepare(self, readiness: ReadinessReporter) -> ZImageError | None:
        """Load, make one full pass, save one picture; returns why that failed."""
        try:
            with in_one_tree():
                self._board.publish_model(self._generator.load(readiness.part(0.0, LOADED_AT)))
                self._generator.warmup(readiness.part(LOADED_AT, WARMED_AT))
                readiness.saving()
                self._saver.self_check()
                self._publish_shapes()
        except JobCancelledError:
            return None  # the service is stopping: the closed queue ends the worker
        except ZImageError as error:
            return _without_frames(error)
        readiness.ready()
        return None

    def _work(self) -> ZImageError | None:
        """Take jobs until the queue is closed; returns the error when the device is lost."""
        while True:
            lost = self._use_idle_time()
            if lost is not None:
                return lost
            job = self._queue.take()
            if job is None:
                if self._queue.closed:
                    return None
                continue
            self._board.publish_order(self._queue.order)
            error = self._make(job)
            if isinstance(error, DeviceLostError):
                return error
            self._publish_shapes()

    def _use_idle_time(self) -> DeviceLostError | None:
        """Prepare, and encode what is announced, until a job waits, the queue is closed or nothing is left to do.

        Returns:
            The error if the device is lost.
        """
        try:
            with in_one_tree():
                if not self._stays_idle():
                    return None
                while not self._somebody_waits() and self._generator.prepare_next(
                    self._board.publish_shapes, self._somebody_waits
                ):
                    self._encode_announced()
        except DeviceLostError as error:
            _without_frames(error)
            return error
        except ZImageError as error:  # only pictures to come are slower for it
            logger.warning("nothing more is prepared for now: %s", error)
        self._publish_shapes()
        return None

    def _stays_idle(self) -> bool:
        """Encode what is announced meanwhile; False as soon as a job waits or the queue is closed."""
        until_s = time.monotonic() + self._idle_after_s
        while not self._somebody_waits():
            self._encode_announced()
            if self._queue.stays_quiet(max(0.0, until_s - time.monotonic())):
                return True
        return False

    def _somebody_waits(self) -> bool:
        """A job, or whoever closed the queue."""
        return self._queue.wanted

    def _publish_shapes(self) -> None:
        self._board.publish_shapes(self._generator.shapes())

    def _make(self, job: Job) -> ZImageError | None:
        """Make one job's pictures and hand them over for saving; returns why that failed."""
        listener = _JobListener(job.job_id, self._board.publish, meanwhile=self._encode_next)
        try:
            with in_one_tree():
                result = self._generator.generate(job.request, listener, job.cancel)
                self._hand_over(job, result, begun_at_s=listener.begun_at_s, made_at_s=time.monotonic())
        except JobCancelledError:
            self._board.publish(JobCancelled(job_id=job.job_id))
        except ZImageError as error:
            logger.error("job %s failed: %s", job.job_id, error)
            self._board.publish(JobFailed(job_id=job.job_id, error=_without_frames(error)))
            return error
        return None

    def _encode_next(self) -> None:
        """A step is computed: use the wait for whoever comes next, as things stand now, or for who is writing."""
        waiting, announced = self._queue.peek(), self._queue.announced
        if waiting is not None and self._generator.encode_ahead(waiting.request):
            return
        if announced is not None:  # and stays so: nothing may be left to do, or it has to wait for the job's end
            self._generator.encode_ahead(announced)

    def _encode_announced(self) -> None:
        """Nothing is computed: encode what somebody is writing, unless a job waits."""
        while (announced := self._queue.announced) is not None and not self._somebody_waits():
            is_left = False
            try:
                is_left = self._generator.encode_ahead(announced, wait=True)
            finally:
                if not is_left:
                    self._queue.done_with(announced)

    def _hand_over(self, job: Job, result: GenerationResult, *, begun_at_s: float, made_at_s: float) -> None:
        model = self._generator.info
        assert model is not None, "who made pictures has a model"
        if not job.keep():
            raise JobCancelledError("The job was cancelled.")
        self._board.publish(
            Sampled(
                job_id=job.job_id,
                nfe=result.nfe,
                embedding_cache_hit=result.embedding_cache_hit,
                prompt_tokens=result.prompt_tokens,
                truncated_tokens=result.truncated_tokens,
                preview_ms=result.preview_ms,
                memory_plan=result.memory_plan,
                shape_warm=result.shape_warm,
                precision=result.precision,
                encoded_ahead_ms=result.encoded_ahead_ms,
            )
        )
        self._board.publish(StageStarted(job_id=job.job_id, stage=Stage.SAVE, at_s=made_at_s))
        made = MadeJob(job=job, result=result, model=model, begun_at_s=begun_at_s, made_at_s=made_at_s)
        JobSaving(made, self._board.publish).submit_to(self._saver)

    def _release(self) -> None:
        try:
            with in_one_tree():
                self._generator.close()
        except ZImageError as error:
            logger.warning("the generator could not be closed: %s", error)


class _JobListener(GenerationListener):
    """Publishes what the generator says about one job; `meanwhile` is called while another step is computed."""

    def __init__(self, job_id: str, publish: Callable[[Event], None], meanwhile: Callable[[], None]) -> None:
        self._job_id = job_id
        self._publish = publish
        self._meanwhile = meanwhile
        self.begun_at_s = 0.0

    def stage_started(self, stage: Stage) -> None:
        now_s = time.monotonic()
        self.begun_at_s = self.begun_at_s or now_s
        self._publish(StageStarted(job_id=self._job_id, stage=stage, at_s=now_s))

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        self._publish(StepDone(job_id=self._job_id, step=step, num_steps=num_steps, preview=preview))
        if step < num_steps:
            self._meanwhile()


@contextmanager
def in_one_tree() -> Iterator[None]:
    """Map whatever a generator or saver should not have raised to a `GenerationError`; the log gets all of it."""
    try:
        yield
    except ZImageError:
        raise
    except Exception as error:
        logger.exception("unexpected %s", type(error).__name__)
        raise GenerationError(
            f"Something unexpected went wrong: {type(error).__name__}: {error}",
            "The log has the details.",
        ) from error


def _without_frames(error: ZImageError) -> ZImageError:
    """The error without its traceback, whose frames would keep latents and pixels in memory as long as it is kept."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
