"""Matrices in four bits: what bitsandbytes makes of them, and what is said where it cannot."""

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from zimage_ui.errors import SettingsError
from zimage_ui.generator.fast import four_bits
from zimage_ui.generator.fast.four_bits import RUN, Nf4Projection, check_bitsandbytes, unpacked
from zimage_ui.generator.fast.projections import PlainProjection

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
# Appendix E of the paper, "QLoRA: Efficient Finetuning of Quantized LLMs".
LEVELS = torch.tensor(
    [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
        0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
    ]
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_each_value_is_the_nearest_of_sixteen_levels_times_the_largest_of_its_run(noise, dtype):
    weight = noise(48, 64).to(dtype)
    plain = Nf4Projection.of(weight).plain().weight
    runs = weight.float().view(-1, RUN)
    largest = runs.abs().amax(-1, keepdim=True)
    nearest = LEVELS[(runs[..., None] / largest[..., None] - LEVELS).abs().argmin(-1)]
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


def test_the_matrices_of_a_product_are_rounded_each_to_its_place(noise):
    matrices = [noise(16, 32, seed=seed) * 10.0**seed for seed in range(3)]
    together = Nf4Projection.of(torch.cat(matrices), parts=3).plain().weight
    for found, matrix in zip(together.chunk(3), matrices, strict=True):
        assert torch.equal(found, Nf4Projection.of(matrix).plain().weight)


def test_others_have_nothing_to_unpack(noise):
    plain = PlainProjection(noise(32, 32))
    assert unpacked(plain) is plain
    assert isinstance(unpacked(Nf4Projection.of(plain.weight)), PlainProjection)


class TestTheLibrary:
    def test_where_it_works_nothing_is_said(self):
        check_bitsandbytes(CPU)

    def test_where_it_is_missing_the_command_that_brings_it_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "bitsandbytes", None)
        with pytest.raises(SettingsError, match="ZIMAGE_PRECISION = nf4 needs bitsandbytes") as raised:
            check_bitsandbytes(CPU)
        assert f"{sys.executable} -m pip install 'bitsandbytes>=" in raised.value.hint

    def test_where_it_has_nothing_for_the_device_that_is_said_in_one_line(self, monkeypatch):
        def quantise(*_):
            raise RuntimeError("\n\nno binary for CUDA 99\nand much more")

        monkeypatch.setattr(four_bits, "_operators", lambda: SimpleNamespace(quantize_4bit=quantise))
        with pytest.raises(SettingsError) as raised:
            check_bitsandbytes(CPU)
        assert raised.value.message.endswith("cannot be used on cpu: bitsandbytes fails with no binary for CUDA 99")
        assert "-m bitsandbytes says more" in raised.value.hint

    def test_the_hint_asks_for_what_the_project_asks_for(self):
        project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))["project"]
        assert project["optional-dependencies"]["nf4"] == [four_bits._REQUIREMENT]
