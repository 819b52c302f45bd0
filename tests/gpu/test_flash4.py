"""FlashAttention 4 and quack's gated product on a real GPU: as near to fp32 as what they stand in for."""

from typing import Any

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from tests.gpu.test_fast_denoiser import CUDA, SIZES, distance, ours, stock
from zimage_ui.generator.fast import denoiser, parts, timing, triton_parts
from zimage_ui.generator.fast.attention import AttentionBackend, attention, backend_times_ms, candidates
from zimage_ui.generator.fast.cute_kernels import GATE_TILES, has_flash_attention_4, has_gated_product
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.gate import PLAIN, gate_times_ms, gated
from zimage_ui.generator.fast.graphs import CudaRecorder, RecordedFunction
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection
from zimage_ui.generator.fast.shapes import DenoiserShape

# The compiler of both libraries warns of their own code.
pytestmark = [
    pytest.mark.gpu, pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

# A hidden width of 1024, which quack's kernel takes; of 1365, the one of SIZES, it can copy no row.
SUITING = SIZES | {"dim": 384, "n_heads": 3, "n_kv_heads": 3}

FLASH4 = (AttentionBackend.FLASH4, AttentionBackend.FLASH4_128X160, AttentionBackend.FLASH4_192X80)

# Two roundings of the same kind never err alike to the last digit.
SAME = 1.05


@pytest.fixture
def flash4() -> None:
    if not has_flash_attention_4(torch.bfloat16, CUDA):
        pytest.skip("FlashAttention 4 is not installed, or not for this GPU")


@pytest.fixture
def quack() -> None:
    if not has_gated_product(torch.empty(1024, 512, device=CUDA, dtype=torch.bfloat16)):
        pytest.skip("quack is not installed, or not for this GPU")


def with_gate(weight: torch.Tensor) -> BlockProjections:
    """The products of a block of which only gate and up matter, and what reads them."""
    return BlockProjections(*(PlainProjection(weight) for _ in range(4)))


def views(pictures: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As a block's projection leaves them."""
    query, key, value = torch.randn(pictures, tokens, 3, 4, 128, device=CUDA, dtype=torch.bfloat16).unbind(2)
    return query, key, value


@pytest.mark.parametrize(("pictures", "tokens"), [(1, 1088), (2, 96), (1, 4160), (1, 2368)])
@pytest.mark.parametrize("backend", FLASH4)
def test_attention_is_as_near_to_fp32_as_torchs_own(flash4, pictures, tokens, backend):
    if backend not in candidates(128, torch.bfloat16, CUDA):
        pytest.skip(f"{backend} is for Hopper")
    query, key, value = views(pictures, tokens)
    expected = attention(query.float(), key.float(), value.float())
    found = attention(query, key, value, backend)
    assert found.is_contiguous()
    assert distance(found, expected) <= SAME * distance(attention(query, key, value), expected)
    fewer = attention(query[:, :40], key, value, backend)
    assert distance(fewer, expected[:, :40]) <= 0.01


@pytest.mark.parametrize("tile", GATE_TILES)
@pytest.mark.parametrize("tokens", [40, 1088])
def test_the_gated_product_is_as_near_to_fp32_as_the_plain_one(quack, tile, tokens):
    values = torch.randn(2, tokens, 512, device=CUDA, dtype=torch.bfloat16)
    weight = torch.randn(2 * 1376, 512, device=CUDA, dtype=torch.bfloat16) / 512**0.5
    expected = gated(with_gate(weight.float()), values.float(), parts)
    plain = with_gate(weight)
    found, usual = gated(plain, values, parts, tile), gated(plain, values, parts)
    assert distance(found, expected) <= SAME * distance(usual, expected)


def test_both_can_be_recorded(flash4, quack):
    weight = torch.randn(1024, 512, device=CUDA, dtype=torch.bfloat16) / 512**0.5

    def work(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return gated(
            with_gate(weight), attention(query, key, value, AttentionBackend.FLASH4).flatten(2), parts, GATE_TILES[0]
        )

    with torch.inference_mode():
        recorded = RecordedFunction(work, views(1, 256), CudaRecorder(CUDA))
        for _ in range(2):
            inputs = views(1, 256)
            assert torch.equal(recorded(*inputs), work(*inputs))


def test_both_are_timed(flash4, quack, monkeypatch):
    monkeypatch.setattr(timing, "_HOPELESS", 1e9)
    monkeypatch.setattr(timing, "_BEHIND", 1e9)
    there = {*FLASH4} & {*candidates(128, torch.bfloat16, CUDA)}
    assert there <= {*backend_times_ms((1, 1088, 30, 128), torch.bfloat16, CUDA)}
    weight = torch.randn(1024, 512, device=CUDA, dtype=torch.bfloat16)
    with torch.inference_mode():
        for way in (parts, triton_parts):
            assert set(gate_times_ms(with_gate(weight), 1088, way)) == {PLAIN, *GATE_TILES}


@pytest.mark.parametrize("tile", [None, *GATE_TILES])
def test_the_compiled_and_recorded_engine_is_as_near_to_fp32(flash4, quack, monkeypatch, tile):
    monkeypatch.setattr(denoiser, "fastest_backend", lambda *_: AttentionBackend.FLASH4)
    monkeypatch.setattr(denoiser, "fastest_gate_tile", lambda *_: tile)
    ours_away, stock_away = distances_to_fp32(SUITING)
    assert ours_away <= SAME * stock_away


def test_a_model_whose_width_does_not_suit_the_gate_is_prepared_without_it(quack, caplog):
    unsuiting = random_transformer(**SIZES).layers[0].feed_forward.w1.out_features
    assert not has_gated_product(torch.empty(2 * unsuiting, 512, device=CUDA, dtype=torch.bfloat16))
    ours_away, stock_away = distances_to_fp32(SIZES)
    assert ours_away <= SAME * stock_away
    assert "gated product" not in caplog.text


def distances_to_fp32(sizes: dict[str, Any]) -> tuple[float, float]:
    """Of the prepared engine and of the stock transformer in bf16."""
    half, exact = (random_transformer(**sizes).to(CUDA, torch.bfloat16) for _ in range(2))
    prompt = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(CUDA, torch.bfloat16)
    expected = stock(exact.float(), 16, 24, [prompt.float()])
    theirs = stock(half, 16, 24, [prompt])
    fast = FastTransformer(half, CUDA, torch.bfloat16)
    assert fast.prepare(DenoiserShape(16, 24, 64))
    return distance(ours(fast, 16, 24, [prompt]), expected), distance(theirs, expected)
