"""Matrices in four bits: what is kept of them, and how little."""

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast import four_bits
from zimage_ui.generator.fast.four_bits import LEVELS, RUN, Nf4Projection, outline, unpacked
from zimage_ui.generator.fast.projections import PlainProjection, block_projections, packed

pytestmark = pytest.mark.model

# Appendix E of the paper, "QLoRA: Efficient Finetuning of Quantized LLMs".
PUBLISHED = torch.tensor(
    [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ]
)  # fmt: skip


def test_the_levels_are_those_of_the_paper():
    assert torch.allclose(torch.tensor(LEVELS), PUBLISHED, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_value_is_the_nearest_of_sixteen_levels_times_the_largest_of_its_run(noise, dtype):
    weight = noise(48, 64).to(dtype)
    plain = Nf4Projection.of(weight).plain().weight
    runs = weight.float().view(-1, RUN)
    largest = runs.abs().amax(-1, keepdim=True)
    nearest = PUBLISHED[(runs[..., None] / largest[..., None] - PUBLISHED).abs().argmin(-1)]
    assert (plain.shape, plain.dtype) == ((48, 64), dtype)
    assert torch.allclose(plain.float(), (nearest * largest).view(48, 64), rtol=1e-2 if dtype.itemsize == 2 else 1e-5)


def test_the_product_is_that_of_the_unpacked_matrix(noise):
    projection, values = Nf4Projection.of(noise(64, 96).bfloat16()), noise(2, 7, 96, seed=1)
    read = projection.read(values)
    assert projection.form is read.dtype is torch.bfloat16
    assert torch.equal(projection(read), projection.plain()(read))


def test_it_takes_four_and_a_half_bits_a_value(noise):
    projection = Nf4Projection.of(noise(64, 96))
    assert projection.weight.nbytes + projection.scales.nbytes == 64 * 96 * 4.5 / 8
    assert projection.levels.nbytes == 64


def test_the_matrices_of_a_product_are_rounded_each_to_its_place(noise):
    matrices = [noise(16, 32, seed=seed) * 10.0**seed for seed in range(3)]
    together = Nf4Projection.of(torch.cat(matrices), parts=3).plain().weight
    for found, matrix in zip(together.chunk(3), matrices, strict=True):
        assert torch.equal(found, Nf4Projection.of(matrix).plain().weight)


def test_others_have_nothing_to_unpack(noise):
    plain = PlainProjection(noise(32, 32))
    assert unpacked(plain) is plain
    assert isinstance(unpacked(Nf4Projection.of(plain.weight)), PlainProjection)


def test_its_outline_is_that_of_the_unpacked_matrix(noise):
    projection = Nf4Projection.of(noise(64, 96).bfloat16())
    found, expected = outline(projection), projection.plain().weight
    assert (found.shape, found.dtype, found.device) == (expected.shape, expected.dtype, expected.device)
    assert found.untyped_storage().nbytes() == 2
    plain = PlainProjection(noise(32, 32))
    assert outline(plain) is plain.weight
    assert outline(packed(block_projections(random_transformer(n_layers=1).layers[0])).down) is None


def test_a_run_of_zeros_stays_one():
    assert not Nf4Projection.of(torch.zeros(16, 64)).plain().weight.any()


def test_pieces_are_unpacked_as_the_whole_is(noise, monkeypatch):
    weight = noise(48, 96)
    whole = Nf4Projection.of(weight).plain().weight
    monkeypatch.setattr(four_bits, "VALUES_AT_ONCE", 7 * RUN)
    assert torch.equal(Nf4Projection.of(weight).plain().weight, whole)
