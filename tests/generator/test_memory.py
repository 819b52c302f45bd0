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
