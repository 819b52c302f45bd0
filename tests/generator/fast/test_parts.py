"""What lies between the products: where kernels of our own serve, and how they are taken."""

import sys
import weakref

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer
from zimage_ui.generator.fast import block, captions, denoiser, parts, step
from zimage_ui.generator.fast.attention import AttentionBackend
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.parts import has_triton_parts, parts_by
from zimage_ui.generator.fast.quantised_rows import ScaledProduct, quantise
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import TRITON, StepNetwork
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("form", "dtype", "head_dim", "device", "serves"),
    [
        (BF16, BF16, 128, CUDA, True),
        (FP8, BF16, 64, CUDA, True),
        (torch.int8, BF16, 128, CUDA, False),
        (torch.float16, torch.float16, 128, CUDA, False),
        (FP8, torch.float32, 128, CUDA, False),
        (BF16, BF16, 48, CUDA, False),
        (BF16, BF16, 128, CPU, False),
    ],
)
def test_kernels_are_for_bf16_on_a_gpu_and_heads_of_a_power_of_two(form, dtype, head_dim, device, serves, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert has_triton_parts(form, dtype, head_dim, device) is serves
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not has_triton_parts(form, dtype, head_dim, device)


def test_without_triton_there_are_no_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "zimage_ui.generator.fast.triton_parts", raising=False)
    assert parts_by(triton=False) is parts
    with pytest.raises(ImportError):
        parts_by(triton=True)


@pytest.mark.parametrize(
    ("precision", "form"), [(Precision.EXACT, BF16), (Precision.FP8, FP8), (Precision.INT8, torch.int8)]
)
def test_a_network_knows_what_its_products_read(precision, form):
    assert StepNetwork(random_transformer().bfloat16(), precision=precision).form == form


def test_the_largest_product_is_gone_before_what_is_left_of_it_is_rounded(noise):
    class Reader:
        form = FP8

        def read(self, values):
            assert values.shape == (1, 8, 16)
            assert memory() is None
            return quantise(values, FP8)

        def __call__(self, activations):
            raise NotImplementedError

    def product():
        nonlocal memory
        made = ScaledProduct(noise(1, 8, 32), torch.ones(1, 8, 1), torch.ones(2))
        memory = weakref.ref(made.values.untyped_storage())
        return made

    memory = None
    rounded = parts.gated(product(), Reader())  # not within assert, which keeps what it is made of
    assert rounded.values.shape == (1, 8, 16)


class InFp32:
    form = torch.float32

    def read(self, values):
        return values.float()

    def __call__(self, activations):
        raise NotImplementedError


def test_a_token_is_normed_by_its_root_mean_square(noise, distance):
    values, scale = noise(2, 9, 96)[:, :7], noise(96, seed=1)
    expected = values.double() / (values.double().square().mean(-1, keepdim=True) + 1e-2).sqrt() * scale.double()
    normed = parts.rms_normed(values, scale, 1e-2, InFp32())
    assert distance(normed.double(), expected) < 1e-6
    assert torch.equal(normed, parts.norm(values, scale, 1e-2))


def test_a_token_is_normed_less_its_mean(noise, distance):
    values, scale = noise(2, 9, 96)[:, :7] + 3, noise(96, seed=1)
    away = values.double() - values.double().mean(-1, keepdim=True)
    expected = away / (away.square().mean(-1, keepdim=True) + 1e-2).sqrt() * scale.double()
    normed = parts.layer_normed(values, scale, 1e-2)
    assert distance(normed.double(), expected) < 1e-6
    half = parts.layer_normed(values.bfloat16(), scale, 1e-2)
    assert half.dtype == BF16
    assert half.is_contiguous()
    assert torch.equal(half, parts.layer_normed(values.bfloat16().float(), scale, 1e-2).bfloat16())


@pytest.fixture
def asked(monkeypatch):
    """The kernels' place is taken by torch's operations; answers whether they were asked for, call by call."""
    calls = []

    def taken(*, triton):
        calls.append(triton)
        return parts

    for module in (block, step):
        monkeypatch.setattr(module, "parts_by", taken)
    monkeypatch.setattr(denoiser, "has_triton_parts", lambda *_: True)
    return calls


