"""The parts of a pass that are not blocks: captions, entry and exit."""

import pytest

from zimage_ui.generator.fast.projections import PackedProjection, PlainProjection
from zimage_ui.generator.fast.step import StepNetwork

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


def test_it_knows_its_sizes(network):
    assert (network.dim, network.heads_shape, network.row_count) == (96, (2, 48), 4 * 5 + 1)
