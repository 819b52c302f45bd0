"""Rounded products: exact but for the rounding of their factors, in the memory of those alone."""

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer, stock_products
from zimage_ui.generator.fast.block import block_weights, run_block
from zimage_ui.generator.fast.compiled_step import compiled_functions
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.four_bits import Nf4Projection
from zimage_ui.generator.fast.lossy_projections import Fp8Projection, Int8Projection, lossy, lossy_projections
from zimage_ui.generator.fast.projections import PackedProjection, PlainProjection, block_projections, packed
from zimage_ui.generator.fast.quantised_rows import QuantisedRows, ScaledProduct, scaled
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import StepNetwork
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
KINDS = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection, Precision.NF4: Nf4Projection}
EIGHT_BIT_KINDS = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection}
# Of one product of normal numbers. Both factors are off by 2.6 % (FP8) or 0.8 % (INT8) of themselves on average, one of
# them by 9 % (NF4).
LARGEST_PRODUCT_ERRORS = {Precision.FP8: 0.045, Precision.INT8: 0.015, Precision.NF4: 0.12}
# Of a transformer of seven blocks.
LARGEST_ERRORS = {Precision.FP8: 0.1, Precision.INT8: 0.05, Precision.NF4: 0.25}
# Bytes of a value.
VALUE_BYTES = {Precision.FP8: 1.0, Precision.INT8: 1.0, Precision.NF4: 0.5}

TIMESTEPS = (1000.0, 913.5, 12.25)

lossy_kinds = pytest.mark.parametrize("precision", KINDS)
eight_bit_kinds = pytest.mark.parametrize("precision", EIGHT_BIT_KINDS)


@pytest.fixture
def block():
    return random_transformer(n_layers=1).layers[0]


def restored(rows: QuantisedRows) -> torch.Tensor:
    return rows.values.double() * rows.scales.double()


def velocities(fast, noise, shape=(1, 16, 10, 14)):
    latents, prompt = noise(*shape), noise(40, 24, seed=1)
    wanted = DenoiserShape(*shape[2:], caption_length(prompt), shape[0])
    denoiser = fast.denoiser(wanted, TIMESTEPS, prompt)
    with torch.inference_mode():
        return torch.stack([denoiser.predict(latents, None, step) for step in range(len(TIMESTEPS))])


@eight_bit_kinds
def test_a_product_is_that_of_the_rounded_factors(noise, distance, precision):
    weight, values = noise(64, 96), noise(2, 7, 96, seed=1)
    projection = KINDS[precision].of(weight)
    found = scaled(projection(values))
    factor = projection.weight.double() * projection.scales.double().t()
    assert found.dtype == torch.float32
    assert found.shape == (2, 7, 64)
    assert distance(found.double(), restored(projection.read(values)) @ factor.t()) < 1e-6


