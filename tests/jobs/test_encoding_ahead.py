"""While a job is drawn, the prompt of whoever comes next is encoded, as the queue stands at that moment."""

from __future__ import annotations

import pytest

from tests.jobs.conftest import OpenRoom, Room
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import GenerationRequest


class Ahead(FakeGenerator):
    """Notes whose prompts were to be encoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.asked: list[str] = []

    def encode_ahead(self, request: GenerationRequest) -> bool:
        self.asked.append(request.prompt)
        return super().encode_ahead(request)


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
