"""A block's tensors in one piece of memory: the same values, the same views, whatever they are stored in."""

from dataclasses import dataclass

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast.block import block_weights
from zimage_ui.generator.fast.flat import FlatLayout
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection

pytestmark = pytest.mark.model


@dataclass(frozen=True, slots=True)
class ScaledProjection:
    """Like a quantised one: bytes in column order, a scale for each row, and a constant."""

    weight: torch.Tensor
    scale: torch.Tensor
    limit: float

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        return values @ (self.weight.float() * self.scale).to(values.dtype)


def scaled(inputs: int, outputs: int) -> ScaledProjection:
    weight = torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8).t()
    return ScaledProjection(weight, torch.rand(outputs), 127.0)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def block():
    return random_transformer(n_layers=1).layers[0]


def test_what_moved_computes_the_same_and_the_stock_block_with_it(block, noise):
    weights, states = block_weights(block), {name: value.clone() for name, value in block.state_dict().items()}
    layout = FlatLayout(weights.projections)
    memory = torch.zeros(layout.size_bytes, dtype=torch.uint8)
    values = noise(2, 5, 96)
    expected = weights.projections.query_key_value(values)
    moved = layout.moved(weights.projections, memory, block)
    assert torch.equal(moved.query_key_value(values), expected)
    assert all(torch.equal(value, states[name]) for name, value in block.state_dict().items())
    inside = {
        name for name, parameter in block.named_parameters()
        if parameter.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()
    }  # fmt: skip
    assert inside == {
        *(f"attention.{name}.weight" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        *(f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")),
    }


def test_it_is_found_fused_again(block):
    weights = block_weights(block)
    layout = FlatLayout(weights.projections)
    moved = layout.moved(weights.projections, torch.zeros(layout.size_bytes, dtype=torch.uint8), block)
    again = block_weights(block).projections
    for one, other in zip(moved, again, strict=True):
        assert isinstance(one, PlainProjection)
        assert isinstance(other, PlainProjection)
        assert one.weight.data_ptr() == other.weight.data_ptr()


def test_quantised_projections_keep_strides_scales_and_constants(noise):
    projections = BlockProjections(scaled(8, 24), scaled(8, 8), scaled(8, 42), scaled(21, 8))
    layout = FlatLayout(projections)
    moved = layout.moved(projections, torch.zeros(layout.size_bytes, dtype=torch.uint8), torch.nn.Identity())
    for old, new in zip(projections, moved, strict=True):
        assert isinstance(old, ScaledProjection)
        assert isinstance(new, ScaledProjection)
        assert new.weight.stride() == old.weight.stride()
        assert new.limit == old.limit
        values = noise(3, old.weight.shape[0])
        assert torch.equal(new(values), old(values))


def test_every_tensor_is_aligned_for_kernels_and_little_is_lost():
    projections = BlockProjections(scaled(7, 3), scaled(5, 1), scaled(9, 11), scaled(1, 1))
    layout = FlatLayout(projections)
    assert all(place.begin % 256 == 0 for place in layout.places)
    assert layout.size_bytes < 8 * 256


def test_equal_blocks_share_a_layout():
    first, second = (block_weights(layer).projections for layer in random_transformer(n_layers=2).layers)
    assert FlatLayout(first).places == FlatLayout(second).places