def velocity(fast, noise, shape):
    run = fast.denoiser(shape, (500.0,), noise(14, 24, seed=1))
    with torch.inference_mode():
        return run.predict(noise(1, 16, shape.height, shape.width), torch.tensor(500.0), 0)


def test_they_come_first_and_serve_every_size_once_they_have_worked(asked, transformer, noise, distance):
    fast = FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder())
    first, other = DenoiserShape(8, 8, 32), DenoiserShape(10, 14, 32)
    before = velocity(fast, noise, other)
    assert asked
    assert not any(asked), "nobody knows yet whether they work"
    assert fast.prepare(first)
    asked.clear()
    assert distance(velocity(fast, noise, other), before) < 1e-6
    assert any(asked)


def test_with_them_nothing_is_compiled(asked, transformer, noise, monkeypatch):
    compiled = []
    monkeypatch.setattr(captions, "has_triton_parts", lambda *_: True)
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    fast = FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder())
    for shape in (DenoiserShape(8, 8, 32), DenoiserShape(10, 14, 32)):
        assert fast.prepare(shape)
    assert all(asked)
    assert compiled == []


def test_where_they_fail_for_a_further_size_its_picture_goes_on_without(
    asked, transformer, noise, distance, monkeypatch, caplog
):
    fast = FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder())
    first, other = DenoiserShape(8, 8, 32), DenoiserShape(10, 14, 32)
    before = velocity(fast, noise, other)
    assert fast.prepare(first)

    def taken(*, triton):
        asked.append(triton)
        if triton:
            raise RuntimeError("out of resource: shared memory")
        return parts

    for module in (block, step):
        monkeypatch.setattr(module, "parts_by", taken)
    assert distance(velocity(fast, noise, other), before) < 1e-6
    assert "out of resource" in caplog.text
    asked.clear()
    assert distance(velocity(fast, noise, other), before) < 1e-6
    assert asked
    assert not any(asked), "they are not tried again"


def test_a_full_memory_says_nothing_of_them(asked, transformer, noise, monkeypatch):
    fast = FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder())
    assert fast.prepare(DenoiserShape(8, 8, 32))

    def full(*, triton):
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(block, "parts_by", full)
        with pytest.raises(torch.OutOfMemoryError):
            velocity(fast, noise, DenoiserShape(10, 14, 32))
    asked.clear()
    velocity(fast, noise, DenoiserShape(10, 14, 32))
    assert any(asked)


def test_where_they_fail_the_next_way_is_taken(asked, transformer, noise, monkeypatch, caplog):
    def broken(*_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(denoiser, "TRITON", TRITON._replace(enter=broken))
    monkeypatch.setattr(denoiser, "_compiled", lambda: step.EAGER)
    fast = FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder())
    assert fast.prepare(DenoiserShape(8, 8, 32))
    assert "no such instruction" in caplog.text
    asked.clear()
    velocity(fast, noise, DenoiserShape(10, 14, 32))
    assert asked
    assert not any(asked)


@pytest.mark.parametrize(
    ("precision", "hopper", "eight_bit"),
    [(Precision.FP8, True, True), (Precision.FP8, False, False), (Precision.EXACT, True, False)],
)
def test_attention_in_eight_bits_goes_with_eight_bit_products_and_our_kernels(
    asked, noise, monkeypatch, precision, hopper, eight_bit
):
    told = []

    def run_block(*arguments):
        told.append(arguments[-1])
        return block.run_block(*arguments[:-1])

    functions = TRITON._replace(block=run_block)
    monkeypatch.setattr(denoiser, "has_fp8_attention", lambda *_: hopper)
    monkeypatch.setattr(denoiser, "TRITON", functions)
    fast = FastTransformer(random_transformer(), CPU, torch.float32, ReplayingRecorder(), precision=precision)
    assert fast.prepare(DenoiserShape(8, 8, 32))
    velocity(fast, noise, DenoiserShape(10, 14, 32))
    backend = AttentionBackend.FP8 if eight_bit else None
    assert {(kernels.triton, kernels.attention) for kernels in told} == {(True, backend)}
