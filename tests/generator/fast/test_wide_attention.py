"""Attention with one wide head: what PyTorch's own attention gives, however many queries are taken at a time."""

import pytest
import torch
from torch.nn import functional

from zimage_ui.generator.fast import wide_attention as module
from zimage_ui.generator.fast.wide_attention import wide_attention


@pytest.mark.parametrize("scores", [2**26, 64 * 10, 1])
def test_is_pytorchs_attention(noise, monkeypatch, scores):
    monkeypatch.setattr(module, "_SCORES", scores)
    query, key, value = (noise(64, 512, seed=seed) for seed in range(3))
    expected = functional.scaled_dot_product_attention(query[None], key[None], value[None])[0]
    assert torch.allclose(wide_attention(query, key, value), expected, atol=1e-5)


def test_probabilities_are_rounded_once(noise):
    scores = 5 * noise(4, 32)
    expected = torch.softmax(scores.double() * 0.5, -1).bfloat16()
    assert torch.equal(module.probabilities(scores, 0.5, torch.bfloat16), expected)
