"""The jobs room's front door: what the page and the API use to have pictures made."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from zimage_ui.errors import NotReadyError, QueueFullError, ZImageError
from zimage_ui.events import JobCancelled, JobFailed, JobQueued
from zimage_ui.generator.base import Generator, WarmupPhase, WarmupProgress
from zimage_ui.jobs.board import Board
from zimage_ui.jobs.queue import Job, JobQueue
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.jobs.worker import IDLE_AFTER_S, FatalHook, Worker
from zimage_ui.request import GenerationRequest
from zimage_ui.storage.saver import Saver

logger = logging.getLogger(__name__)

# A cancelled job ends within one sampling step; the slowest step known (1536², CPU) is far below this.
CANCEL_GRACE_S = 10.0
# What the saver gets at the least to write what is waiting, when a running job has used up the time to drain.
MIN_SAVER_DRAIN_S = 5.0
_SLICE_S = 0.1
_STOPPING = ("The service is stopping.", "Ask again when it is back.")
_DEFAULT_RETRY_AFTER_S = 5
_MAX_RETRY_AFTER_S = 600
_TIMINGS_FOR_ESTIMATE = 8


class JobService:
    """Takes requests, makes them one after the other, and knows where each stands.

    The saver is started and closed by whoever made it; `close` only waits for what it still has to write.

    Args:
        generator: used by this service's worker thread only.
        saver: gets every finished picture.
        queue_size: jobs that may wait beside the running one.
        keep: ended jobs that the board remembers.
        on_fatal: called once, on the worker's thread, when the model could not be loaded or the device is lost and so
            no picture will be made any more; the readiness says why by then and every waiting job has failed.
        idle_after_s: how long no job must have come before the worker prepares shapes in the meantime.

    Attributes:
        board: the state of all jobs, of the warm-up and of the model.
    """

    def __init__(
        self,
        generator: Generator,
        saver: Saver,
        *,
        queue_size: int = 32,
        keep: int = 200,
        on_fatal: FatalHook | None = None,
        idle_after_s: float = IDLE_AFTER_S,
    ) -> None:
        self.board = Board(keep)
        self._saver = saver
        self._queue = JobQueue(queue_size)
        self._worker = Worker(
            generator, self._queue, self.board, saver, on_fatal=self._give_up, idle_after_s=idle_after_s
        )
        self._on_fatal = on_fatal
        self._jobs: dict[str, Job] = {}  # those that have not ended
        self._refusal: NotReadyError | None = None
        self._hurried_at_s = 0.0
        # Held while jobs enter or leave the queue, so that the board hears of a job before the worker does.
        self._door = threading.Lock()

    @property
    def queue_length(self) -> int:
        """How many jobs wait; the running one does not."""
        return len(self._queue)

    def start(self) -> None:
        """Start the worker, which begins to load the model; jobs may be submitted at once and wait for it."""
        self._worker.start()

    def submit(self, request: GenerationRequest, client: str = "") -> JobRecord:
        """Let `request` wait for its turn; its seed is drawn here, so that it is known from now on.

        Args:
            request: what to make.
            client: who asks; clients take turns.

        Raises:
            InvalidRequestError: the loaded model does not work so.
            QueueFullError: too many jobs are waiting; says when to try again.
            NotReadyError: the service is stopping, or no picture can be made any more.
        """
        if self.board.model is not None:
            self.board.model.profile.check(request)
        job = Job(job_id=secrets.token_hex(8), client=client, request=request.with_seed())
        with self._door:
            if self._refusal is not None:
                raise NotReadyError(self._refusal.message, self._refusal.hint)
            if self._queue.full:
                raise self._queue_full()
            self._jobs[job.job_id] = job
            self.board.publish(
                JobQueued(job_id=job.job_id, at_s=job.submitted_at_s, request=job.request, client=client)
            )
            self.board.future(job.job_id).add_done_callback(partial(self._forget, job.job_id))
            self._queue.put(job)
        self.board.publish_order(self._queue.order)
        record = self.board.get(job.job_id)
        assert record is not None, "a board keeps more jobs than can end in this instant"
        return record

    def announce(self, request: GenerationRequest) -> None:
        """Say that somebody is writing `request` and may soon submit it: its prompt may be encoded meanwhile.

        Only the newest counts, nothing is told of it, and a picture of it is made no other way than by `submit`.

        Raises:
            InvalidRequestError: the loaded model does not work so.
        """
        if self.board.model is not None:
            self.board.model.profile.check(request)
        self._queue.announce(request)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job: a waiting one at once, a running one within one sampling step or when its decode ends.

        Returns:
            Whether the job is cancelled or about to be; the same answer however often it is asked. False when its
            pictures were made already, when it failed, or when there is no such job.
        """
        with self._door:
            job = self._jobs.get(job_id)
            if job is None:
                record = self.board.get(job_id)
                return record is not None and record.phase is JobPhase.CANCELLED
            if not job.request_cancel():
                return False
            waited = self._queue.remove(job_id)
        if waited:
            self.board.publish(JobCancelled(job_id=job_id))
            self.board.publish_order(self._queue.order)
        return True

    def future(self, job_id: str) -> Future[JobRecord]:
        """A future of the record with which the job ends; see `Board.future`.

        Raises:
            KeyError: no such job, or it ended too long ago.
        """
        return self.board.future(job_id)

    def retry_after_s(self) -> int:
        """In how many seconds a place in the queue should be free, from how long the last jobs took; at least 1."""
        made = [record.timings for record in self.board.recent_timings(_TIMINGS_FOR_ESTIMATE) if record.timings]
        if not made:
            return _DEFAULT_RETRY_AFTER_S
        job_s = sum(timings.encode_ms + timings.sample_ms + timings.decode_ms for timings in made) / len(made) / 1e3
        return min(_MAX_RETRY_AFTER_S, max(1, math.ceil(job_s - self._running_for_s())))

    def stop(self) -> None:
        """Refuse new jobs, fail waiting ones and end the warm-up; the running job goes on. May be called again."""
        self._worker.stop_warming()
        self._shut(NotReadyError(*_STOPPING))
        if self.board.model is None:  # whoever waits for it to be loaded waits in vain
            error = NotReadyError(*_STOPPING)
            self.board.publish_readiness(
                WarmupProgress(phase=WarmupPhase.FAILED, progress=0.0, detail=error.message, error=str(error))
            )

    def dismiss(self) -> None:
        """Answer every future now, with an error in the record as it stands: nobody is kept waiting for its job."""
        self.board.dismiss(
            NotReadyError(
                "The service is stopping; the picture is still being finished.", "Look for it when the service is back."
            )
        )

    def hurry(self) -> None:
        """Cancel the running job and let `close` wait only as long as a cancelled job and its saving take."""
        self._hurried_at_s = self._hurried_at_s or time.monotonic()
        for job in list(self._jobs.values()):
            job.request_cancel()

    def close(self, drain_s: float) -> bool:
        """Stop: refuse new jobs, fail waiting ones, let the running one finish, wait until all pictures are saved.

        Args:
            drain_s: how long all of that may take, unless somebody calls `hurry`; a job still running then is
                cancelled, and the saver gets `MIN_SAVER_DRAIN_S` more if need be.

        Returns:
            Whether everything ended in time; False means that the worker hangs or pictures are not saved yet.
        """
        deadline_s = time.monotonic() + drain_s
        self.stop()
        ended = self._wait(self._worker.join, drain_s, CANCEL_GRACE_S)
        if not ended and not self._hurried_at_s:
            self.hurry()
            ended = self._wait(self._worker.join, CANCEL_GRACE_S, CANCEL_GRACE_S)
        left_s = max(MIN_SAVER_DRAIN_S, deadline_s - time.monotonic())
        return self._wait(self._saver.drain, left_s, MIN_SAVER_DRAIN_S) and ended

    def _wait(self, wait: Callable[[float], bool], timeout_s: float, hurried_s: float) -> bool:
        """`wait` for `timeout_s`, or for `hurried_s` in a hurry, which may begin meanwhile: hence in slices."""
        started_at_s = time.monotonic()
        while True:
            until_s = started_at_s + timeout_s
            if self._hurried_at_s:
                until_s = min(until_s, max(started_at_s, self._hurried_at_s) + hurried_s)
            left_s = until_s - time.monotonic()
            if wait(max(0.0, min(left_s, _SLICE_S))):
                return True
            if left_s <= 0:
                return False

    def _give_up(self, error: ZImageError) -> None:
        self._shut(NotReadyError(f"No picture can be made: {error.message}", error.hint))
        if self._on_fatal is not None:
            self._on_fatal(error)

    def _shut(self, refusal: NotReadyError) -> None:
        """Let nobody in any more, and tell those who wait."""
        with self._door:
            self._refusal = self._refusal or refusal
            left = self._queue.close()
        for job in left:
            self.board.publish(JobFailed(job_id=job.job_id, error=NotReadyError(refusal.message, refusal.hint)))

    def _forget(self, job_id: str, answered: Future[JobRecord]) -> None:
        if answered.result().phase.ended:  # one that was dismissed goes on
            self._jobs.pop(job_id, None)

    def _queue_full(self) -> QueueFullError:
        retry_after_s = self.retry_after_s()
        return QueueFullError(
            f"{len(self._queue)} jobs are waiting already, which is all that may.",
            f"Try again in about {retry_after_s} s.",
            retry_after_s=retry_after_s,
        )

    def _running_for_s(self) -> float:
        """Since when the job on the device is running, in seconds; 0 when there is none."""
        for record in self.board.active():
            if record.phase is JobPhase.RUNNING and record.stage_started_at_s is not None:
                return time.monotonic() - record.stage_started_at_s
        return 0.0
