"""Attention over strided views, without copies; the choice of a kernel is a GPU's affair."""

import pytest
import torch

from zimage_ui.generator.fast.attention import AttentionBackend, attention, attention_by, fastest_backend

pytestmark = pytest.mark.model


@pytest.fixture
def views(noise):
    """As a block's projection leaves them."""
    return noise(2, 12, 3, 2, 16).unbind(2)


@pytest.mark.parametrize("backend", [None, AttentionBackend.MATH])
def test_it_is_softmax_attention(views, backend):
    query, key, value = views
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 4
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    with attention_by(backend):
        assert torch.allclose(attention(query, key, value), expected, atol=1e-5)


def test_fewer_queries_than_keys(views):
    query, key, value = views
    whole = attention(query, key, value)
    assert torch.allclose(attention(query[:, :5], key, value), whole[:, :5], atol=1e-6)


def test_heads_come_back_beside_each_other_without_a_copy(views):
    answer = attention(*views)
    assert answer.flatten(2).data_ptr() == answer.data_ptr()


def test_a_cpu_leaves_the_choice_to_torch():
    assert fastest_backend((1, 32, 2, 16), torch.float32, torch.device("cpu")) is None


def test_every_backend_has_a_kernel():
    assert len({backend.kernel for backend in AttentionBackend}) == len(AttentionBackend)


def test_a_backend_is_chosen_within_its_context_only():
    def flags():
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()

    before = flags()
    with attention_by(AttentionBackend.MATH):
        assert flags() == (False, True)
    assert flags() == before