def test_each_matrix_of_a_product_has_a_scale_in_fp8(noise, distance):
    matrices = [noise(16, 32, seed=seed) * 10.0**seed for seed in range(3)]
    projection, values = Fp8Projection.of(torch.cat(matrices), parts=3), noise(2, 7, 32, seed=5)
    assert torch.allclose(projection.scales, torch.stack([matrix.abs().max() / 448 for matrix in matrices]))
    for found, matrix in zip(scaled(projection(values)).chunk(3, -1), matrices, strict=True):
        assert distance(found, values @ matrix.t()) < LARGEST_PRODUCT_ERRORS[Precision.FP8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_scaled_in_place_and_once_rounded(noise, dtype):
    values, rows, parts = noise(2, 7, 6).to(dtype), noise(2, 7, 1, seed=1).abs(), torch.tensor([0.5, 3.0])
    expected = (values.float() * rows * parts.repeat_interleave(3)).to(dtype)
    found = scaled(ScaledProduct(values, rows, parts))
    assert found.data_ptr() == values.data_ptr()
    assert torch.allclose(found, expected)
    assert scaled(found) is found


@lossy_kinds
def test_a_product_is_near_the_exact_one(noise, distance, precision):
    weight, values = noise(64, 96), noise(2, 7, 96, seed=1)
    error = distance(scaled(KINDS[precision].of(weight)(values)), values @ weight.t())
    assert LARGEST_PRODUCT_ERRORS[precision] / 4 < error < LARGEST_PRODUCT_ERRORS[precision]


@eight_bit_kinds
def test_what_was_read_before_gives_the_same(noise, precision):
    projection = KINDS[precision].of(noise(64, 96).bfloat16())
    values = noise(2, 7, 96, seed=1).bfloat16()
    found = scaled(projection(values))
    assert found.dtype == torch.bfloat16
    assert torch.equal(scaled(projection(projection.read(values))), found)


@lossy_kinds
def test_matrices_are_replaced_and_their_memory_is_free(block, noise, precision):
    values, hidden = noise(2, 7, 96), noise(2, 7, 256)
    expected = stock_products(block, values, hidden)
    before = sum(parameter.nbytes for parameter in block.parameters() if parameter.ndim == 2)
    modulation_bytes = block.adaLN_modulation[0].weight.nbytes
    projections = lossy_projections(block, precision)
    for name, product in expected.items():
        found = scaled(getattr(projections, name)(hidden if name == "down" else values))
        likeness = torch.nn.functional.cosine_similarity(found.flatten(), product.flatten(), dim=0)
        assert likeness > 1 - LARGEST_PRODUCT_ERRORS[precision] ** 2, name
    kept = {parameter.untyped_storage().nbytes() for parameter in block.parameters() if parameter.ndim != 1}
    assert kept == {modulation_bytes}
    held_bytes = sum(each.weight.untyped_storage().nbytes() for each in projections)
    assert held_bytes == VALUE_BYTES[precision] * (before - modulation_bytes) / 4
    with pytest.raises(RuntimeError):
        block.attention.to_q(values)


@lossy_kinds
def test_only_plain_matrices_are_rounded(block, precision):
    plain = block_projections(block)
    assert all(isinstance(each, PlainProjection) for each in plain)
    assert all(isinstance(each, KINDS[precision]) for each in lossy(plain, precision))
    odd = plain._replace(down=PlainProjection(torch.zeros(96, 250)), output=PlainProjection(torch.zeros(90, 96)))
    assert [type(each) for each in lossy(odd, precision)] == [
        KINDS[precision], PlainProjection, KINDS[precision], PlainProjection,
    ]  # fmt: skip
    already = packed(plain)
    assert all(isinstance(each, PackedProjection) for each in already)
    assert lossy(already, precision) == already


@lossy_kinds
def test_a_block_hands_on_what_the_next_one_reads(noise, precision):
    model = random_transformer(n_layers=1)
    weights = block_weights(model.layers[0], precision)
    stream, rows = noise(1, 32, 96), torch.ones(4, 96)
    table = torch.view_as_complex(noise(1, 32, 1, 24, 2))
    following, handed_on = run_block(stream, stream, weights, rows, table)
    rounds_both = precision in EIGHT_BIT_KINDS
    assert isinstance(handed_on, QuantisedRows) == rounds_both
    again, _ = run_block(following, handed_on, weights, rows, table)
    assert again.shape == (1, 32, 96)
    kept, short = run_block(stream, stream, weights, rows, table, kept_tokens=5)
    assert torch.allclose(kept, following[:, :5], atol=1e-4)
    assert (short.values if isinstance(short, QuantisedRows) else short).shape == (1, 5, 96)


class TestDenoiser:
    """The whole transformer, against the exact one."""

    @lossy_kinds
    @pytest.mark.parametrize("shape", [(1, 16, 10, 14), (2, 16, 8, 8)])
    def test_it_is_near_the_exact_one_and_differs(self, transformer, noise, distance, precision, shape):
        exact = velocities(FastTransformer(transformer, CPU, torch.float32), noise, shape)
        fast = FastTransformer(random_transformer(), CPU, torch.float32, precision=precision)
        error = distance(velocities(fast, noise, shape), exact)
        assert 1e-3 < error < LARGEST_ERRORS[precision]

    @lossy_kinds
    def test_only_the_blocks_of_a_step_are_rounded(self, precision):
        model = random_transformer()
        network = StepNetwork(model, precision=precision)
        for weights in (*network.refiner, *network.layers):
            assert all(isinstance(each, KINDS[precision]) for each in weights.projections)
        for weights in network.context:
            assert all(isinstance(each, PlainProjection) for each in weights.projections)


class TestTracedForACompiler:
    @pytest.fixture(params=KINDS, ids=str)
    def fast(self, request, backend):
        functions = compiled_functions(backend=backend)
        ways = [lambda: functions]
        return FastTransformer(
            random_transformer(), CPU, torch.float32, ReplayingRecorder(), ways, precision=request.param
        )

    def test_it_computes_the_same_with_as_few_functions(self, fast, backend, noise, distance):
        plain = velocities(fast, noise)
        assert fast.prepare(DenoiserShape(10, 14, 64))
        assert distance(velocities(fast, noise), plain) < 1e-5
        assert backend.compilations == 4  # the entry, the block for image tokens and for all tokens, the exit

    def test_further_sizes_and_captions_compile_nothing(self, fast, backend):
        for shape in (DenoiserShape(8, 8, 32), DenoiserShape(8, 16, 64), DenoiserShape(16, 10, 32)):
            assert fast.prepare(shape)
        compiled = backend.compilations
        for columns in (3, 7, 11):
            assert fast.prepare(DenoiserShape(12, 2 * columns, 96))
        assert backend.compilations == compiled <= 8
