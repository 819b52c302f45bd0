"""What is prepared next, and what becomes of it; over an engine that only keeps books."""

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, ZImageError
from zimage_ui.generator.base import ModelProfile, ShapeState, ShapeStatus
from zimage_ui.generator.fast import denoiser, text_encoder, vae
from zimage_ui.generator.fast.giving_way import GAVE_WAY
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.preparation import _KEPT_SEEN, CAPTION_TOKENS, Preparation
from zimage_ui.generator.profiles import PROFILES
from zimage_ui.request import GenerationRequest

SMALL, LARGE, WIDE = (64, 64), (128, 128), (128, 64)
PROFILE = ModelProfile(
    name="mini",
    num_inference_steps=3,
    guidance_scale=0.0,
    takes_negative_prompt=False,
    sizes=(SMALL, LARGE, WIDE),
)


class Books:
    """An engine that notes what it is asked for.

    Attributes:
        done: the pieces and rehearsals that were asked for, in order.
        prepared: what it would make at full speed.
        failures: (piece, size) -> what is raised there.
        barren: sizes whose preparation fails without a word.
        room: how many shapes fit; memory runs out when one more is prepared.
    """

    def __init__(self) -> None:
        self.room = 1_000
        self.times_out_of_memory = 0
        self.prepares = True
        self.done: list[tuple[str, PictureShape]] = []
        self.prepared: set[PictureShape] = set()
        self.failures: dict[tuple[str, tuple[int, int]], ZImageError] = {}
        self.barren: set[tuple[int, int]] = set()

    def is_prepared(self, shape: PictureShape) -> bool:
        return shape in self.prepared

    def preparations(self, shape: PictureShape, somebody_waits: Callable[[], bool]) -> tuple[Callable[[], object], ...]:
        def measure() -> object:
            self._do("text", shape)
            return GAVE_WAY if somebody_waits() else None

        return (measure, partial(self._do, "graph", shape))

    def rehearse(self, shape: PictureShape) -> None:
        self._do("rehearsal", shape)

    def release(self) -> bool:
        self.done.append(("release", ANY))
        self.prepared.clear()
        return True

    def _do(self, piece: str, shape: PictureShape) -> None:
        self.done.append((piece, shape))
        if piece == "graph" and shape not in self.prepared and len(self.prepared) >= self.room:
            self.times_out_of_memory += 1  # as the engine's parts do it: the shape is left cold, and nothing is raised
            return
        if error := self.failures.get((piece, (shape.width, shape.height))):
            raise error
        if piece == "graph" and (shape.width, shape.height) not in self.barren:
            self.prepared.add(shape)

    @property
    def recorded(self) -> list[PictureShape]:
        return [shape for piece, shape in self.done if piece == "graph"]


def request(size: tuple[int, int], pictures: int = 1) -> GenerationRequest:
    width, height = size
    return GenerationRequest(prompt="a boat", width=width, height=height, num_images_per_prompt=pictures)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def preparation(books: Books) -> Preparation:
    """With the default size warm, as the warm-up leaves it."""
    preparation = Preparation(books, PROFILE)
    books.prepared |= {PictureShape(*SMALL, tokens) for tokens in CAPTION_TOKENS}
    preparation.made(PictureShape(*SMALL, 32))
    return preparation


def finish(preparation: Preparation) -> list[tuple[ShapeStatus, ...]]:
    heard: list[tuple[ShapeStatus, ...]] = []
    while preparation.next(heard.append):
        pass
    return heard


def states(preparation: Preparation) -> dict[tuple[int, int, int], ShapeState]:
    return {(each.width, each.height, each.prompt_tokens): each.state for each in preparation.statuses()}


def test_each_call_does_one_piece_and_each_size_is_rehearsed_once(books: Books, preparation: Preparation) -> None:
    calls = 0
    while preparation.next(lambda statuses: None):
        calls += 1
        assert len(books.done) == calls
    assert books.done == [
        ("text", PictureShape(*LARGE, 32)), ("graph", PictureShape(*LARGE, 32)),
        ("rehearsal", PictureShape(*LARGE, 32)),
        ("text", PictureShape(*LARGE, 64)), ("graph", PictureShape(*LARGE, 64)),
        ("text", PictureShape(*WIDE, 32)), ("graph", PictureShape(*WIDE, 32)),
        ("rehearsal", PictureShape(*WIDE, 32)),
        ("text", PictureShape(*WIDE, 64)), ("graph", PictureShape(*WIDE, 64)),
    ]  # fmt: skip


def test_a_piece_that_gave_way_is_begun_anew_and_no_other_before_it(books: Books, preparation: Preparation) -> None:
    waiting, heard = threading.Event(), []
    waiting.set()
    for _ in range(3):
        assert preparation.next(heard.append, waiting.is_set)
    assert books.done == [("text", PictureShape(*LARGE, 32))] * 3
    assert states(preparation)[*LARGE, 32] is ShapeState.PREPARING
    waiting.clear()
    while preparation.next(heard.append, waiting.is_set):
        pass
    assert books.done[3:5] == [("text", PictureShape(*LARGE, 32)), ("graph", PictureShape(*LARGE, 32))]
    assert set(states(preparation).values()) == {ShapeState.WARM}


