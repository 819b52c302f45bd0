"""Which plan a load starts with."""

import pytest
import torch

from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.memory import MemoryLadder, counted, release_memory, start_counting

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RESIDENT, OFFLOADED, SMALLEST = MemoryPlan


def test_starts_with_the_plan_chosen_at_load():
    assert MemoryLadder(RESIDENT, CUDA).plan_for(10**9) is RESIDENT
    assert MemoryLadder(OFFLOADED, CUDA).plan_for(1) is OFFLOADED


def test_goes_down_rung_by_rung_to_the_last():
    ladder = MemoryLadder(RESIDENT, CUDA)
    assert ladder.ran_out(RESIDENT, 100) is OFFLOADED
    assert ladder.ran_out(OFFLOADED, 100) is SMALLEST
    assert ladder.ran_out(SMALLEST, 100) is None
    assert ladder.plan_for(100) is SMALLEST


def test_remembers_what_was_too_much_and_lets_smaller_loads_be_fast():
    ladder = MemoryLadder(RESIDENT, CUDA)
    ladder.ran_out(RESIDENT, 100)
    assert ladder.plan_for(100) is OFFLOADED
    assert ladder.plan_for(200) is OFFLOADED
    assert ladder.plan_for(99) is RESIDENT
    ladder.ran_out(RESIDENT, 150)
    assert ladder.plan_for(120) is OFFLOADED  # the smallest failure counts


def test_what_fails_to_decode_needs_tiles_at_once():
    ladder = MemoryLadder(RESIDENT, CUDA)
    assert ladder.ran_out(RESIDENT, 100, decoding=True) is SMALLEST
    assert ladder.plan_for(100) is SMALLEST
    assert ladder.plan_for(99) is RESIDENT
    assert ladder.ran_out(SMALLEST, 100, decoding=True) is None


def made(ladder: MemoryLadder, pixels: int, plan: MemoryPlan) -> int:
    """How many jobs of `pixels` go well with `plan` before another one is tried."""
    jobs = 0
    while ladder.plan_for(pixels) is plan and jobs < 1000:
        ladder.went_well(plan)
        jobs += 1
    return jobs


def test_after_some_good_jobs_the_next_faster_plan_gets_another_chance():
    ladder = MemoryLadder(RESIDENT, CUDA)
    ladder.ran_out(RESIDENT, 100, decoding=True)
    assert made(ladder, 100, SMALLEST) > 1
    assert ladder.plan_for(100) is OFFLOADED  # one rung: should it fail, one is left to fall back to
    assert made(ladder, 100, OFFLOADED) > 1
    assert ladder.plan_for(100) is RESIDENT
    assert made(ladder, 100, RESIDENT) == 1000


def test_a_plan_that_fails_again_and_again_is_tried_ever_less_often():
    ladder = MemoryLadder(OFFLOADED, CUDA)
    waits = []
    for _ in range(6):
        ladder.ran_out(OFFLOADED, 100)
        waits.append(made(ladder, 100, SMALLEST))
    assert waits == [8, 16, 32, 64, 64, 64]


def test_on_a_cpu_offloading_is_no_rung():
    assert MemoryLadder(RESIDENT, CPU).ran_out(RESIDENT, 100) is SMALLEST


@pytest.mark.parametrize(
    ("plan", "smaller", "keeps", "tiles"),
    [(RESIDENT, OFFLOADED, True, False), (OFFLOADED, SMALLEST, False, False), (SMALLEST, None, False, True)],
)
def test_plans_know_what_they_mean(plan, smaller, keeps, tiles):
    assert (plan.smaller, plan.keeps_text_encoder, plan.tiles_decode) == (smaller, keeps, tiles)


def test_a_cpu_keeps_no_count():
    start_counting(CPU)
    release_memory(CPU)
    assert counted(CPU) is None
