"""The choice of kernels for plain products, with kernels that stand in for those of a GPU's libraries."""

from dataclasses import replace

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast import product_kernels
from zimage_ui.generator.fast.block import BlockKernels, block_weights, run_block
from zimage_ui.generator.fast.choices import Choices
from zimage_ui.generator.fast.cute_kernels import PRODUCT_TILES
from zimage_ui.generator.fast.giving_way import GaveWayError, giving_way
from zimage_ui.generator.fast.lossy_projections import lossy
from zimage_ui.generator.fast.modulation import plain_rows
from zimage_ui.generator.fast.parts import norm
from zimage_ui.generator.fast.product_kernels import (
    USUAL,
    ProductKernels,
    fastest_products,
    multiplied,
    product_times_ms,
)
from zimage_ui.generator.fast.projections import block_projections, packed
from zimage_ui.generator.fast.quantised_rows import ScaledProduct, scaled
from zimage_ui.generator.fast.rotary import caption_rotary
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

FIRST, SECOND = "cublasLt tile 1", "cublasLt tile 2"


@pytest.fixture
def block():
    return random_transformer(n_layers=1).context_refiner[0]


@pytest.fixture
def asked(monkeypatch):
    """Kernels for a CPU; keeps those that were asked for."""
    calls = []

    def product(values, weight, kernel):
        calls.append(kernel)
        return values @ weight.t() if kernel in (FIRST, SECOND) else None

    def tiled_product(values, weight, tile):
        calls.append(tile)
        return values @ weight.t()

    monkeypatch.setattr(product_kernels.cublaslt, "product", product)
    monkeypatch.setattr(product_kernels.cublaslt, "kernel_names", lambda tokens, weight: (FIRST, SECOND))
    monkeypatch.setattr(product_kernels.cute_kernels, "tiled_product", tiled_product)
    monkeypatch.setattr(product_kernels, "has_tiled_product", lambda weight: True)
    choices = Choices()
    monkeypatch.setattr(product_kernels, "kernel_choices", lambda: choices)
    return calls


def timed(monkeypatch, times_ms):
    """Let a kernel take what `times_ms` says, by its name; what is missing there fails."""

    def in_turns_ms(runs, device):
        for run in runs.values():
            run()
        return {name: times_ms[name] for name in runs if name in times_ms}

    monkeypatch.setattr(product_kernels, "in_turns_ms", in_turns_ms)


def test_comparing_gives_way_and_leaves_no_kernel_out(block, asked, monkeypatch, caplog):
    monkeypatch.setattr(product_kernels, "in_turns_ms", lambda *_: pytest.fail("nothing is measured by halves"))
    projections = [block_projections(block).query_key_value]
    with giving_way(lambda: True), pytest.raises(GaveWayError):
        product_times_ms(projections, 7)
    assert asked == []
    assert caplog.text == ""
    timed(monkeypatch, {USUAL: 2.0, FIRST: 1.0})
    assert fastest_products([block_projections(block)], 7).query_key_value == FIRST


def test_every_kernel_computes_the_product(block, noise, asked):
    projection, values = block_projections(block).query_key_value, noise(2, 7, 96)
    expected = projection(values)
    for kernel in (None, FIRST, *PRODUCT_TILES, "a kernel for another number of tokens"):
        assert torch.allclose(multiplied(projection, values, kernel), expected, atol=1e-5)
    assert asked == [FIRST, *PRODUCT_TILES, "a kernel for another number of tokens"]


def test_what_is_no_plain_matrix_has_no_choice(block, noise, asked):
    plain = block_projections(block)
    slowly = lossy(plain, Precision.FP8)
    slowly = slowly._make(replace(projection, fast_accumulation=False) for projection in slowly)
    for projections in (packed(plain), lossy(plain, Precision.INT8), slowly):
        assert fastest_products([plain, projections], 32) == ProductKernels()
    for projections in (packed(plain), lossy(plain, Precision.INT8)):
        multiplied(projections.output, projections.output.read(noise(1, 32, 96)), FIRST)
    assert asked == []


def test_in_four_bits_the_unpacked_matrix_has_the_choice_of_a_plain_one(block, noise, asked, monkeypatch):
    projections = lossy(block_projections(block), Precision.NF4)
    timed(monkeypatch, {USUAL: 2.0, FIRST: 3.0, SECOND: 1.0})
    assert fastest_products([projections], 14) == ProductKernels(*[SECOND] * 4)
    assert {FIRST, SECOND} <= set(asked)


def test_in_four_bits_nothing_is_unpacked_where_there_is_no_choice_or_it_is_known(block, asked, monkeypatch):
    projections = lossy(block_projections(block), Precision.NF4)
    timed(monkeypatch, {USUAL: 2.0, FIRST: 1.0})
    chosen = fastest_products([projections], 14)
    monkeypatch.setattr(product_kernels, "unpacked", lambda projection: pytest.fail("it was unpacked"))
    assert fastest_products([projections], 14) == chosen == ProductKernels(*[FIRST] * 4)
    monkeypatch.setattr(product_kernels.cublaslt, "kernel_names", lambda tokens, weight: ())
    monkeypatch.setattr(product_kernels, "has_tiled_product", lambda weight: False)
    assert fastest_products([projections], 15) == ProductKernels()


def test_without_memory_for_unpacking_nothing_is_measured(block, asked, monkeypatch):
    def unpacked(projection):
        raise torch.OutOfMemoryError("there is no room")

    monkeypatch.setattr(product_kernels, "unpacked", unpacked)
    assert fastest_products([lossy(block_projections(block), Precision.NF4)], 14) == ProductKernels()