def test_whoever_listens_hears_of_each_shape_twice(preparation: Preparation) -> None:
    heard = finish(preparation)
    of_one = [
        state for statuses in heard for state in [each.state for each in statuses if each.width == each.height == 128]
    ]
    cold, preparing, warm = ShapeState.COLD, ShapeState.PREPARING, ShapeState.WARM
    assert of_one[:8] == [preparing, cold, warm, cold, warm, preparing, warm, warm]
    assert set(states(preparation).values()) == {warm}


def test_statuses_come_in_the_order_of_the_profile_then_what_was_asked_for(preparation: Preparation) -> None:
    preparation.made(PictureShape(80, 48, 96))
    preparation.made(PictureShape(64, 64, 32, num_images=4))
    sizes = [(each.width, each.height, each.prompt_tokens, each.num_images) for each in preparation.statuses()]
    assert sizes == [
        (64, 64, 32, 1), (64, 64, 64, 1), (128, 128, 32, 1), (128, 128, 64, 1), (128, 64, 32, 1), (128, 64, 64, 1),
        (64, 64, 32, 4), (80, 48, 96, 1),
    ]  # fmt: skip


class TestOrder:
    def test_what_was_just_made_comes_first_and_its_size_next(self, books: Books, preparation: Preparation) -> None:
        preparation.made(PictureShape(*WIDE, 96))
        finish(preparation)
        assert books.recorded == [
            PictureShape(*WIDE, 96), PictureShape(*WIDE, 32), PictureShape(*WIDE, 64),
            PictureShape(*LARGE, 32), PictureShape(*LARGE, 64),
        ]  # fmt: skip
        assert ("rehearsal", PictureShape(*WIDE, 32)) not in books.done  # a picture of that size was made

    def test_a_request_in_between_changes_what_is_next(self, books: Books, preparation: Preparation) -> None:
        preparation.next(lambda statuses: None)
        assert books.done == [("text", PictureShape(*LARGE, 32))]
        preparation.interrupt()
        assert states(preparation)[(*LARGE, 32)] is ShapeState.COLD
        preparation.made(PictureShape(48, 48, 32))
        finish(preparation)
        assert books.recorded[:3] == [PictureShape(48, 48, 32), PictureShape(*LARGE, 32), PictureShape(*LARGE, 64)]

    def test_a_request_that_failed_leaves_the_order_as_it_was(self, books: Books, preparation: Preparation) -> None:
        preparation.next(lambda statuses: None)
        preparation.interrupt()
        finish(preparation)
        assert books.recorded[0] == PictureShape(*LARGE, 32)


class TestOutOfMemory:
    def test_what_the_engine_dropped_is_prepared_again(self, books: Books, preparation: Preparation) -> None:
        finish(preparation)
        books.prepared.clear()
        assert set(states(preparation).values()) == {ShapeState.COLD}
        books.done.clear()
        finish(preparation)
        assert len(books.recorded) == 6
        assert set(states(preparation).values()) == {ShapeState.WARM}

    def test_what_does_not_fit_is_tried_once_and_the_others_follow(
        self, books: Books, preparation: Preparation, caplog: pytest.LogCaptureFixture
    ) -> None:
        books.failures["graph", LARGE] = DeviceMemoryError("Out of memory: 2 GiB.", "Choose a smaller size.")
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            finish(preparation)
        assert states(preparation)[(*LARGE, 32)] is ShapeState.COLD
        assert states(preparation)[(*WIDE, 64)] is ShapeState.WARM
        assert books.recorded.count(PictureShape(*LARGE, 32)) == 1
        assert "128 x 128 with prompts of up to 32 tokens" in caplog.text
        assert "Out of memory: 2 GiB." in caplog.text
        preparation.made(PictureShape(*LARGE, 32))
        assert not preparation.next(lambda statuses: None)

    def test_a_rehearsal_that_does_not_fit_leaves_the_shape_warm(self, books: Books, preparation: Preparation) -> None:
        books.failures["rehearsal", LARGE] = DeviceMemoryError("Out of memory.", "Choose a smaller size.")
        finish(preparation)
        assert states(preparation)[(*LARGE, 32)] is ShapeState.WARM
        assert [piece for piece, shape in books.done if shape == PictureShape(*LARGE, 64)] == ["text", "graph"]


