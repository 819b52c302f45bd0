"""The gated product: the stock one, the optional kernel behind a stand-in, and the choice between them."""

from types import SimpleNamespace

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast import gate, parts
from zimage_ui.generator.fast.choices import Choices
from zimage_ui.generator.fast.gate import GATE_TILES, PLAIN, fastest_gate_tile, gate_times_ms, gated
from zimage_ui.generator.fast.lossy_projections import lossy
from zimage_ui.generator.fast.projections import block_projections, packed
from zimage_ui.request import Precision

pytestmark = pytest.mark.model


@pytest.fixture
def feed_forward():
    return random_transformer(n_layers=1).layers[0]


@pytest.fixture
def kernel(monkeypatch):
    """Stands in for quack's on a CPU; keeps the tiles that were asked for."""
    asked = []

    def gated_product(values, weight, tile):
        asked.append(tile)
        first, second = (values @ weight.t()).chunk(2, -1)
        return torch.sigmoid(first) * first * second

    monkeypatch.setattr(gate.cute_kernels, "gated_product", gated_product)
    monkeypatch.setattr(gate, "has_gated_product", lambda weight: True)
    made = Choices()
    monkeypatch.setattr(gate, "kernel_choices", lambda: made)
    return asked


def test_it_is_the_stock_gate_in_every_way(feed_forward, noise, kernel):
    stock, values = feed_forward.feed_forward, noise(2, 7, 96)
    expected = torch.nn.functional.silu(stock.w1(values)) * stock.w3(values)
    plain = block_projections(feed_forward)
    for projections, tile in ((plain, None), (packed(plain), None), (plain, "128x192")):
        assert torch.allclose(gated(projections, values, parts, tile), expected, atol=1e-5)
    assert kernel == ["128x192"]


def test_what_is_no_plain_matrix_has_no_choice(feed_forward, noise, kernel):
    plain = block_projections(feed_forward)
    for projections in (packed(plain), lossy(plain, Precision.INT8)):
        gated(projections, projections.gate_up.read(noise(1, 32, 96)), parts, GATE_TILES[0])
        assert fastest_gate_tile(projections, 32, parts) is None
    assert kernel == []


def test_in_four_bits_the_unpacked_matrix_has_the_choice_of_a_plain_one(feed_forward, noise, kernel, monkeypatch):
    projections, values = lossy(block_projections(feed_forward), Precision.NF4), noise(2, 7, 96)
    monkeypatch.setattr(gate, "in_turns_ms", in_turns({PLAIN: 1.0, GATE_TILES[0]: 0.5}))
    assert fastest_gate_tile(projections, 14, parts) == GATE_TILES[0]
    kernel.clear()
    expected = gated(projections, values, parts)
    assert kernel == []
    assert torch.allclose(gated(projections, values, parts, GATE_TILES[0]), expected, atol=1e-5)
    assert kernel == [GATE_TILES[0]]


def test_where_the_library_is_missing_there_is_nothing_to_choose(feed_forward):
    assert fastest_gate_tile(block_projections(feed_forward), 32, parts) is None


def in_turns(times_ms):
    """Stands in for measuring: the time of each tile, and of `PLAIN`; those without one fail."""

    def in_turns_ms(runs, device):
        for run in runs.values():
            run()
        return {name: times_ms[name] for name in runs if name in times_ms}

    return in_turns_ms


@pytest.mark.parametrize(
    ("times_ms", "chosen"),
    [((3.0, 4.0, 2.0, 5.0), GATE_TILES[1]), ((1.0, 4.0, 2.0, 5.0), None), ((3.0, None, None, 2.5), GATE_TILES[2])],
)
def test_the_fastest_is_chosen_once_and_what_fails_is_left_out(feed_forward, kernel, monkeypatch, times_ms, chosen):
    names = (PLAIN, *GATE_TILES)
    taken = {name: took for name, took in zip(names, times_ms, strict=True) if took is not None}
    monkeypatch.setattr(gate, "in_turns_ms", in_turns(taken))
    products = block_projections(feed_forward)
    assert fastest_gate_tile(products, 32, parts) == chosen
    monkeypatch.setattr(gate, "in_turns_ms", in_turns({PLAIN: 1.0, GATE_TILES[0]: 0.5}))
    assert fastest_gate_tile(products, 32, parts) == chosen
    assert fastest_gate_tile(products, 64, parts) == GATE_TILES[0]


def test_the_choice_is_of_the_way_that_was_measured(feed_forward, kernel, monkeypatch):
    """A compiler's gate and one of our own take different times, and so do the products before them."""
    ours = SimpleNamespace(**vars(parts))
    products = block_projections(feed_forward)
    monkeypatch.setattr(gate, "compiled_as_they_come", lambda function: function)
    for way, by, fastest in ((parts, None, 2), (ours, None, 0), (ours, "another kernel", 1)):
        monkeypatch.setattr(gate, "in_turns_ms", in_turns({PLAIN: 2.0, GATE_TILES[fastest]: 1.0}))
        assert fastest_gate_tile(products, 32, way, by) == GATE_TILES[fastest]


def test_the_plain_way_is_measured_with_the_kernel_of_its_product(feed_forward, kernel, monkeypatch):
    asked = []

    def multiplied(projection, activations, by):
        asked.append(by)
        return projection(activations)

    monkeypatch.setattr(gate, "multiplied", multiplied)
    monkeypatch.setattr(gate, "in_turns_ms", in_turns({PLAIN: 1.0}))
    ours = SimpleNamespace(**vars(parts))
    assert gate_times_ms(block_projections(feed_forward), 32, ours, "another kernel") == {PLAIN: 1.0}
    assert asked == ["another kernel"]


def test_a_full_memory_says_nothing_of_a_kernel(feed_forward, kernel, monkeypatch):
    def run_out(runs, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gate, "in_turns_ms", run_out)
    products = block_projections(feed_forward)
    assert fastest_gate_tile(products, 32, parts) is None
    monkeypatch.setattr(gate, "compiled_as_they_come", lambda function: function)
    monkeypatch.setattr(gate, "in_turns_ms", in_turns(dict.fromkeys((PLAIN, *GATE_TILES), 1.0) | {GATE_TILES[2]: 0.5}))
    assert set(gate_times_ms(products, 32, parts)) == {PLAIN, *GATE_TILES}
    assert fastest_gate_tile(products, 32, parts) == GATE_TILES[2]
