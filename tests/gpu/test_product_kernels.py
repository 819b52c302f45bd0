"""Other kernels than torch's for plain products on a real GPU: the same product, to the last rounding."""

import pytest
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tests.generator.fast.conftest import random_transformer
from tests.gpu.test_fast_denoiser import CUDA, distance, ours, stock
from zimage_ui.generator.fast import cublaslt, denoiser, timing
from zimage_ui.generator.fast.cute_kernels import HOPPER, PRODUCT_TILES, architecture, has_tiled_product
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.graphs import CudaRecorder, RecordedFunction
from zimage_ui.generator.fast.lossy_projections import Fp8Projection
from zimage_ui.generator.fast.product_kernels import USUAL, ProductKernels, multiplied, product_times_ms
from zimage_ui.generator.fast.projections import PlainProjection
from zimage_ui.generator.fast.quantised_rows import scaled
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.placement import read_device
from zimage_ui.request import Precision

pytestmark = [
    pytest.mark.gpu, pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

# Two roundings of the same kind never err alike to the last digit.
SAME = 1.02
SIZES = [(3840, 3840, 1088), (1536, 512, 4160), (512, 1376, 40)]


@pytest.fixture(params=SIZES, ids=str)
def projection(request: pytest.FixtureRequest) -> tuple[PlainProjection, int]:
    outputs, inputs, tokens = request.param
    weight = torch.randn(outputs, inputs, device=CUDA, dtype=torch.bfloat16) / inputs**0.5
    return PlainProjection(weight), tokens


def kernels_of(weight: torch.Tensor, tokens: int) -> tuple[str, ...]:
    return *cublaslt.kernel_names(tokens, weight), *(PRODUCT_TILES if has_tiled_product(weight) else ())


def test_every_kernel_is_as_near_to_fp32_as_torchs(projection):
    plain, tokens = projection
    values = torch.randn(2, tokens // 2, plain.weight.shape[1], device=CUDA, dtype=torch.bfloat16)
    expected = values.float() @ plain.weight.float().t()
    usual = distance(plain(values), expected)
    kernels = kernels_of(plain.weight, tokens)
    assert any(kernel.startswith("cublasLt tile") for kernel in kernels)
    for kernel in kernels:
        found = multiplied(plain, values, kernel)
        assert found.shape == expected.shape
        assert distance(found, expected) <= SAME * usual, kernel
        assert torch.equal(multiplied(plain, values, kernel), found), kernel


@pytest.mark.parametrize(("outputs", "inputs", "tokens"), [(3840, 3840, 1088), (1536, 512, 4160), (512, 1376, 64)])
def test_every_kernel_for_fp8_is_as_torchs(outputs, inputs, tokens):
    if not read_device().computes_in(Precision.FP8):
        pytest.skip("this card has no FP8")
    projection = Fp8Projection.of(torch.randn(outputs, inputs, device=CUDA, dtype=torch.bfloat16))
    rows = projection.read(torch.randn(1, tokens, inputs, device=CUDA, dtype=torch.bfloat16))
    expected = scaled(projection(rows))
    kernels = cublaslt.kernel_names(tokens, projection.weight)
    assert kernels
    for kernel in kernels:
        product = cublaslt.product(rows.values, projection.weight, kernel)
        assert product is not None
        assert product.dtype == torch.bfloat16
        assert distance(scaled(multiplied(projection, rows, kernel)), expected) <= 5e-3, kernel


def test_nothing_is_cleared_before_a_product(projection):
    """In a recording each would be a node of its own, before and after which the card waits."""
    plain, tokens = projection
    values = torch.randn(tokens, plain.weight.shape[1], device=CUDA, dtype=torch.bfloat16)
    kernels = cublaslt.kernel_names(tokens, plain.weight)
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for kernel in kernels:
            cublaslt.product(values, plain.weight, kernel)
        torch.cuda.synchronize(CUDA)
    on_the_device = [event.name for event in profiled.events() if event.device_type == DeviceType.CUDA]
    assert len(on_the_device) == len(kernels)
    assert not [name for name in on_the_device if "memset" in name.lower()]


def test_on_hopper_some_are_in_tiles_that_the_library_did_not_propose(monkeypatch):
    weight = torch.randn(3840, 3840, device=CUDA, dtype=torch.bfloat16)
    tiled = [name for name in cublaslt.kernel_names(1088, weight) if "tile 405 " in name]
    assert bool(tiled) == (architecture(CUDA) == HOPPER)
    cublaslt._problem.cache_clear()
    monkeypatch.setattr(cublaslt, "_hopper_processors", lambda device: None)
    assert not set(tiled) & set(cublaslt.kernel_names(1088, weight))
    cublaslt._problem.cache_clear()


def test_the_library_proposes_the_same_again(projection):
    plain, tokens = projection
    before = cublaslt.kernel_names(tokens, plain.weight)
    cublaslt._problem.cache_clear()
    assert cublaslt.kernel_names(tokens, plain.weight) == before


def test_for_other_rows_and_unaligned_ones_there_may_be_none_but_never_a_wrong_product(projection):
    plain, tokens = projection
    inputs = plain.weight.shape[1]
    values = torch.randn(tokens + 64, inputs, device=CUDA, dtype=torch.bfloat16)
    shifted = torch.randn(tokens * inputs + 1, device=CUDA, dtype=torch.bfloat16)[1:].view(tokens, inputs)
    for kernel in kernels_of(plain.weight, tokens):
        for rows in (values, values[:7], values[:tokens], *([] if kernel in PRODUCT_TILES else [shifted])):
            expected = rows.float() @ plain.weight.float().t()
            assert distance(multiplied(plain, rows, kernel), expected) < 5e-3, kernel
    (first, *_) = cublaslt.kernel_names(tokens, plain.weight)
    assert cublaslt.product(shifted, plain.weight, first) is None


def test_they_can_be_recorded(projection):
    plain, tokens = projection
    inputs = plain.weight.shape[1]
    with torch.inference_mode():
        for kernel in kernels_of(plain.weight, tokens):
            example = torch.zeros(tokens, inputs, device=CUDA, dtype=torch.bfloat16)
            work = lambda values, kernel=kernel: multiplied(plain, values, kernel)  # noqa: E731
            recorded = RecordedFunction(work, (example,), CudaRecorder(CUDA))
            for _ in range(2):
                values = torch.randn_like(example)
                assert torch.equal(recorded(values), work(values)), kernel


def test_all_are_timed(projection, monkeypatch):
    monkeypatch.setattr(timing, "_HOPELESS", 1e9)
    monkeypatch.setattr(timing, "_BEHIND", 1e9)
    plain, tokens = projection
    with torch.inference_mode():
        times_ms = product_times_ms([plain, plain], tokens)
    assert list(times_ms) == [USUAL, *kernels_of(plain.weight, tokens)]
    assert min(times_ms.values()) > 0


@pytest.mark.parametrize("rank", [0, 1, -1])
def test_a_prepared_transformer_multiplies_by_them(monkeypatch, rank):
    sizes = {"dim": 384, "n_heads": 3, "n_kv_heads": 3, "axes_dims": [32, 48, 48], "cap_feat_dim": 64}
    model, exact = (random_transformer(**sizes).to(CUDA, torch.bfloat16) for _ in range(2))
    prompt = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(CUDA, torch.bfloat16)
    theirs, expected = stock(model, 16, 24, [prompt]), stock(exact.float(), 16, 24, [prompt.float()])

    def chosen(blocks, tokens):
        return ProductKernels(*(kernels_of(each.weight, tokens)[rank] for each in blocks[0]))

    monkeypatch.setattr(denoiser, "fastest_products", chosen)
    monkeypatch.setattr(denoiser, "fastest_gate_tile", lambda *_: None)
    fast = FastTransformer(model, CUDA, torch.bfloat16)
    assert fast.prepare(DenoiserShape(16, 24, 64))
    found = ours(fast, 16, 24, [prompt])
    assert distance(found, expected) <= distance(theirs, expected)