class TestTooLittleMemoryForAll:
    def test_so_many_are_kept_as_fit(
        self, books: Books, preparation: Preparation, caplog: pytest.LogCaptureFixture
    ) -> None:
        books.room = 4
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            finish(preparation)
        assert [piece for piece, _ in books.done].count("release") == 1
        assert books.prepared == {PictureShape(*size, tokens) for size in (SMALL, LARGE) for tokens in CAPTION_TOKENS}
        assert "128 x 64 with prompts of up to 32 tokens was prepared beside 4 others" in caplog.text
        assert "kept prepared from now on: 4" in caplog.text
        assert not preparation.next(lambda statuses: None)

    def test_one_that_is_asked_for_takes_the_place_of_another(self, books: Books, preparation: Preparation) -> None:
        books.room = 4
        finish(preparation)
        preparation.made(PictureShape(*WIDE, 64))
        finish(preparation)
        assert len(books.prepared) == 4
        assert {PictureShape(*WIDE, tokens) for tokens in CAPTION_TOKENS} < books.prepared
        assert not preparation.next(lambda statuses: None)

    def test_one_that_does_not_fit_alone_is_left_and_another_fits(self, books: Books, preparation: Preparation) -> None:
        books.room = 1
        finish(preparation)
        assert books.prepared == {PictureShape(*SMALL, 32)}
        books.room = 0
        books.prepared.clear()
        finish(preparation)
        assert books.prepared == set()
        assert not preparation.next(lambda statuses: None)

    def test_a_picture_that_was_prepared_for_and_found_no_memory_leaves_one_less(
        self, books: Books, preparation: Preparation
    ) -> None:
        finish(preparation)
        assert len(books.prepared) == 6
        preparation.ran_out(request(SMALL))
        books.release()  # as the engine does then
        finish(preparation)
        assert len(books.prepared) == 5
        assert PictureShape(*SMALL, 32) in books.prepared

    @pytest.mark.parametrize("asked", [{"size": (256, 256)}, {"size": SMALL, "pictures": 2}])
    def test_a_picture_that_was_not_says_nothing_of_the_others(
        self, books: Books, preparation: Preparation, asked: dict[str, Any]
    ) -> None:
        finish(preparation)
        preparation.ran_out(request(**asked))
        books.release()
        finish(preparation)
        assert len(books.prepared) == 6

    def test_memory_that_ran_out_before_counts_for_nothing(self, books: Books, preparation: Preparation) -> None:
        books.times_out_of_memory = 7
        finish(preparation)
        assert len(books.prepared) == 6

    @pytest.mark.parametrize("room", range(7))
    def test_whatever_fits_it_comes_to_an_end(self, books: Books, preparation: Preparation, room: int) -> None:
        books.room = room
        books.prepared.clear()
        for size in (SMALL, WIDE, LARGE, WIDE, (48, 48)):
            preparation.made(PictureShape(*size, 64))
            finish(preparation)
            if room > 0:
                assert PictureShape(*size, 64) in books.prepared
            assert len(books.prepared) <= room
        assert len(books.done) < 200


def test_what_fails_without_a_word_is_tried_once(books: Books, preparation: Preparation) -> None:
    books.barren.add(LARGE)
    finish(preparation)
    assert books.recorded.count(PictureShape(*LARGE, 64)) == 1
    assert states(preparation)[(*LARGE, 64)] is ShapeState.COLD


def test_a_lost_device_is_the_callers(books: Books, preparation: Preparation) -> None:
    books.failures["graph", LARGE] = DeviceLostError("The device is gone.", "Start again.")
    preparation.next(lambda statuses: None)
    with pytest.raises(DeviceLostError):
        preparation.next(lambda statuses: None)


def test_a_device_that_prepares_nothing_has_no_shapes(books: Books, preparation: Preparation) -> None:
    books.prepares = False
    preparation.made(PictureShape(*LARGE, 32))
    assert preparation.statuses() == ()
    assert not preparation.next(lambda statuses: None)


def test_shapes_that_nobody_uses_any_more_are_forgotten(books: Books, preparation: Preparation) -> None:
    books.barren.add((16, 16))
    preparation.made(PictureShape(16, 16, 32))
    finish(preparation)
    for tokens in range(32, 32 * (_KEPT_SEEN + 2), 32):
        preparation.made(PictureShape(48, 48, tokens))
    finish(preparation)
    assert (16, 16, 32) not in states(preparation)
    assert len(preparation.statuses()) == 2 * len(PROFILE.sizes) + _KEPT_SEEN
    books.done.clear()
    preparation.made(PictureShape(16, 16, 32))  # by now it may work
    finish(preparation)
    assert books.recorded == [PictureShape(16, 16, 32)]


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_engine_keeps_all_that_is_asked_for_at_a_time(profile: ModelProfile) -> None:
    """Or preparing one would drop another, which would be prepared again, without end."""
    assert len(profile.sizes) * len(CAPTION_TOKENS) + _KEPT_SEEN <= denoiser._KEPT_PASSES
    assert len(profile.sizes) + _KEPT_SEEN <= vae._KEPT_SIZES
    assert len(CAPTION_TOKENS) + _KEPT_SEEN <= text_encoder._KEPT_LENGTHS