def test_fp8_has_a_choice_and_its_product_is_still_to_be_scaled(block, noise, asked, monkeypatch):
    projections, values = lossy(block_projections(block), Precision.FP8), noise(2, 7, 96)
    monkeypatch.setattr(
        product_kernels.cublaslt, "product", lambda rows, weight, kernel: rows.float() @ weight.float().t()
    )
    expected = projections.query_key_value(values)
    found = multiplied(projections.query_key_value, values, FIRST)
    assert isinstance(found, ScaledProduct)
    assert torch.allclose(scaled(found), scaled(expected), rtol=1e-2)
    assert found.shares is expected.shares
    timed(monkeypatch, {USUAL: 3.0, FIRST: 2.0})
    assert fastest_products([projections], 32) == ProductKernels(*[FIRST] * 4)
    monkeypatch.setattr(product_kernels.cublaslt, "product", lambda rows, weight, kernel: None)
    assert torch.equal(scaled(multiplied(projections.output, values, FIRST)), scaled(projections.output(values)))


def test_the_fastest_of_each_product_is_chosen_once(block, asked, monkeypatch):
    products = [block_projections(block)] * 2
    timed(monkeypatch, {USUAL: 3.0, FIRST: 2.0, SECOND: 2.5, PRODUCT_TILES[0]: 4.0})
    assert fastest_products(products, 32) == ProductKernels(*[FIRST] * 4)
    timed(monkeypatch, {USUAL: 1.0, FIRST: 2.0, SECOND: 2.5, PRODUCT_TILES[0]: 0.5})
    assert fastest_products(products, 32) == ProductKernels(*[FIRST] * 4)
    assert fastest_products(products, 64) == ProductKernels(*[PRODUCT_TILES[0]] * 4)


def test_torchs_own_choice_stays_unless_another_is_clearly_faster(block, asked, monkeypatch):
    timed(monkeypatch, {USUAL: 1.0, FIRST: 0.995, SECOND: 1.5, PRODUCT_TILES[0]: 1.2})
    assert fastest_products([block_projections(block)], 32) == ProductKernels()


def test_a_kernel_that_fails_is_left_out_and_a_full_memory_says_nothing(block, asked, monkeypatch):
    projection = block_projections(block).down
    timed(monkeypatch, {USUAL: 3.0, SECOND: 2.0})
    assert product_times_ms([projection] * 3, 32) == {USUAL: 3.0, SECOND: 2.0}
    checked = [FIRST, SECOND, *PRODUCT_TILES]
    assert asked == checked + [FIRST] * 3 + [SECOND] * 3 + list(PRODUCT_TILES) * 3

    def run_out(runs, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(product_kernels, "in_turns_ms", run_out)
    assert fastest_products([block_projections(block)], 96) == ProductKernels()
    timed(monkeypatch, {USUAL: 3.0, SECOND: 2.0})
    assert fastest_products([block_projections(block)], 96) == ProductKernels(*[SECOND] * 4)


@pytest.mark.parametrize("wrong", [0.5, float("nan")])
def test_a_kernel_that_computes_something_else_is_never_timed(block, asked, monkeypatch, caplog, wrong):
    right = product_kernels.cublaslt.product

    def product(values, weight, kernel):
        if kernel == SECOND:
            raise RuntimeError("cublasLtMatmul answered 15.")
        return wrong * right(values, weight, kernel)

    monkeypatch.setattr(product_kernels.cublaslt, "product", product)
    timed(monkeypatch, {USUAL: 3.0, FIRST: 1.0, SECOND: 1.0, PRODUCT_TILES[0]: 2.0})
    assert list(product_times_ms([block_projections(block).down], 32)) == [USUAL, PRODUCT_TILES[0]]
    assert f"{FIRST} is left out: its product is" in caplog.text
    assert f"{SECOND} is left out: RuntimeError" in caplog.text


def test_rows_from_all_over_are_compared(block, asked, monkeypatch, caplog):
    """Wrong in the last tile alone, of so many rows as large pictures have."""
    right = product_kernels.cublaslt.product
    projection = block_projections(block).output

    def product(values, weight, kernel):
        found = right(values, weight, kernel)
        found[..., -100:, :] = 0
        return found

    monkeypatch.setattr(product_kernels.cublaslt, "product", product)
    timed(monkeypatch, {USUAL: 3.0, FIRST: 1.0, SECOND: 1.0, PRODUCT_TILES[0]: 2.0})
    assert list(product_times_ms([projection], 4160)) == [USUAL, PRODUCT_TILES[0]]
    assert caplog.text.count("is left out: its product is") == 2


def test_without_other_kernels_there_is_nothing_to_measure(block, monkeypatch):
    monkeypatch.setattr(product_kernels, "in_turns_ms", lambda runs, device: pytest.fail("measured"))
    assert fastest_products([block_projections(block)], 32) == ProductKernels()


@pytest.mark.parametrize("precision", [Precision.EXACT, Precision.NF4])
def test_a_block_multiplies_by_what_was_chosen(block, transformer, noise, asked, distance, precision):
    weights, rows = block_weights(block, precision), torch.cat((plain_rows(block)[1:], torch.ones(1, 96)))
    stream, table = noise(1, 32, 96), caption_rotary(transformer.rope_embedder, 32, torch.device("cpu"))
    normed = norm(stream, plain_rows(block)[0], 1e-5)
    with torch.inference_mode():
        expected, _ = run_block(stream, normed, weights, rows, table)
        chosen = BlockKernels(products=ProductKernels(FIRST, SECOND, PRODUCT_TILES[0], FIRST))
        found, _ = run_block(stream, normed, weights, rows, table, kernels=chosen)
    assert distance(found, expected) < 1e-6
    assert asked == [FIRST, SECOND, PRODUCT_TILES[0], FIRST]
