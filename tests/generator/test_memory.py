"""Which plan a load starts with."""

import pytest
import torch

from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.memory import MemoryLadder, counted, release_memory, start_counting

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RESIDENT, OFFLOADED, TILED, STREAMED, SMALLEST = MemoryPlan


def test_starts_with_the_plan_chosen_at_load():
    assert MemoryLadder(RESIDENT, CUDA).plan_for(10**9) is RESIDENT
    assert MemoryLadder(OFFLOADED, CUDA).plan_for(1) is OFFLOADED


def test_goes_down_rung_by_rung_to_the_last():
    ladder = MemoryLadder(RESIDENT, CUDA)
    assert ladder.ran_out(RESIDENT, 100) is OFFLOADED
    assert ladder.ran_out(OFFLOADED, 100) is STREAMED  # tiles do not help the transformer
    assert ladder.ran_out(STREAMED, 100) is SMALLEST
    assert ladder.ran_out(SMALLEST, 100) is None
    assert ladder.plan_for(100) is SMALLEST
    assert ladder.plan_for(99) is RESIDENT


def test_remembers_what_was_too_much_and_lets_smaller_loads_be_fast():
    ladder = MemoryLadder(RESIDENT, CUDA)
    ladder.ran_out(RESIDENT, 100)
    assert ladder.plan_for(100) is OFFLOADED
    assert ladder.plan_for(200) is OFFLOADED
    assert ladder.plan_for(99) is RESIDENT
    ladder.ran_out(RESIDENT, 150)
    assert ladder.plan_for(120) is OFFLOADED  # the smallest failure counts


def test_what_is_known_beforehand_is_not_tried():
    ladder = MemoryLadder(RESIDENT, CUDA)
    assert ladder.plan_for(100, lambda plan: plan is not RESIDENT) is OFFLOADED
    assert ladder.plan_for(100, lambda plan: False) is SMALLEST
    assert ladder.plan_for(100) is RESIDENT  # nothing was remembered


def test_what_fails_to_decode_needs_tiles_at_once():
    ladder = MemoryLadder(RESIDENT, CUDA)
    assert ladder.ran_out(RESIDENT, 100, decoding=True) is TILED
    assert ladder.plan_for(100) is TILED
    assert ladder.plan_for(99) is RESIDENT
    assert ladder.ran_out(TILED, 100, decoding=True) is SMALLEST
    assert ladder.ran_out(SMALLEST, 100, decoding=True) is None


def test_a_streamed_picture_that_cannot_be_decoded_needs_tiles_too():
    ladder = MemoryLadder(STREAMED, CUDA)
    assert ladder.ran_out(STREAMED, 100, decoding=True) is SMALLEST
    assert ladder.plan_for(99) is STREAMED


def test_the_transformer_running_out_beside_tiles_is_streamed():
    ladder = MemoryLadder(RESIDENT, CUDA)
    ladder.ran_out(RESIDENT, 100, decoding=True)
    assert ladder.ran_out(TILED, 100) is STREAMED


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
    assert made(ladder, 100, TILED) > 1
    assert ladder.plan_for(100) is OFFLOADED  # one rung: should it fail, one is left to fall back to
    assert made(ladder, 100, OFFLOADED) > 1
    assert ladder.plan_for(100) is RESIDENT
    assert made(ladder, 100, RESIDENT) == 1000


def test_a_plan_that_fails_again_and_again_is_tried_ever_less_often():
    ladder = MemoryLadder(OFFLOADED, CUDA)
    waits = []
    for _ in range(6):
        ladder.ran_out(OFFLOADED, 100)
        waits.append(made(ladder, 100, STREAMED))
    assert waits == [8, 16, 32, 64, 64, 64]


def test_on_a_cpu_offloading_is_no_rung():
    ladder = MemoryLadder(RESIDENT, CPU)
    assert ladder.ran_out(RESIDENT, 100) is TILED
    assert ladder.ran_out(TILED, 100) is None


@pytest.mark.parametrize(
    ("plan", "smaller", "keeps", "tiles", "streams"),
    [
        (RESIDENT, OFFLOADED, True, False, False),
        (OFFLOADED, STREAMED, False, False, False),
        (TILED, STREAMED, False, True, False),
        (STREAMED, SMALLEST, False, False, True),
        (SMALLEST, None, False, True, True),
    ],
)
def test_plans_know_what_they_mean(plan, smaller, keeps, tiles, streams):
    assert (plan.smaller, plan.keeps_text_encoder) == (smaller, keeps)
    assert (plan.tiles_decode, plan.streams_transformer) == (tiles, streams)


@pytest.mark.parametrize(
    ("plan", "layers", "chosen", "streamed"),
    [
        (OFFLOADED, 30, 0, 0),
        (TILED, 30, 7, 0),
        (STREAMED, 30, 7, 7),
        (STREAMED, 30, 0, 15),
        (STREAMED, 4, 0, 0),  # two slots for two layers would save nothing
        (SMALLEST, 30, 7, 30),
        (SMALLEST, 2, 0, 0),
    ],
)
def test_plans_know_how_many_layers_they_stream(plan, layers, chosen, streamed):
    assert plan.streamed_layers(layers, chosen) == streamed


def test_a_cpu_keeps_no_count():
    start_counting(CPU)
    release_memory(CPU)
    assert counted(CPU) is None
