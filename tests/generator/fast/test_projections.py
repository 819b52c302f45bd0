"""Fused and packed projections: the stock products, and no memory used twice."""

import pytest
import torch
from torch import nn

from tests.generator.fast.conftest import random_transformer, stock_products
from zimage_ui.generator.fast.projections import (
    FUSED,
    PackedProjection,
    PlainProjection,
    block_projections,
    fused,
    fused_names,
    packed,
    packing_pays,
)

pytestmark = pytest.mark.model


@pytest.fixture
def block():
    return random_transformer(n_layers=1).layers[0]


def test_they_compute_what_the_stock_layers_compute(block, noise):
    values, hidden = noise(2, 7, 96), noise(2, 7, 256)
    expected = stock_products(block, values, hidden)
    plain = block_projections(block)
    for projections in (plain, packed(plain)):
        for name, product in expected.items():
            computed = getattr(projections, name)(hidden if name == "down" else values)
            assert torch.allclose(computed, product, atol=1e-5), name


def test_the_stock_layers_become_views_and_keep_their_values(block, noise):
    layers = (block.attention.to_q, block.attention.to_k, block.attention.to_v)
    values = noise(3, 96)
    before = [layer(values) for layer in layers]
    whole, _ = fused(block, FUSED)
    storages = {layer.weight.untyped_storage().data_ptr() for layer in layers}
    assert storages == {whole.untyped_storage().data_ptr()}
    assert whole.untyped_storage().nbytes() == sum(layer.weight.nbytes for layer in layers)
    assert all(isinstance(layer.weight, nn.Parameter) for layer in layers)
    for layer, expected in zip(layers, before, strict=True):
        assert torch.equal(layer(values), expected)


def test_what_was_fused_is_found_again(block):
    for first, second in zip(fused(block, FUSED), fused(block, FUSED), strict=True):
        assert second.data_ptr() == first.data_ptr()
        assert torch.equal(second, first)
        assert not second._is_view()


def test_layers_that_share_storage_in_another_order_are_not_taken_for_fused(block):
    _, gate_up = FUSED
    fused(block, [gate_up])
    expected = torch.cat((block.feed_forward.w3.weight, block.feed_forward.w1.weight))
    (found,) = fused(block, [gate_up[::-1]])
    assert torch.equal(found, expected)


def test_names_of_all_that_is_fused_are_told_for_a_whole_model():
    with torch.device("meta"):
        model = random_transformer(n_layers=2, n_refiner_layers=1)
    names = fused_names(model, FUSED)
    blocks = ("noise_refiner.0", "context_refiner.0", "layers.0", "layers.1")
    assert sorted(names) == sorted(tuple(f"{block}.{name}" for name in group) for block in blocks for group in FUSED)


def test_packing_is_for_small_models_on_a_cpu_in_fp32(block, monkeypatch):
    assert packing_pays(block)
    assert not packing_pays(random_transformer(n_layers=1).bfloat16())
    monkeypatch.setattr("zimage_ui.generator.fast.projections._PACKING_LIMIT_BYTES", 1000)
    assert not packing_pays(block)


def test_what_is_no_plain_matrix_is_not_packed(block):
    projections = block_projections(block)
    once = packed(projections)
    assert all(isinstance(projection, PlainProjection) for projection in projections)
    assert all(isinstance(projection, PackedProjection) for projection in once)
    assert packed(once) == once
