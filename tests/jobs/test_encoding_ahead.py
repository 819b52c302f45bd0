"""While a job is drawn or nobody asks, the prompt of whoever comes next is encoded, as things stand at that moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.jobs.conftest import OpenRoom, Room
from zimage_ui.errors import InvalidRequestError
from zimage_ui.generator.base import ShapeState
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import GenerationRequest


class Ahead(FakeGenerator):
    """Notes whose prompts were to be encoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[str] = []
        self.waits: list[bool] = []
        self.at_piece: Callable[[], object] = lambda: None
        self.done = threading.Event()

    def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
        self.asked.append(request.prompt)
        self.waits.append(wait)
        self.at_piece()
        is_done = super().encode_ahead(request, wait=wait)
        if not is_done:
            self.done.set()
        return is_done


@pytest.fixture
def room(open_room: OpenRoom) -> Room:
    return open_room(Ahead(FakeScript(encode_s=0.003, encodes_ahead=True)))


def test_a_waiting_job_finds_its_prompt_encoded_and_its_record_says_so(room: Room) -> None:
    first = room.running(prompt="first", num_inference_steps=4)
    second = room.submit("second")
    room.let_go()
    assert room.end(first).encoded_ahead_ms == 0.0
    record = room.end(second)
    assert record.phase is JobPhase.DONE
    assert record.encoded_ahead_ms == 3.0
    assert record.embedding_cache_hit is False
    assert room.generator.asked == ["second"] * 3  # not after the last step, when nothing is computed any more


def test_nobody_waits_and_nothing_is_encoded(room: Room) -> None:
    assert room.make(num_inference_steps=4).encoded_ahead_ms == 0.0
    assert room.generator.asked == []


def test_a_job_that_is_cancelled_while_it_waits_is_passed_over(room: Room) -> None:
    first = room.running(prompt="first", num_inference_steps=4)
    second, third = room.submit("second"), room.submit("third")
    assert room.service.cancel(second)
    room.let_go()
    assert room.end(first).phase is JobPhase.DONE
    assert room.end(third).encoded_ahead_ms == 3.0
    assert set(room.generator.asked) == {"third"}


def test_the_next_is_who_has_the_next_turn(room: Room) -> None:
    room.running(client="ann", prompt="first", num_inference_steps=2)
    room.submit("ann's second", client="ann")
    newcomer = room.submit("bob's first", client="bob")
    room.let_go()
    assert room.end(newcomer).encoded_ahead_ms == 3.0
    assert room.generator.asked[0] == "bob's first"


def drafted(prompt: str) -> GenerationRequest:
    return GenerationRequest(prompt=prompt, width=64, height=64, num_inference_steps=2)


