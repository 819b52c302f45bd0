"""What is prepared next, and what becomes of it; over an engine that only keeps books."""

import logging
import threading
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, ZImageError
from zimage_ui.generator.base import ModelProfile, ShapeState, ShapeStatus
from zimage_ui.generator.demand import KEPT_SEEN
from zimage_ui.generator.fast import denoiser, text_encoder, vae
from zimage_ui.generator.fast.giving_way import GAVE_WAY
from zimage_ui.generator.fast.graphs import Recordings
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.memory import FIRST_PATIENCE
from zimage_ui.generator.preparation import CAPTION_TOKENS, Preparation
from zimage_ui.generator.profiles import PROFILES

SMALL, LARGE, WIDE = (64, 64), (128, 128), (128, 64)
SMALLS = {PictureShape(*SMALL, tokens) for tokens in CAPTION_TOKENS}
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
        too_large: sizes that do not fit alone, and leave a residue that takes all the room.
        harmless: how many allocations still fail without harm.
        beside: how many prepared shapes a picture finds memory beside.
        releases, given_back: how often all was given up, and how often memory went back to the driver with it.
    """

    def __init__(self) -> None:
        self.room = self.beside = 1_000
        self.too_large: set[tuple[int, int]] = set()
        self.residue = self.harmless = self.releases = self.given_back = 0
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

    def keep_only(self, shapes: Collection[PictureShape]) -> None:
        self.prepared &= set(shapes)

    def release(self, *, ran_out: bool) -> bool:
        self.releases += 1
        self.given_back += ran_out
        self.residue = 0
        self.prepared.clear()
        return True

    def make(self, preparation: Preparation) -> None:
        """What the engine does for a picture when memory runs out."""
        if len(self.prepared) > self.beside:
            preparation.ran_out()
            self.release(ran_out=True)

    def _do(self, piece: str, shape: PictureShape) -> None:
        self.done.append((piece, shape))
        if self.harmless:
            self.harmless -= 1
            self.times_out_of_memory += 1
        is_large = (shape.width, shape.height) in self.too_large
        is_full = is_large or self.residue or len(self.prepared) >= self.room
        if piece == "graph" and shape not in self.prepared and is_full:
            self.times_out_of_memory += 1  # as the engine's parts do it: it is left cold, and nothing is raised
            self.residue += is_large
            return
        if error := self.failures.get((piece, (shape.width, shape.height))):
            raise error
        if piece == "graph" and (shape.width, shape.height) not in self.barren:
            self.prepared.add(shape)

    @property
    def recorded(self) -> list[PictureShape]:
        return [shape for piece, shape in self.done if piece == "graph"]


def asked(preparation: Preparation, books: Books, shape: PictureShape) -> None:
    """A request for `shape` comes, and its picture is made."""
    preparation.interrupt()
    books.make(preparation)
    preparation.made(shape)


def with_idle_time(preparation: Preparation, books: Books, *shapes: PictureShape) -> None:
    """Requests for `shapes`, one after the other, and after each time to prepare whatever is left."""
    for shape in shapes:
        asked(preparation, books, shape)
        finish(preparation)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def preparation(books: Books) -> Preparation:
    """With the default size warm, as the warm-up leaves it."""
    preparation = Preparation(books, PROFILE)
    books.prepared |= SMALLS
    preparation.made(PictureShape(*SMALL, 32))
    return preparation


def finish(preparation: Preparation) -> list[tuple[ShapeStatus, ...]]:
    heard: list[tuple[ShapeStatus, ...]] = []
    for _ in range(500):
        if not preparation.next(heard.append):
            return heard
    pytest.fail("it does not end")


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

    def test_what_fails_is_tried_once_and_the_others_follow(
        self, books: Books, preparation: Preparation, caplog: pytest.LogCaptureFixture
    ) -> None:
        books.failures["graph", LARGE] = GenerationError("The compiler is on holiday.", "Try again.")
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            finish(preparation)
        assert states(preparation)[(*LARGE, 32)] is ShapeState.COLD
        assert states(preparation)[(*WIDE, 64)] is ShapeState.WARM
        assert books.recorded.count(PictureShape(*LARGE, 32)) == 1
        assert "128 x 128 with prompts of up to 32 tokens" in caplog.text
        assert "The compiler is on holiday." in caplog.text
        preparation.made(PictureShape(*LARGE, 32))
        assert not preparation.next(lambda statuses: None)

    def test_a_rehearsal_that_does_not_fit_beside_others_leaves_those(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.failures["rehearsal", LARGE] = DeviceMemoryError("Out of memory.", "Choose a smaller size.")
        finish(preparation)
        assert books.prepared == SMALLS

    def test_a_rehearsal_that_does_not_fit_alone_leaves_the_shape_warm(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.failures["rehearsal", SMALL] = DeviceMemoryError("Out of memory.", "Choose a smaller size.")
        books.prepared.clear()
        alone = Preparation(books, replace(PROFILE, sizes=(SMALL,)))
        finish(alone)
        assert books.prepared == SMALLS


class TestTooLittleMemoryForAll:
    def test_so_many_are_kept_as_fit(
        self, books: Books, preparation: Preparation, caplog: pytest.LogCaptureFixture
    ) -> None:
        books.room = 4
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            finish(preparation)
        assert books.releases == 1
        assert books.prepared == {PictureShape(*size, tokens) for size in (SMALL, LARGE) for tokens in CAPTION_TOKENS}
        assert "128 x 64 with prompts of up to 32 tokens was prepared beside 4 others" in caplog.text
        assert "4 sizes are kept prepared from now on" in caplog.text

    def test_an_allocation_that_failed_and_found_another_way_says_nothing(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.harmless = 3  # as a library does that tries one workspace after another
        finish(preparation)
        assert len(books.prepared) == 6
        assert books.releases == 0

    def test_a_failure_that_is_raised_counts_as_well(self, books: Books, preparation: Preparation) -> None:
        books.failures["graph", LARGE] = DeviceMemoryError("Out of memory: 2 GiB.", "Choose a smaller size.")
        finish(preparation)
        assert (books.prepared, books.releases) == (SMALLS, 1)

    def test_what_is_asked_for_once_takes_nobodys_place(self, books: Books, preparation: Preparation) -> None:
        books.room = 4
        finish(preparation)
        kept = set(books.prepared)
        with_idle_time(preparation, books, *(PictureShape(*size, 64) for size in (WIDE, (48, 48), (32, 32))))
        assert kept == books.prepared
        assert books.releases == 1

    def test_sizes_that_are_asked_for_in_turns_take_the_place_of_what_nobody_asks_for(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.room = 4
        finish(preparation)
        turns = [PictureShape(*WIDE, 64), PictureShape(48, 48, 64)]
        with_idle_time(preparation, books, *turns * 5)
        assert set(turns) < books.prepared
        assert books.releases <= 3

    def test_of_more_sizes_in_turns_than_fit_so_many_stay_as_do(self, books: Books, preparation: Preparation) -> None:
        books.room = 4
        finish(preparation)
        turns = [PictureShape(side, side, 64) for side in (32, 48, 80, 96, 112)]
        with_idle_time(preparation, books, *turns * 5)
        kept, releases = set(books.prepared), books.releases
        with_idle_time(preparation, books, *turns * 2)
        assert (books.prepared, books.releases) == (kept, releases)
        assert kept < set(turns)

    def test_only_where_memory_ran_out_it_is_given_back(self, books: Books, preparation: Preparation) -> None:
        """It takes time, and what takes the others' place needs it at once."""
        books.room = 4
        finish(preparation)
        assert (books.releases, books.given_back) == (1, 1)
        with_idle_time(preparation, books, *[PictureShape(*WIDE, 64)] * 2)
        assert (books.releases, books.given_back) == (2, 1)

    def test_going_to_and_fro_between_what_is_kept_gives_nothing_up(
        self, books: Books, preparation: Preparation
    ) -> None:
        """A prompt's other length, which nobody asked for, is no reason to."""
        books.room = 4
        finish(preparation)
        turns = [PictureShape(*WIDE, 64), PictureShape(48, 48, 64)]
        first, second = turns
        with_idle_time(preparation, books, first, first, second, second)
        assert set(turns) < books.prepared
        releases = books.releases
        with_idle_time(preparation, books, *[first, first, second, second] * (FIRST_PATIENCE // 4))
        assert books.releases == releases

    def test_what_is_asked_for_twice_does_and_its_size_with_it(self, books: Books, preparation: Preparation) -> None:
        books.room = 4
        finish(preparation)
        for _ in range(2):
            asked(preparation, books, PictureShape(*WIDE, 64))
        finish(preparation)
        assert len(books.prepared) == 4
        assert {PictureShape(*WIDE, tokens) for tokens in CAPTION_TOKENS} < books.prepared
        assert (books.releases, books.times_out_of_memory) == (2, 1)  # room is made, not found wanting

    def test_one_that_does_not_fit_alone_is_left_and_holds_nothing(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.prepared.clear()
        books.too_large.add(SMALL)
        finish(preparation)
        assert books.residue == 0
        assert books.prepared == {PictureShape(*size, tokens) for size in (LARGE, WIDE) for tokens in CAPTION_TOKENS}

    def test_a_picture_that_others_are_given_up_for_leaves_one_less(
        self, books: Books, preparation: Preparation
    ) -> None:
        finish(preparation)
        books.beside = 5
        with_idle_time(preparation, books, *[PictureShape(*SMALL, 32)] * 4)
        assert len(books.prepared) == 5
        assert PictureShape(*SMALL, 32) in books.prepared
        assert books.releases == 1

    def test_a_picture_that_finds_no_memory_beside_its_own_is_not_prepared_for(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.room, books.beside = 1, 0
        finish(preparation)
        with_idle_time(preparation, books, *[PictureShape(*SMALL, 32)] * 6)
        assert not books.prepared & SMALLS

    def test_a_size_that_finds_no_memory_beside_any_other_does_not_run_out_each_time(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.beside = 0
        finish(preparation)
        with_idle_time(preparation, books, *[PictureShape(*SMALL, 32)] * 12)
        assert books.prepared == set()
        releases = books.releases
        with_idle_time(preparation, books, *[PictureShape(*SMALL, 32)] * FIRST_PATIENCE)
        assert books.releases == releases

    def test_one_that_is_given_up_for_another_size_is_kept_all_the_same(
        self, books: Books, preparation: Preparation
    ) -> None:
        books.room, books.beside = 1, 0
        finish(preparation)
        with_idle_time(preparation, books, PictureShape(*WIDE, 32))
        assert books.prepared == {PictureShape(*SMALL, 32)}

    def test_a_request_that_failed_changes_nothing(self, books: Books, preparation: Preparation) -> None:
        finish(preparation)
        preparation.interrupt()
        preparation.ran_out()
        books.release(ran_out=True)  # as the engine does then, to no avail
        asked(preparation, books, PictureShape(*SMALL, 32))
        finish(preparation)
        assert len(books.prepared) == 6

    def test_after_some_pictures_one_more_is_tried(self, books: Books, preparation: Preparation) -> None:
        books.room = 4
        finish(preparation)
        books.room = 5  # another program is gone
        with_idle_time(preparation, books, *[PictureShape(*SMALL, 32)] * (2 * FIRST_PATIENCE))
        assert len(books.prepared) == 5

    @pytest.mark.parametrize("room", range(7))
    def test_whatever_fits_it_comes_to_an_end(self, books: Books, preparation: Preparation, room: int) -> None:
        books.room = room
        books.prepared.clear()
        for size in (SMALL, WIDE, LARGE, WIDE, (48, 48)):
            with_idle_time(preparation, books, *[PictureShape(*size, 64)] * 3)
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
    for tokens in range(32, 32 * (KEPT_SEEN + 2), 32):
        preparation.made(PictureShape(48, 48, tokens))
    finish(preparation)
    assert (16, 16, 32) not in states(preparation)
    assert len(preparation.statuses()) == 2 * len(PROFILE.sizes) + KEPT_SEEN
    books.done.clear()
    preparation.made(PictureShape(16, 16, 32))  # by now it may work
    finish(preparation)
    assert books.recorded == [PictureShape(16, 16, 32)]


class Bounded(Books):
    """Keeps what it prepared as the engine's parts do: no more than may be known, those that were drawn last."""

    def __init__(self) -> None:
        super().__init__()
        recorder = ReplayingRecorder()
        self.kept = Recordings[PictureShape, str](
            len(PROFILE.sizes) * len(CAPTION_TOKENS) + KEPT_SEEN, recorder, ["way"]
        )

    def is_prepared(self, shape: PictureShape) -> bool:
        return shape in self.kept

    def keep_only(self, shapes: Collection[PictureShape]) -> None:
        self.kept.keep_only(shapes.__contains__)

    def make(self, preparation: Preparation) -> None:
        pass

    def _do(self, piece: str, shape: PictureShape) -> None:
        self.done.append((piece, shape))
        if piece == "graph":
            self.kept.prepare(shape, lambda way, recorder: torch.clone, str(shape))


def test_however_many_sizes_are_asked_for_what_stays_known_is_prepared_once() -> None:
    books = Bounded()
    preparation = Preparation(books, PROFILE)
    finish(preparation)
    others = [PictureShape(16 * number, 64, 32) for number in range(9, 9 + 3 * KEPT_SEEN)]
    for shape in others:
        asked(preparation, books, shape)
        finish(preparation)
    first = [PictureShape(*size, tokens) for size in PROFILE.sizes for tokens in CAPTION_TOKENS]
    assert books.recorded == [*first, *others]
    assert all(map(books.is_prepared, [*first, *others[-KEPT_SEEN:]]))
    assert not any(map(books.is_prepared, others[:-KEPT_SEEN]))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_engine_keeps_all_that_is_asked_for_at_a_time(profile: ModelProfile) -> None:
    """Or preparing one would drop another, which would be prepared again."""
    assert len(profile.sizes) * len(CAPTION_TOKENS) + KEPT_SEEN <= denoiser._KEPT_PASSES
    assert len(profile.sizes) + KEPT_SEEN <= vae._KEPT_SIZES
    assert len(CAPTION_TOKENS) + KEPT_SEEN <= text_encoder._KEPT_LENGTHS
