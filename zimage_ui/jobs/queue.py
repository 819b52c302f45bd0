"""The waiting line before the GPU: bounded, fair between clients, cancellable, closable.

Clients take turns; within one client it is first come, first served. Whoever was served last goes behind everybody who
waits, newcomers too, so one person's thirty pictures delay another's single one by one picture at most.
It knows jobs and nothing of what becomes of them. Beside the line stands what somebody is still writing: the newest
such request, which takes no place and is nobody's turn.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from zimage_ui.errors import NotReadyError, QueueFullError
from zimage_ui.request import GenerationRequest


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A request on its way, and the one place where "cancel" and "it is made" are decided against each other.

    Attributes:
        job_id: server-made.
        client: who asked; turns are taken between clients.
        request: with its seed drawn.
        submitted_at_s: monotonic seconds.
        cancel: set when the job is to stop; the generator watches it.
    """

    job_id: str
    client: str
    request: GenerationRequest
    submitted_at_s: float = field(default_factory=time.monotonic)
    cancel: threading.Event = field(default_factory=threading.Event)
    _kept: bool = False
    _deciding: threading.Lock = field(default_factory=threading.Lock)

    def request_cancel(self) -> bool:
        """Ask the job to stop; False when its pictures are made already. May be called again."""
        with self._deciding:
            if not self._kept:
                self.cancel.set()
            return not self._kept

    def keep(self) -> bool:
        """Decide that the pictures are kept; False when the job was cancelled before."""
        with self._deciding:
            self._kept = not self.cancel.is_set()
            return self._kept


class JobQueue:
    """A bounded queue of jobs for one consumer; every method may be called from any thread."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lanes: OrderedDict[str, deque[Job]] = OrderedDict()  # one for each waiting client, next turn first
        self._served = ""
        self._length = 0
        self._closed = False
        self._announced: GenerationRequest | None = None
        self._withdrawn = False  # a job that the consumer may have given up something for
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._length

    @property
    def full(self) -> bool:
        """Whether `put` would refuse."""
        return self._length >= self.capacity

    @property
    def closed(self) -> bool:
        """Whether no job will come any more."""
        return self._closed

    @property
    def wanted(self) -> bool:
        """Whether the consumer has better to do than what can wait: a job waits, or the queue is closed."""
        return self._closed or self._length > 0

    def put(self, job: Job) -> None:
        """Let `job` wait.

        Raises:
            QueueFullError: `capacity` jobs are waiting already.
            NotReadyError: the queue is closed.
        """
        with self._changed:
            if self._closed:
                raise NotReadyError("No more jobs are taken: the service is stopping.")
            if self.full:
                raise QueueFullError(f"{self._length} jobs are waiting already, which is all that may.")
            self._lanes.setdefault(job.client, deque()).append(job)
            if self._served in self._lanes:
                self._lanes.move_to_end(self._served)
            self._length += 1
            self._changed.notify()

    def announce(self, request: GenerationRequest) -> None:
        """Say that somebody may soon ask for `request`; only the newest is kept."""
        with self._changed:
            self._announced = request
            self._changed.notify()

    @property
    def announced(self) -> GenerationRequest | None:
        """What was announced last, unless it is done with."""
        return self._announced

    def done_with(self, announced: GenerationRequest) -> None:
        """Drop what was announced; a newer one stays."""
        with self._changed:
            if self._announced is announced:
                self._announced = None

    def take(self) -> Job | None:
        """Wait for the next job and take it out.

        Returns:
            None when the queue is `closed`; and when no job waits, but something is announced, or one was removed.
            What was announced is done with once it is asked for.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.wanted or self._announced is not None or self._withdrawn)
            self._withdrawn = False
            if self._closed or not self._length:
                return None
            client, lane = next(iter(self._lanes.items()))
            job = lane.popleft()
            self._served = client
            self._leave(client)
            if self._announced is not None and self._announced.prompts == job.request.prompts:
                self._announced = None
            return job

    def peek(self) -> Job | None:
        """The job that `take` would answer now, left where it is; None when none waits."""
        with self._changed:
            lane = next(iter(self._lanes.values()), None)
            return lane[0] if lane else None

    def stays_quiet(self, for_s: float = 0.0) -> bool:
        """Whether for `for_s` seconds no job waits and nothing is announced; False when the queue is closed."""
        with self._changed:
            return not self._changed.wait_for(lambda: self.wanted or self._announced is not None, for_s)

    def remove(self, job_id: str) -> bool:
        """Take one waiting job out; False when it does not wait here."""
        with self._changed:
            for client, lane in self._lanes.items():
                for job in lane:
                    if job.job_id == job_id:
                        lane.remove(job)
                        self._leave(client, turn_over=False)
                        self._withdrawn = True
                        self._changed.notify()
                        return True
            return False

    def order(self) -> tuple[str, ...]:
        """The ids of all waiting jobs, in the order in which they would be taken."""
        with self._changed:
            lanes = [iter(tuple(lane)) for lane in self._lanes.values()]
        order: list[str] = []
        while lanes:
            turn = [(lane, job) for lane in lanes if (job := next(lane, None)) is not None]
            order += [job.job_id for _, job in turn]
            lanes = [lane for lane, _ in turn]
        return tuple(order)

    def close(self) -> list[Job]:
        """Take no more jobs and wake whoever waits for one; returns the jobs that nobody will take now."""
        with self._changed:
            self._closed = True
            left = [job for lane in self._lanes.values() for job in lane]
            self._lanes.clear()
            self._length = 0
            self._changed.notify_all()
            return left

    def _leave(self, client: str, *, turn_over: bool = True) -> None:
        """One job of `client` is gone from its lane."""
        self._length -= 1
        if not self._lanes[client]:
            del self._lanes[client]
        elif turn_over:
            self._lanes.move_to_end(client)
