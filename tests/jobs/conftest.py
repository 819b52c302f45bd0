"""What the tests of the jobs room share: a saver in memory that a test can hold and break, and services that end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import pytest

from zimage_ui.errors import ZImageError
from zimage_ui.events import PictureRef
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.jobs.service import JobService
from zimage_ui.request import GenerationRequest
from zimage_ui.storage.saver import SaveOrder


@dataclass
class MemorySaver:
    """Honours the saver's seam and keeps the orders; saves on one thread of its own.

    Attributes:
        open: while it is cleared, nothing is saved.
        saving: set when a picture waits for `open`.
        failures: seed -> why that picture cannot be saved.
        refusal: raised by `submit`.
        check_error: raised by `self_check`.
    """

    open: threading.Event = field(default_factory=threading.Event)
    saving: threading.Event = field(default_factory=threading.Event)
    failures: dict[int, ZImageError] = field(default_factory=dict)
    refusal: ZImageError | None = None
    check_error: ZImageError | None = None
    orders: list[SaveOrder] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open.set()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="saver")
        self._pending: list[Future[None]] = []

    def self_check(self) -> None:
        if self.check_error is not None:
            raise self.check_error

    def submit(self, order: SaveOrder) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.orders.append(order)
        self._pending.append(self._pool.submit(self._save, order))

    def drain(self, timeout_s: float) -> bool:
        return not wait(self._pending, timeout_s).not_done

    def close(self) -> None:
        self.open.set()
        self._pool.shutdown()
        for saved in self._pending:
            saved.result(0)  # what a callback raised

    def _save(self, order: SaveOrder) -> None:
        self.saving.set()
        assert self.open.wait(60)
        order.on_ready(self._ref(order, ""))
        error = self.failures.get(order.image.seed)
        if error is not None:
            order.on_failed(error)
        else:
            order.on_saved(self._ref(order, f"{order.picture_id}.{order.image_format.suffix}"))

    @staticmethod
    def _ref(order: SaveOrder, path: str) -> PictureRef:
        image = order.image
        return PictureRef(
            picture_id=order.picture_id,
            seed=image.seed,
            width=image.width,
            height=image.height,
            image_format=order.image_format,
            size_bytes=len(image.pixels),
            path=path,
        )


@dataclass
class Room:
    """A started jobs room and what a test does with it."""

    service: JobService
    generator: FakeGenerator
    saver: MemorySaver

    def submit(self, prompt: str = "a boat", client: str = "ann", **fields: Any) -> str:
        """Submit a small request; returns the job's id."""
        given = {"width": 64, "height": 64, "num_inference_steps": 2, **fields}
        return self.service.submit(GenerationRequest(prompt=prompt, **given), client).job_id

    def end(self, job_id: str) -> JobRecord:
        """Wait for the end of a job."""
        return self.service.future(job_id).result(30)

    def make(self, prompt: str = "a boat", **fields: Any) -> JobRecord:
        """Submit and wait."""
        return self.end(self.submit(prompt, **fields))

    def record(self, job_id: str) -> JobRecord:
        record = self.service.board.get(job_id)
        assert record is not None
        return record

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait on the board's changes until `reached`."""
        changed = threading.Event()
        with self.service.board.subscribe(changed.set) as reader:
            while not reached():
                assert changed.wait(30), "it was not reached in 30 s"
                changed.clear()
                reader.changed()

    def wait_for_phase(self, job_id: str, phase: JobPhase) -> None:
        self.wait_until(lambda: self.record(job_id).phase is phase)

    def hold(self) -> None:
        """Make every sampling step wait until `let_go`."""
        self.generator.gate = threading.Event()

    def let_go(self) -> None:
        if self.generator.gate is not None:
            self.generator.gate.set()

    def running(self, **fields: Any) -> str:
        """Submit a job and hold it in its first sampling step."""
        self.hold()
        self.generator.entered.clear()
        job_id = self.submit(**fields)
        assert self.generator.entered.wait(30)
        return job_id


OpenRoom = Callable[..., Room]


@pytest.fixture
def open_room() -> Iterator[OpenRoom]:
    """Makes rooms; `start=False` leaves the worker asleep. Every room is closed and its threads are gone at the end."""
    rooms: list[Room] = []

    def make(generator: FakeGenerator | None = None, *, start: bool = True, **options: Any) -> Room:
        generator, saver = generator or FakeGenerator(), MemorySaver()
        room = Room(JobService(generator, saver, **options), generator, saver)  # type: ignore[arg-type]
        rooms.append(room)
        if start:
            room.service.start()
        return room

    yield make
    for room in rooms:
        room.let_go()
        room.saver.open.set()
        closed = room.service.close(30)
        room.saver.close()
        assert closed


@pytest.fixture
def room(open_room: OpenRoom) -> Room:
    return open_room()
