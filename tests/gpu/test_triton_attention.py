"""Attention in bf16 by our own kernel, and by all others that are measured with it, on a real GPU."""

import pytest
import torch

from tests.gpu.test_fast_denoiser import CUDA, distance
from zimage_ui.generator.fast import timing
from zimage_ui.generator.fast.attention import (
    AttentionBackend,
    attention,
    attention_by,
    backend_times_ms,
    candidates,
    has_triton_attention,
)
from zimage_ui.generator.fast.graphs import CudaRecorder, RecordedFunction

# FlashAttention 4's compiler warns of its own code.
pytestmark = [
    pytest.mark.gpu, pytest.mark.model,
    pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]  # fmt: skip

BF16 = torch.bfloat16
TRITON = AttentionBackend.TRITON
# Twice as far as one rounding of normal numbers leads: weights are rounded, and the result.
ROUNDING = 0.005
# Pictures and tokens: whole blocks of 64 keys and not, fewer than one, and numbers that no picture has.
TOKENS = pytest.mark.parametrize(
    "extents", [(1, 4160), (1, 1088), (1, 1056), (2, 160), (2, 96), (1, 64), (1, 32), (1, 16), (3, 77)], ids=str
)

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def served() -> None:
    if not has_triton_attention(128, BF16, CUDA):
        pytest.skip("our own attention in bf16 is for Hopper")


def views(pictures: int, tokens: int, heads: int = 3, seed: int = 0) -> Heads:
    """As kernels of our own and a block's projection leave them; whatever lies around them in memory is no number."""
    made = torch.Generator().manual_seed(seed)
    turned = torch.randn(pictures, tokens, 2, heads, 128, generator=made)
    product = torch.randn(pictures, tokens, 3, heads, 128, generator=made)
    query, key = among_nans(turned).unbind(2)
    return query, key, among_nans(product)[:, :, 2]


def among_nans(values: torch.Tensor) -> torch.Tensor:
    memory = torch.full((values.numel() + 2**17,), float("nan"), dtype=BF16, device=CUDA)
    inside = memory[2**16 : 2**16 + values.numel()].view(values.shape)
    return inside.copy_(values)


def exactly(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    with attention_by(AttentionBackend.MATH):
        return attention(query.float(), key.float(), value.float())


@TOKENS
def test_it_is_attention_to_bf16s_rounding(served, extents):
    heads = views(*extents)
    found = attention(*heads, TRITON)
    assert found.dtype == BF16
    assert found.shape == heads[0].shape
    assert found.is_contiguous()
    assert distance(found.float(), exactly(*heads)) < ROUNDING


@TOKENS
def test_the_same_heads_have_the_same_bits(served, extents):
    heads = views(*extents)
    assert torch.equal(attention(*heads, TRITON), attention(*heads, TRITON))


@pytest.mark.parametrize("kept", [1, 40, 64, 128])
def test_fewer_queries_than_keys(served, kept):
    query, key, value = views(2, 160)
    found = attention(query[:, :kept], key, value, TRITON)
    assert found.is_contiguous()
    assert distance(found.float(), exactly(query, key, value)[:, :kept]) < ROUNDING


def test_dense_tensors_do_as_well(served):
    heads = views(2, 96)
    query, key, value = (each.contiguous() for each in heads)
    assert torch.equal(attention(query, key, value, TRITON), attention(*heads, TRITON))


def test_large_scores_leave_no_weight_to_others(served):
    """A softmax of one for the token itself: what comes out is its value."""
    query, _, value = views(1, 96)
    found = attention(100 * query, query, value, TRITON)
    assert torch.equal(found, value)


def test_all_heads_of_the_full_model(served):
    heads = views(1, 1088, heads=30)
    assert distance(attention(*heads, TRITON).float(), exactly(*heads)) < ROUNDING


def test_it_can_be_recorded(served):
    def run(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attention(query, key, value, TRITON)

    with torch.inference_mode():
        recorded = RecordedFunction(run, views(1, 160), CudaRecorder(CUDA))
        for seed in (1, 2):
            heads = views(1, 160, seed=seed)
            assert torch.equal(recorded(*heads), run(*heads))


@pytest.mark.parametrize("extents", [(1, 1088), (1, 1056), (2, 96)], ids=str)
def test_every_candidate_that_serves_computes_the_same(monkeypatch, extents):
    monkeypatch.setattr(timing, "_HOPELESS", 1e9)
    monkeypatch.setattr(timing, "_BEHIND", 1e9)
    pictures, tokens = extents
    heads = views(pictures, tokens)
    timed = backend_times_ms((pictures, tokens, 3, 128), BF16, CUDA)
    there = candidates(128, BF16, CUDA)
    assert AttentionBackend.FLASH in timed
    assert {backend for backend in there if backend.kernel is None} <= {*timed}
    assert list(timed) == [backend for backend in there if backend in timed]
    expected = exactly(*heads)
    for backend in timed:
        with attention_by(backend):
            assert distance(attention(*heads, backend).float(), expected) < ROUNDING
