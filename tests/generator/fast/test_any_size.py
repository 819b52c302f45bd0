"""Compiled functions of tensors of many sizes: how often they compile, either way."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from zimage_ui.generator.fast.any_size import compiled, compiled_as_they_come

pytestmark = pytest.mark.model

LIMIT = 8


@pytest.fixture
def counter():
    """Of compilations, from none."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=LIMIT):
        yield CompileCounter()
    torch._dynamo.reset()


def scaled(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return 2 * values * weights


def padded(packed: tuple[torch.Tensor, float], length: int) -> torch.Tensor:
    values, factor = packed
    return torch.cat((factor * values, values.new_zeros(length - len(values))))


def test_extents_that_are_told_to_vary_are_compiled_once(counter):
    run = compiled(scaled, varying={0: (0,)}, backend=counter)
    for rows in (6, 4, 9):
        assert torch.equal(run(torch.ones(rows, 3), torch.ones(3)), torch.full((rows, 3), 2.0))
    assert counter.frame_count == 1


def test_any_other_extent_compiles_anew(counter):
    run = compiled(scaled, varying={0: (0,)}, backend=counter)
    for columns in (3, 5):
        run(torch.ones(6, columns), torch.ones(columns))
    assert counter.frame_count == 2


def test_whatever_varies_is_found_out_by_a_few_calls(counter):
    run = compiled_as_they_come(padded, backend=counter)
    found = [run((torch.ones(rows), 3.0), 2 * rows + more) for rows, more in ((4, 1), (6, 5), (9, 2), (7, 7), (12, 3))]
    assert [(len(each), float(each.sum())) for each in found] == [(9, 12), (17, 18), (20, 27), (21, 21), (27, 36)]
    assert counter.frame_count <= 3


def test_finding_out_may_take_more_calls_than_torch_allows_by_itself(counter):
    compiled_as_they_come(scaled, backend=counter)
    assert torch._dynamo.config.recompile_limit > LIMIT
