"""What the worker does while nobody waits: it prepares shapes, and is never in a job's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from tests.jobs.conftest import OpenRoom, Room
from zimage_ui.errors import DeviceLostError, GenerationError
from zimage_ui.generator.base import ShapesListener, ShapeState, SomebodyWaits, WarmupPhase, nobody_waits
from zimage_ui.generator.fake import FAKE_PROFILE, FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase

COLD, PREPARING, WARM = ShapeState.COLD, ShapeState.PREPARING, ShapeState.WARM
PREPARES = FakeScript(prepare_s=0.0)


class Pieces(threading.Event):
    """A gate that lets through as many pieces as it is told; once set, all."""

    def __init__(self) -> None:
        super().__init__()
        self._allowed = threading.Semaphore(0)

    def allow(self, pieces: int = 1) -> None:
        self._allowed.release(pieces)

    def wait(self, timeout: float | None = None) -> bool:
        return self._allowed.acquire(timeout=timeout)

    def set(self) -> None:
        super().set()
        self._allowed.release(10_000)


class Preparing(FakeGenerator):
    """Notes, on its one thread, what it did in which order."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log: list[str] = []
        self.at_piece: Callable[[int], object] = lambda piece: None

    def prepare_next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        self.at_piece(self.log.count("piece"))
        done = super().prepare_next(changed, somebody_waits)
        if done:
            self.log.append("piece")
        return done

    def generate(self, *arguments, **options):
        self.log.append("job")
        return super().generate(*arguments, **options)


@pytest.fixture
def gate() -> Pieces:
    return Pieces()


@pytest.fixture
def held(open_room: OpenRoom, gate: Pieces, request: pytest.FixtureRequest) -> Room:
    """A room whose worker stands in the first piece of the first preparation."""
    generator = Preparing(PREPARES, prepare_gate=gate)
    room = open_room(generator, idle_after_s=0.0)
    request.addfinalizer(gate.set)
    assert generator.preparing.wait(30)
    return room


def states(room: Room) -> list[ShapeState]:
    return [shape.state for shape in room.service.board.shapes]


def test_it_is_ready_with_the_first_size_warm_and_the_others_follow(held: Room, gate: Pieces) -> None:
    assert held.service.board.readiness.phase is WarmupPhase.READY
    others = len(FAKE_PROFILE.sizes) - 1
    held.wait_until(lambda: states(held) == [WARM, PREPARING] + [COLD] * (others - 1))
    gate.allow(2)
    held.wait_until(lambda: states(held) == [WARM, WARM, PREPARING] + [COLD] * (others - 2))
    gate.set()
    held.wait_until(lambda: states(held) == [WARM] * (others + 1))


def test_a_job_that_comes_waits_for_one_piece_alone(held: Room, gate: Pieces) -> None:
    jobs = [held.submit(), held.submit()]
    gate.allow()
    for job_id in jobs:
        assert held.end(job_id).phase is JobPhase.DONE
    assert held.generator.log[:3] == ["piece", "job", "job"]
    gate.set()
    held.wait_until(lambda: set(states(held)) == {WARM})


class LongPieces(Preparing):
    """Its pieces end when somebody waits, and never before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begun, self.ended = threading.Semaphore(0), threading.Semaphore(0)
        self.over = threading.Event()  # of the test, however it ends

    def prepare_next(self, changed: ShapesListener, somebody_waits: SomebodyWaits = nobody_waits) -> bool:
        self.begun.release()
        while not somebody_waits() and not self.over.is_set():
            pass
        self.log.append("gave way")
        self.ended.release()
        return True


def test_a_piece_that_takes_long_gives_way_to_a_job_and_to_the_end(
    open_room: OpenRoom, request: pytest.FixtureRequest
) -> None:
    generator = LongPieces(PREPARES)
    request.addfinalizer(generator.over.set)
    room = open_room(generator, idle_after_s=0.0)
    assert generator.begun.acquire(timeout=30)
    assert room.end(room.submit()).phase is JobPhase.DONE
    assert generator.log[:2] == ["gave way", "job"]
    assert generator.ended.acquire(timeout=30)
    assert generator.begun.acquire(timeout=30)  # anew
    room.service.stop()
    assert generator.ended.acquire(timeout=30)


def test_a_size_that_was_never_seen_is_made_at_once_and_prepared_afterwards(held: Room, gate: Pieces) -> None:
    job_id = held.submit(width=80, height=96)
    gate.allow()
    assert held.end(job_id).shape_warm is False
    held.wait_until(lambda: any((each.width, each.height) == (80, 96) for each in held.service.board.shapes))
    gate.set()
    held.wait_until(lambda: set(states(held)) == {WARM})
    assert held.make(width=80, height=96).shape_warm is True


def test_the_first_size_needs_no_preparation(held: Room, gate: Pieces) -> None:
    width, height = FAKE_PROFILE.sizes[0]
    job_id = held.submit(width=width, height=height)
    gate.allow()
    assert held.end(job_id).shape_warm is True


def test_a_generator_that_prepares_nothing_says_nothing(room: Room) -> None:
    assert room.make().shape_warm is None
    assert room.service.board.shapes == ()


def test_stopping_waits_for_one_piece_alone(held: Room, gate: Pieces) -> None:
    held.service.stop()
    gate.allow()
    assert held.service.close(30)
    assert held.generator.log == ["piece"]


def test_right_after_a_job_the_next_one_is_waited_for(open_room: OpenRoom) -> None:
    """Whoever draws one picture after the other never waits for a piece."""
    generator = Preparing(PREPARES)
    room = open_room(generator, idle_after_s=3600.0)
    for _ in range(3):
        room.make()
    assert generator.log == ["job"] * 3


def test_what_goes_wrong_is_logged_and_the_worker_lives(open_room: OpenRoom, caplog: pytest.LogCaptureFixture) -> None:
    generator, failed = Preparing(PREPARES), threading.Event()

    def fail(piece: int) -> None:
        failed.set()
        raise GenerationError("The compiler is on holiday.", "Try again.")

    generator.at_piece = fail
    with caplog.at_level(logging.WARNING):
        room = open_room(generator, idle_after_s=0.0)
        assert failed.wait(30)
        assert room.make().phase is JobPhase.DONE
    assert "nothing more is prepared for now: The compiler is on holiday." in caplog.text
    assert room.service.board.readiness.phase is WarmupPhase.READY


def test_a_device_that_is_lost_meanwhile_ends_the_worker(open_room: OpenRoom) -> None:
    generator = Preparing(PREPARES)

    def lose(piece: int) -> None:
        if piece == 1:
            raise DeviceLostError("The device was lost.", "Start again.")

    generator.at_piece = lose
    fatal: list[Exception] = []
    room = open_room(generator, idle_after_s=0.0, on_fatal=fatal.append)
    room.wait_until(lambda: room.service.board.readiness.phase is WarmupPhase.FAILED)
    assert room.service.close(30)
    assert [type(error) for error in fatal] == [DeviceLostError]
    assert fatal[0].__traceback__ is None