class TestWhatIsStillWritten:
    def test_it_is_encoded_while_nobody_asks(self, room: Room) -> None:
        room.service.announce(drafted("a boat at sea"))
        assert room.generator.done.wait(30)
        record = room.make("a boat at sea")
        assert (record.encoded_ahead_ms, record.embedding_cache_hit) == (3.0, False)
        assert room.generator.asked == ["a boat at sea"] * 2
        assert room.generator.waits == [True] * 2  # a job that comes waits for one piece at most

    def test_it_may_be_announced_before_the_model_is_there(self, open_room: OpenRoom) -> None:
        room = open_room(Ahead(FakeScript(encode_s=0.003, encodes_ahead=True)), start=False)
        room.service.announce(drafted("a boat"))
        room.service.start()
        assert room.generator.done.wait(30)
        assert room.make("a boat").encoded_ahead_ms == 3.0

    def test_a_newer_text_takes_its_place_after_one_piece(self, room: Room) -> None:
        room.generator.at_piece = lambda: len(room.generator.asked) == 1 and room.service.announce(drafted("a boat at"))
        room.service.announce(drafted("a boat"))
        assert room.generator.done.wait(30)
        assert room.generator.asked == ["a boat", "a boat at", "a boat at"]

    def test_a_job_that_comes_waits_for_one_piece_and_the_rest_is_done_beside_it(self, room: Room) -> None:
        room.generator.at_piece = lambda: len(room.generator.asked) == 1 and room.submit("first")
        room.service.announce(drafted("a boat"))
        assert room.generator.done.wait(30)
        assert room.generator.waits == [True, False]  # beside its only step but the last
        assert room.make("a boat").encoded_ahead_ms == 3.0

    def test_beside_a_job_whoever_waits_comes_first(self, room: Room) -> None:
        first = room.running(prompt="first", num_inference_steps=5)
        second = room.submit("second")
        room.service.announce(drafted("a boat"))
        room.let_go()
        assert room.end(first).encoded_ahead_ms == 0.0
        assert room.end(second).encoded_ahead_ms == 3.0
        assert room.generator.asked[:5] == ["second", "second", "a boat", "second", "a boat"]
        assert room.make("a boat").encoded_ahead_ms == 3.0

    def test_what_cannot_be_done_beside_a_job_is_done_after_it(self, open_room: OpenRoom) -> None:
        class AtHome(Ahead):
            def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
                return wait and super().encode_ahead(request, wait=wait)

        room = open_room(AtHome(FakeScript(encode_s=0.003, encodes_ahead=True)))
        first = room.running(prompt="first", num_inference_steps=4)
        room.service.announce(drafted("a boat"))
        room.let_go()
        assert room.end(first).phase is JobPhase.DONE
        assert room.generator.done.wait(30)
        assert room.generator.waits == [True] * 2
        assert room.make("a boat").encoded_ahead_ms == 3.0

    def test_preparing_gives_way_to_it_after_a_piece_and_goes_on(self, open_room: OpenRoom) -> None:
        log: list[str] = []

        class Preparing(Ahead):
            def prepare_next(self, *arguments: Any) -> bool:
                log.append("piece")
                room.service.announce(drafted(f"a boat {len(log)}"))  # a new text after each, and still it goes on
                return super().prepare_next(*arguments)

        generator = Preparing(FakeScript(prepare_s=0.0, encodes_ahead=True))
        generator.at_piece = lambda: log.append("encoded")
        room = open_room(generator, start=False, idle_after_s=0.0)
        room.service.start()
        room.wait_until(lambda: {shape.state for shape in room.service.board.shapes} == {ShapeState.WARM})
        assert log[:6] == ["piece", "encoded", "encoded"] * 2

    def test_what_goes_wrong_with_it_harms_nobody(self, open_room: OpenRoom, caplog: pytest.LogCaptureFixture) -> None:
        class Broken(Ahead):
            def encode_ahead(self, request: GenerationRequest, *, wait: bool = False) -> bool:
                self.done.set()
                raise RuntimeError("a driver that does not answer")

        room = open_room(Broken())
        room.service.announce(drafted("a boat"))
        assert room.generator.done.wait(30)
        assert room.make("a boat").phase is JobPhase.DONE
        assert "a driver that does not answer" in caplog.text
        assert room.make("another boat", num_inference_steps=4).phase is JobPhase.DONE  # it was dropped

    def test_what_the_model_does_not_do_is_not_announced(self, room: Room) -> None:
        room.make("first")  # the model is known
        refused = GenerationRequest(prompt="a boat", negative_prompt="fog", guidance_scale=3.0)
        with pytest.raises(InvalidRequestError, match="works without guidance"):
            room.service.announce(refused)
        room.service.announce(drafted("a boat"))
        assert room.generator.done.wait(30)
        assert set(room.generator.asked) == {"a boat"}

    def test_where_nothing_is_encoded_ahead_it_is_forgotten(self, open_room: OpenRoom) -> None:
        room = open_room(Ahead())
        room.service.announce(drafted("a boat"))
        assert room.generator.done.wait(30)
        assert room.make("a boat").encoded_ahead_ms == 0.0
        assert room.generator.asked == ["a boat"]
