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
    for projections, tile in ((plain, None), (packed(plain), None), (plain, "128x256")):
        assert torch.allclose(gated(projections, values, parts, tile), expected, atol=1e-5)
    assert kernel == ["128x256"]


def test_what_is_no_plain_matrix_has_no_choice(feed_forward, noise, kernel):
    plain = block_projections(feed_forward)
    for projections in (packed(plain), lossy(plain, Precision.INT8)):
        gated(projections, projections.gate_up.read(noise(1, 32, 96)), parts, GATE_TILES[0])
        assert fastest_gate_tile(projections, 32, parts) is None
    assert kernel == []


def test_where_the_library_is_missing_there_is_nothing_to_choose(feed_forward):
    assert fastest_gate_tile(block_projections(feed_forward), 32, parts) is None


@pytest.mark.parametrize(
    ("times_ms", "chosen"),
    [((3.0, 4.0, 2.0, 5.0), GATE_TILES[1]), ((1.0, 4.0, 2.0, 5.0), None), ((3.0, None, None, 2.5), GATE_TILES[2])],
)
def test_the_fastest_is_chosen_once_and_what_fails_is_left_out(feed_forward, kernel, monkeypatch, times_ms, chosen):
    taken = iter(times_ms)

    def median_ms(run, device):
        took = next(taken)
        if took is None:
            raise RuntimeError("no such tile")
        return took

    monkeypatch.setattr(gate, "median_ms", median_ms)
    products = block_projections(feed_forward)
    for _ in range(2):
        assert fastest_gate_tile(products, 32, parts) == chosen
    with pytest.raises(StopIteration):
        fastest_gate_tile(products, 64, parts)


def test_the_choice_is_of_the_way_that_was_measured(feed_forward, kernel, monkeypatch):
    """A compiler's gate and one of our own take different times."""
    ours = SimpleNamespace(**vars(parts))
    products = block_projections(feed_forward)
    for way, fastest in ((parts, 2), (ours, 0)):
        monkeypatch.setattr(gate, "median_ms", lambda run, device, best=GATE_TILES[fastest]: 1 + (run.args[-1] != best))
        assert fastest_gate_tile(products, 32, way) == GATE_TILES[fastest]


def test_a_full_memory_says_nothing_of_a_kernel(feed_forward, kernel, monkeypatch):
    def run_out(run, device):
        if run.args[-1] in GATE_TILES:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0

    monkeypatch.setattr(gate, "median_ms", run_out)
    products = block_projections(feed_forward)
    assert fastest_gate_tile(products, 32, parts) is None
    monkeypatch.setattr(gate, "median_ms", lambda run, device: 0.5 if run.args[-1] == GATE_TILES[2] else 1.0)
    assert set(gate_times_ms(products, 32, parts)) == {PLAIN, *GATE_TILES}
    assert fastest_gate_tile(products, 32, parts) == GATE_TILES[2]
