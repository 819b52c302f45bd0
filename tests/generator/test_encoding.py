"""Encoding: the stock pipeline's embeddings with less work, and never a wrong one from the cache."""

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
import torch

from zimage_ui.generator.components import Components
from zimage_ui.generator.embedding_cache import EmbeddingCache
from zimage_ui.generator.encoding import PromptEncoder, tokenize, without_last_layer
from zimage_ui.generator.fast.text_encoder import encode_tokens

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
LONG = "a red cat and a blue dog in the green garden, " * 60
PROMPTS = ("a red cat", "一只红色的猫和一只蓝色的狗在花园里", "", "line one\nline <|im_end|> two \U0001f431", LONG)


def stock_embeds(stock: Any, prompt: str, max_tokens: int = 512) -> torch.Tensor:
    with torch.inference_mode():
        return stock._encode_prompt([prompt], max_sequence_length=max_tokens)[0]


@pytest.fixture
def shorter(components: Components) -> Components:
    return replace(components, text_encoder=without_last_layer(components.text_encoder))


@pytest.fixture
def cache() -> EmbeddingCache:
    return EmbeddingCache(1 << 20)


@pytest.fixture
def encoder(shorter: Components, cache: EmbeddingCache) -> PromptEncoder:
    return PromptEncoder(shorter, cache)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("max_tokens", [512, 48])
def test_embeddings_are_the_stock_pipelines_up_to_rounding(stock, shorter, cache, prompt, max_tokens):
    encoder = PromptEncoder(replace(shorter, max_prompt_tokens=max_tokens), cache)
    embedding, _ = encoder.encode(prompt)
    expected = stock_embeds(stock, prompt, max_tokens)
    assert embedding.prompt_embeds.shape == expected.shape
    assert torch.allclose(embedding.prompt_embeds, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_tokens", [512, 64])
def test_a_long_prompt_is_cut_as_stock_cuts_it_and_it_is_said_by_how_much(stock, shorter, cache, max_tokens):
    encoder = PromptEncoder(replace(shorter, max_prompt_tokens=max_tokens), cache)
    embedding, _ = encoder.encode(LONG)
    whole = tokenize(stock.tokenizer, LONG, 10**6)
    assert whole.truncated == 0
    assert embedding.prompt_tokens == max_tokens
    assert embedding.truncated_tokens == len(whole.ids) - max_tokens > 0


def test_a_prompt_of_exactly_the_maximum_is_not_cut(stock):
    ids = tokenize(stock.tokenizer, "a red cat", 512).ids
    assert tokenize(stock.tokenizer, "a red cat", len(ids)).truncated == 0
    assert tokenize(stock.tokenizer, "a red cat", len(ids) - 1).truncated == 1


def test_a_cut_prompt_leaves_the_next_one_whole(encoder):
    encoder.encode(LONG)
    embedding, _ = encoder.encode("a red cat")
    assert embedding.truncated_tokens == 0


def test_the_last_layer_and_the_final_norm_are_not_run(stock, shorter):
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate([*stock.text_encoder.layers, stock.text_encoder.norm])
    ]
    try:
        with torch.inference_mode():
            encode_tokens(shorter.text_encoder, [1, 2, 3], CPU)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == list(range(len(stock.text_encoder.layers) - 1))


def test_the_shorter_encoder_shares_all_its_weights(stock, shorter):
    originals = {parameter.data_ptr() for parameter in stock.text_encoder.parameters()}
    assert {parameter.data_ptr() for parameter in shorter.text_encoder.parameters()} < originals
    assert len(stock.text_encoder.layers) == stock.text_encoder.config.num_hidden_layers  # the given one stays whole


class TestCacheKey:
    """Row 45: never a wrong hit."""

    def test_the_same_prompt_hits(self, encoder, cache):
        first, hit = encoder.encode("a red cat")
        assert not hit
        second, hit = encoder.encode("a red cat")
        assert hit
        assert second is first
        stats = cache.stats()
        assert (stats.hits, stats.misses, stats.entries) == (1, 1, 1)
        assert stats.size_bytes == first.prompt_embeds.nbytes
        assert stats.saved_ms == pytest.approx(first.elapsed_ms())

    def test_one_character_more_misses(self, encoder):
        encoder.encode("a red cat")
        assert not encoder.encode("a red cat ")[1]
        assert not encoder.encode("a red caT")[1]

    @pytest.mark.parametrize(
        "change",
        [
            {"text_encoder_fingerprint": "another"},
            {"max_prompt_tokens": 511},
            {"dtype": torch.bfloat16},
        ],
        ids=["text encoder", "maximum", "dtype"],
    )
    def test_another_model_misses(self, shorter, encoder, cache, change):
        encoder.encode("a red cat")
        assert not PromptEncoder(replace(shorter, **change), cache).encode("a red cat")[1]
        assert encoder.encode("a red cat")[1]

    def test_two_spellings_of_one_text_are_one(self, encoder):
        composed, decomposed = (unicodedata.normalize(form, "café für élan") for form in ("NFC", "NFD"))
        assert composed != decomposed
        encoder.encode(composed)
        assert encoder.encode(decomposed)[1]
