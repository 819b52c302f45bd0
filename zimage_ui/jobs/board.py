"""The state of all jobs and of the model, which outlives any page: events come in, frozen records go out.

Publishing folds one event into one record and wakes subscribers; nothing is encoded or copied, so the thread that owns
the GPU loses microseconds. Readers ask for what changed since they last asked and get the newest state only: a slow one
misses states in between and costs nothing. The history of ended jobs is bounded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import islice
from types import TracebackType
from typing import Any

from zimage_ui.errors import ZImageError
from zimage_ui.events import Event, JobQueued
from zimage_ui.generator.base import ModelInfo, ShapeStatus, WarmupPhase, WarmupProgress
from zimage_ui.jobs.records import JobPhase, JobRecord, changed, changes_of, first_record

logger = logging.getLogger(__name__)

Wake = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changed since the reader last asked: the newest state of each changed job, and of the readiness.

    Attributes:
        jobs: in the order of their changes.
        readiness: None when neither it nor the model nor the shapes changed.
    """

    jobs: tuple[JobRecord, ...] = ()
    readiness: WarmupProgress | None = None


class Subscription:
    """One reader of a board; made by `Board.subscribe`, ended by `close` or by leaving its `with` block."""

    def __init__(self, board: Board, wake: Wake) -> None:
        self._board = board
        self._wake = wake
        # Both are guarded by the board's lock.
        self._dirty: dict[str, None] = {}
        self._readiness_changed = False

    def changed(self) -> Changes:
        """What changed since the last call (or since subscribing); empty when nothing did."""
        return self._board._collect(self)

    def close(self) -> None:
        """Hear no more; may be called again."""
        self._board._unsubscribe(self)

    def __enter__(self) -> Subscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Board:
    """All active jobs, the `keep` jobs that ended last, the readiness and the model; safe from any thread."""

    def __init__(self, keep: int = 200) -> None:
        self._keep = keep
        self._active: dict[str, JobRecord] = {}
        self._ended: OrderedDict[str, JobRecord] = OrderedDict()
        self._ended_counts: Counter[JobPhase] = Counter()
        self._futures: dict[str, Future[JobRecord]] = {}
        self._subscriptions: dict[Subscription, None] = {}
        self._readiness = WarmupProgress(phase=WarmupPhase.STARTING, progress=0.0)
        self._model: ModelInfo | None = None
        self._shapes: tuple[ShapeStatus, ...] = ()
        self._revision = 0
        self._lock = threading.Lock()

    # What comes in

    def publish(self, event: Event) -> None:
        """Fold one event in; events of jobs that are not on the board (any more) are ignored."""
        with self._lock:
            record = self._fold(event)
            if record is None:
                return
            future = self._place(record)
            wakes = self._mark(record.job_id)
        self._tell(wakes)
        if future is not None:
            future.set_result(record)

    def publish_order(self, read_order: Callable[[], tuple[str, ...]]) -> None:
        """Note the queue's order, read by `read_order` here so that of two concurrent calls the newer order stays."""
        wakes: dict[Subscription, None] = {}
        with self._lock:
            positions = {job_id: position for position, job_id in enumerate(read_order())}
            for job_id, record in list(self._active.items()):
                if record.position != positions.get(job_id):
                    self._place(self._changed(record, {"position": positions.get(job_id)}))
                    wakes.update(dict.fromkeys(self._mark(job_id)))
        self._tell(list(wakes))

    def publish_readiness(self, readiness: WarmupProgress) -> None:
        """Note how far the warm-up is."""
        with self._lock:
            self._readiness = readiness
            wakes = self._mark_readiness()
        self._tell(wakes)

    def publish_model(self, model: ModelInfo) -> None:
        """Note what was loaded."""
        with self._lock:
            self._model = model
            wakes = self._mark_readiness()
        self._tell(wakes)

    def publish_shapes(self, shapes: tuple[ShapeStatus, ...]) -> None:
        """Note how the shapes stand that are prepared or are to be."""
        with self._lock:
            if shapes == self._shapes:
                return
            self._shapes = shapes
            wakes = self._mark_readiness()
        self._tell(wakes)

    # What goes out

    @property
    def readiness(self) -> WarmupProgress:
        """How far the warm-up is."""
        return self._readiness

    @property
    def model(self) -> ModelInfo | None:
        """What is loaded; None before."""
        return self._model

    @property
    def shapes(self) -> tuple[ShapeStatus, ...]:
        """How the shapes stand that are prepared or are to be; empty where nothing is prepared."""
        return self._shapes

    def get(self, job_id: str) -> JobRecord | None:
        """The job as it stands; None when it was never here or ended too long ago."""
        with self._lock:
            return self._active.get(job_id) or self._ended.get(job_id)

    def active(self) -> tuple[JobRecord, ...]:
        """Jobs that have not ended: those under way in the order of their submission, then the queue in its order."""
        with self._lock:
            records = list(self._active.values())
        waiting = [record for record in records if record.position is not None]
        under_way = [record for record in records if record.position is None]
        return (*under_way, *sorted(waiting, key=lambda record: record.position or 0))

    def recent(self, count: int) -> tuple[JobRecord, ...]:
        """The `count` jobs that ended last, newest first."""
        with self._lock:
            return tuple(islice(reversed(self._ended.values()), count))

    def recent_timings(self, count: int) -> tuple[JobRecord, ...]:
        """The `count` jobs that were done last (so each has timings), oldest first, as a chart wants them."""
        with self._lock:
            done = (record for record in reversed(self._ended.values()) if record.timings is not None)
            return tuple(islice(done, count))[::-1]

    def ended_counts(self) -> Mapping[JobPhase, int]:
        """How many jobs were done, failed and were cancelled since the start."""
        with self._lock:
            return {phase: self._ended_counts[phase] for phase in JobPhase if phase.ended}

    def future(self, job_id: str) -> Future[JobRecord]:
        """A future of the record with which the job ends; failure and cancellation are records too, not exceptions.

        It cannot be cancelled itself: a client that goes away does not stop the job that others may wait for.
        Its callbacks run on the thread that ends the job and have to be quick. After `dismiss` its record has an error
        and no end.

        Raises:
            KeyError: no such job is on the board.
        """
        with self._lock:
            ended = self._ended.get(job_id)
            if ended is None and job_id not in self._active:
                raise KeyError(job_id)
            if job_id in self._futures:
                return self._futures[job_id]
            future: Future[JobRecord] = Future()
            future.set_running_or_notify_cancel()
            if ended is None:
                self._futures[job_id] = future
        if ended is not None:
            future.set_result(ended)
        return future

    def dismiss(self, error: ZImageError) -> None:
        """Resolve the futures of all jobs that have not ended: with the record as it stands, and `error` in it."""
        with self._lock:
            waiting = [(future, self._active[job_id]) for job_id, future in self._futures.items()]
            self._futures = {}
        for future, record in waiting:
            future.set_result(replace(record, error=error))

    def subscribe(self, wake: Wake) -> Subscription:
        """Hear of changes: `wake` is called once when there are some, and again only after they were collected.

        It runs on the publishing thread, so it may only set an event or call `loop.call_soon_threadsafe`.
        """
        subscription = Subscription(self, wake)
        with self._lock:
            self._subscriptions[subscription] = None
        return subscription

    # Under the lock

    def _fold(self, event: Event) -> JobRecord | None:
        if isinstance(event, JobQueued):
            self._revision += 1
            return changed(first_record(event, time.time()), {}, self._revision)
        record = self._active.get(event.job_id) or self._ended.get(event.job_id)
        changes = changes_of(record, event) if record is not None else {}
        return self._changed(record, changes) if record is not None and changes else None

    def _changed(self, record: JobRecord, changes: dict[str, Any]) -> JobRecord:
        self._revision += 1
        return changed(record, changes, self._revision)

    def _place(self, record: JobRecord) -> Future[JobRecord] | None:
        """Put the record where it belongs; returns the future to resolve when it has just ended."""
        job_id = record.job_id
        if not record.phase.ended:
            self._active[job_id] = record
            return None
        if job_id not in self._ended:
            self._ended_counts[record.phase] += 1
        self._active.pop(job_id, None)
        self._ended[job_id] = record
        while len(self._ended) > self._keep:
            self._forget(self._ended.popitem(last=False)[0])
        return self._futures.pop(job_id, None)

    def _forget(self, job_id: str) -> None:
        for subscription in self._subscriptions:
            subscription._dirty.pop(job_id, None)

    def _mark(self, job_id: str) -> list[Subscription]:
        """Note the change for every reader; returns those who had nothing to read before."""
        asleep = [reader for reader in self._subscriptions if not self._has_news(reader)]
        for reader in self._subscriptions:
            reader._dirty.pop(job_id, None)
            reader._dirty[job_id] = None
        return asleep

    def _mark_readiness(self) -> list[Subscription]:
        asleep = [reader for reader in self._subscriptions if not self._has_news(reader)]
        for reader in self._subscriptions:
            reader._readiness_changed = True
        return asleep

    @staticmethod
    def _has_news(reader: Subscription) -> bool:
        return bool(reader._dirty) or reader._readiness_changed

    # For subscriptions

    def _collect(self, reader: Subscription) -> Changes:
        with self._lock:
            found = (self._active.get(job_id) or self._ended.get(job_id) for job_id in reader._dirty)
            changes = Changes(
                jobs=tuple(record for record in found if record is not None),
                readiness=self._readiness if reader._readiness_changed else None,
            )
            reader._dirty = {}
            reader._readiness_changed = False
            return changes

    def _unsubscribe(self, reader: Subscription) -> None:
        with self._lock:
            self._subscriptions.pop(reader, None)

    def _tell(self, readers: list[Subscription]) -> None:
        for reader in readers:
            try:
                reader._wake()
            except RuntimeError:  # what an event loop that has been closed raises: nobody is there any more
                logger.debug("a subscriber could not be woken and is dropped", exc_info=True)
                self._unsubscribe(reader)
