"""What people ask for, in what order that is worth preparing, and what may take the place of what."""

import pytest

from zimage_ui.generator.demand import KEPT_SEEN, Demand
from zimage_ui.generator.fast.shapes import PictureShape

SMALL, LARGE, WIDE = ((64, 64), (128, 128), (128, 64))
PRESETS = [PictureShape(*size, tokens) for size in (SMALL, LARGE, WIDE) for tokens in (32, 64)]
OWN, OTHER = PictureShape(48, 48, 32), PictureShape(80, 80, 32)


@pytest.fixture
def demand() -> Demand:
    return Demand(PRESETS)


def ask(demand: Demand, *shapes: PictureShape) -> None:
    """A request for each."""
    for shape in shapes:
        demand.made(shape)


def test_before_anybody_asks_it_is_the_profiles_order(demand):
    assert demand.by_worth() == demand.by_worth_where_few_fit() == demand.known() == tuple(PRESETS)


def test_the_last_one_comes_first_then_its_size_then_what_was_asked_for_then_the_rest(demand):
    ask(demand, OWN, PictureShape(*LARGE, 64))
    first = [PictureShape(*LARGE, 64), PictureShape(*LARGE, 32), OWN]
    assert demand.by_worth() == (*first, *(shape for shape in PRESETS if shape not in first))


def test_where_few_fit_what_was_asked_for_once_comes_last(demand):
    ask(demand, OWN)
    assert demand.by_worth_where_few_fit() == (*PRESETS, OWN)


def test_where_few_fit_what_was_asked_for_twice_comes_first_then_the_last_ones_size(demand):
    wide = PictureShape(*WIDE, 64)
    ask(demand, OWN, wide, OWN, wide)
    assert demand.by_worth_where_few_fit()[:3] == (wide, OWN, PictureShape(*WIDE, 32))


def test_once_takes_no_place(demand):
    ask(demand, OWN)
    assert not demand.takes_a_place(OWN, PRESETS)


def test_three_times_in_a_row_takes_that_of_what_is_in_use_too(demand):
    ask(demand, OTHER, OTHER, OWN, OWN)
    assert not demand.takes_a_place(OWN, [OTHER])
    ask(demand, OWN)
    assert demand.takes_a_place(OWN, [OTHER])


def test_twice_of_late_takes_that_of_what_nobody_asked_for(demand):
    ask(demand, OWN, OTHER, OWN)
    assert demand.takes_a_place(OWN, [OTHER, PRESETS[0]])
    assert not demand.takes_a_place(OWN, [OTHER])


def test_what_was_asked_for_long_ago_is_not_in_use(demand):
    ask(demand, OWN, OWN)
    assert demand.is_in_use(OWN)
    ask(demand, *[OTHER] * 2 * KEPT_SEEN)
    assert not demand.is_in_use(OWN)


def test_a_request_with_guidance_counts_once_for_each_of_its_two_shapes(demand):
    demand.made(OTHER, OWN)
    assert not demand.is_in_use(OWN)
    assert demand.by_worth()[:2] == (OWN, OTHER)
    for _ in range(2):
        assert not demand.takes_a_place(OWN, [OTHER])
        demand.made(OTHER, OWN)
    assert demand.takes_a_place(OWN, [OTHER])
    assert demand.takes_a_place(OTHER, [OWN])


def test_sizes_of_no_profile_are_forgotten_but_for_the_last(demand):
    ask(demand, *(PictureShape(16 * side, 16, 32) for side in range(1, KEPT_SEEN + 3)))
    assert len(demand.known()) == len(PRESETS) + KEPT_SEEN
    assert demand.known()[len(PRESETS)] == PictureShape(16 * (KEPT_SEEN + 2), 16, 32)
