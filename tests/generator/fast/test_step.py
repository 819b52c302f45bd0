"""The parts of a pass that are not blocks: captions, entry and exit."""

from types import SimpleNamespace

import pytest
import torch

from zimage_ui.generator.fast import parts, step
from zimage_ui.generator.fast.product_kernels import ProductKernels
from zimage_ui.generator.fast.projections import PackedProjection, PlainProjection
from zimage_ui.generator.fast.rotary import shape_rotary
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import EAGER, TRITON, PassPlan, StepNetwork

pytestmark = pytest.mark.model


@pytest.fixture
def network(transformer):
    return StepNetwork(transformer)


def test_the_weights_of_the_model_are_not_doubled(transformer):
    network = StepNetwork(transformer)
    own = {parameter.untyped_storage().data_ptr() for parameter in transformer.parameters()}
    for block in network.context:
        for projection in block.projections:
            assert isinstance(projection, PlainProjection)
            assert projection.weight.untyped_storage().data_ptr() in own


def test_the_blocks_that_every_step_runs_are_packed_on_a_cpu(network):
    for block in (*network.refiner, *network.layers):
        assert all(isinstance(projection, PackedProjection) for projection in block.projections)


def test_both_ends_and_the_joint_are_normed_by_the_parts_of_the_pass(transformer, network, noise, monkeypatch):
    """Where those are kernels, they are kernels here, too, and read rows that a picture's captions lie between."""
    met = []

    def rms_normed(values, scale, eps, reader):
        assert values.stride(-1) == 1
        met.append(("rms", tuple(values.shape)))
        return parts.rms_normed(values, scale, eps, reader)

    def layer_normed(values, scale, eps):
        assert values.stride(-1) == 1
        met.append(("layer", tuple(values.shape)))
        return parts.layer_normed(values, scale, eps)

    kernels = SimpleNamespace(**vars(parts) | {"rms_normed": rms_normed, "layer_normed": layer_normed})
    monkeypatch.setattr(step, "parts_by", lambda *, triton: kernels if triton else parts)
    shape = DenoiserShape(10, 14, 32, pictures=2)
    rotary = shape_rotary(transformer.rope_embedder, shape, torch.device("cpu"))
    rows = 1 + 0.1 * noise(network.row_count, 96, seed=1)
    captions = noise(1, 32, 96, seed=2).expand(2, -1, -1)
    # As run_block is what asks for those of a block, theirs stay torch's here.
    by_kernels = TRITON._replace(block=lambda *arguments: EAGER.block(*arguments[:-1]))
    found, expected = (
        network.velocity(PassPlan(shape, rotary, functions=functions), noise(2, 16, 10, 14), rows, captions)
        for functions in (by_kernels, EAGER)
    )
    assert met == [("rms", (2, 64, 96)), ("rms", (2, 32, 96)), ("layer", (2, 35, 96))]
    assert torch.equal(found, expected)


def test_the_blocks_before_the_caption_joins_multiply_by_kernels_for_the_images_tokens(transformer, network, noise):
    asked = []

    def block(tokens, normed, weights, rows, rotary, kept, kernels):
        asked.append((tokens.shape[1], kernels.products.down, kernels.gate_tile))
        return EAGER.block(tokens, normed, weights, rows, rotary, kept)

    shape = DenoiserShape(10, 14, 32)
    rotary = shape_rotary(transformer.rope_embedder, shape, torch.device("cpu"))
    functions = EAGER._replace(block=block)
    plan = PassPlan(
        shape, rotary, None, functions, "128x192", ProductKernels(down="whole"), ProductKernels(down="image")
    )
    rows = 1 + 0.1 * noise(network.row_count, 96, seed=1)
    network.velocity(plan, noise(1, 16, 10, 14), rows, noise(1, 32, 96, seed=2))
    assert asked[: len(network.refiner)] == [(64, "image", "128x192")] * len(network.refiner)
    assert asked[len(network.refiner) :] == [(96, "whole", "128x192")] * len(network.layers)


def test_it_knows_its_sizes(network):
    assert (network.dim, network.heads_shape, network.row_count) == (96, (2, 48), 4 * 5 + 1)
