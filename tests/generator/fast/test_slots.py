"""No slot is read before its copy is complete or overwritten while it is read, in any order that marks allow."""

import pytest
import torch

from tests.generator.fast.two_streams import SimulatedTransfer, any_order, copies_dawdle, copies_rush
from zimage_ui.generator.components import STREAM_SLOTS
from zimage_ui.generator.fast.slots import SlotRing

pytestmark = pytest.mark.model

POLICIES = [copies_dawdle, copies_rush, *map(any_order, range(30))]
IDS = ["copies dawdle", "copies rush", *(f"order {seed}" for seed in range(30))]


def sources(count: int, size_bytes: int = 64) -> list[torch.Tensor]:
    return [torch.full((size_bytes,), place + 1, dtype=torch.uint8) for place in range(count)]


def computed(transfer: SimulatedTransfer, count: int, rounds: int, policy) -> list[tuple[int, set[int], set[int]]]:
    """(place, bytes at the start of the work, bytes at its end) of everything that was computed."""
    seen: list[tuple[int, set[int], set[int]]] = []
    ring = SlotRing(sources(count), transfer)
    for place in list(range(count)) * rounds:
        slot, begun = ring.slots[ring.acquire(place)], []
        transfer.compute(lambda slot=slot, begun=begun: begun.append(set(slot.tolist())))
        transfer.compute(lambda place=place, slot=slot, begun=begun: seen.append((place, begun[0], set(slot.tolist()))))
        ring.release()
    transfer.run(policy)
    return seen


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
@pytest.mark.parametrize("count", [3, 4, 7])
def test_each_work_reads_its_own_source_from_beginning_to_end(policy, count):
    seen = computed(SimulatedTransfer(), count, 3, policy)
    assert seen == [(place, {place + 1}, {place + 1}) for place in list(range(count)) * 3]


@pytest.mark.parametrize("careless", ["copies", "computing"])
def test_the_slow_motion_shows_a_wait_that_is_forgotten(careless):
    def right(policy) -> bool:
        seen = computed(SimulatedTransfer(careless), 5, 2, policy)
        return all(begun == ended == {place + 1} for place, begun, ended in seen)

    assert not all(map(right, POLICIES))


def test_copies_run_ahead_of_the_computing_and_into_the_next_round():
    transfer = SimulatedTransfer()
    ring = SlotRing(sources(4), transfer)
    for place in range(4):
        ring.acquire(place)
        ring.release()
    transfer.run(copies_rush)
    assert [set(slot.tolist()) for slot in ring.slots] == [{1}, {2}]


def test_there_are_no_more_slots_than_said():
    assert len(SlotRing(sources(9), SimulatedTransfer()).slots) == STREAM_SLOTS


def test_so_few_sources_that_slots_save_nothing_are_a_mistake():
    with pytest.raises(AssertionError, match="no more memory"):
        SlotRing(sources(STREAM_SLOTS), SimulatedTransfer())


def test_sources_of_different_lengths_share_slots():
    transfer = SimulatedTransfer()
    ring = SlotRing([torch.full((size,), size, dtype=torch.uint8) for size in (8, 32, 16)], transfer)
    assert {slot.nbytes for slot in ring.slots} == {32}
    slot = ring.slots[ring.acquire(0)]
    transfer.run(copies_rush)
    assert set(slot[:8].tolist()) == {8}


@pytest.mark.parametrize("policy", POLICIES, ids=IDS)
@pytest.mark.parametrize("failed_at", [0, 1, 4])
def test_after_a_failure_half_way_the_next_round_begins_at_the_beginning(policy, failed_at):
    transfer, seen = SimulatedTransfer(), []
    ring = SlotRing(sources(5), transfer)
    for place in range(failed_at):
        ring.acquire(place)
        ring.release()
    ring.acquire(failed_at)  # and never released
    for place in range(5):
        slot = ring.slots[ring.acquire(place)]
        transfer.compute(lambda slot=slot: seen.append(set(slot.tolist())))
        ring.release()
    transfer.run(policy)
    assert seen == [{place + 1} for place in range(5)]
