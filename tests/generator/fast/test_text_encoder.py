"""The fast text encoder: the stock features of exactly the prompt's tokens, padded, replayed, or with weights away."""

import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.encoding import without_last_layer
from zimage_ui.generator.fast.any_size import compiled
from zimage_ui.generator.fast.text_encoder import FastTextEncoder, encode_tokens, run_layer

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


@pytest.fixture
def text_encoder(stock) -> Any:
    """A copy, because its weights are fused in place; its norms are not all ones, so that a mistake shows."""
    with torch.inference_mode(False):  # as a model is loaded; it is only used in inference mode
        encoder = without_last_layer(deepcopy(stock.text_encoder))
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.linspace(0.5, 1.5, len(parameter)))
    return encoder


@pytest.fixture
def stock_calls(text_encoder) -> list[int]:
    """One entry for each time that the stock module's first layer ran."""
    calls: list[int] = []
    text_encoder.layers[0].register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def ids_of(tokens: int) -> list[int]:
    return [7 * place % 300 for place in range(tokens)]


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 200])
def test_features_are_the_stock_modules(text_encoder, stock_calls, distance, tokens):
    expected = encode_tokens(text_encoder, ids_of(tokens), CPU)
    stock_calls.clear()
    features = FastTextEncoder(text_encoder, CPU).encode(ids_of(tokens))
    assert features.shape == expected.shape
    assert distance(features, expected) < 1e-5
    assert not stock_calls


def test_weights_are_fused_without_a_second_copy_and_the_stock_module_still_works(text_encoder, distance):
    expected = encode_tokens(text_encoder, ids_of(9), CPU)
    FastTextEncoder(text_encoder, CPU).encode(ids_of(9))
    attention = text_encoder.layers[0].self_attn
    storages = {
        part.weight.untyped_storage().data_ptr() for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    }
    assert len(storages) == 1
    assert distance(encode_tokens(text_encoder, ids_of(9), CPU), expected) < 1e-5


def test_in_16_bit_it_is_no_further_from_exact_than_stock(text_encoder, distance):
    exact = encode_tokens(text_encoder, ids_of(40), CPU)
    rounded = text_encoder.to(torch.bfloat16)
    theirs = distance(encode_tokens(rounded, ids_of(40), CPU).float(), exact)
    assert distance(FastTextEncoder(rounded, CPU).encode(ids_of(40)).float(), exact) < 1.05 * theirs


def test_a_layer_is_compiled_once_for_all_lengths(text_encoder):
    counter = CompileCounter()
    layer = compiled(run_layer, varying={0: (0,), 2: (0,), 3: (0,)}, backend=counter)
    encoder = FastTextEncoder(text_encoder, CPU, layer=layer)
    for tokens in (64, 32, 96, 512):
        encoder.encode(ids_of(tokens))
    assert counter.frame_count == 1


@pytest.mark.parametrize("change", [{"attention_bias": True}, {"hidden_act": "gelu"}], ids=str)
def test_another_kind_of_encoder_is_left_to_the_stock_module(text_encoder, stock_calls, change):
    for name, value in change.items():
        setattr(text_encoder.config, name, value)
    FastTextEncoder(text_encoder, CPU).encode(ids_of(5))
    assert stock_calls == [1]


class TestWithARecorder:
    """As on a GPU, but for what records."""

    @pytest.fixture
    def recorder(self) -> ReplayingRecorder:
        return ReplayingRecorder()

    @pytest.fixture
    def encoder(self, text_encoder, recorder) -> FastTextEncoder:
        return FastTextEncoder(text_encoder, CPU, lambda: recorder)

    def test_the_stock_module_encodes_until_something_is_prepared(self, encoder, stock_calls):
        encoder.encode(ids_of(20))
        assert stock_calls == [1]
        assert encoder.prepare(20)
        encoder.encode(ids_of(20))
        encoder.encode(ids_of(50))  # not prepared, but its layers are compiled
        assert stock_calls == [1]

    @pytest.mark.parametrize("tokens", [3, 32, 33])
    def test_padding_is_seen_by_no_token(self, encoder, text_encoder, distance, tokens):
        expected = encode_tokens(text_encoder, ids_of(tokens), CPU)
        encoder.prepare(tokens)
        features = encoder.encode(ids_of(tokens))
        assert features.shape == expected.shape
        assert distance(features, expected) < 1e-5

    def test_lengths_of_one_multiple_of_32_share_a_recording(self, encoder, recorder):
        assert encoder.prepare(3)
        assert encoder.prepare(32)
        assert (recorder.recorded, encoder.is_prepared(20), encoder.is_prepared(33)) == (1, True, False)

    def test_a_later_prompt_leaves_the_features_of_an_earlier_one_alone(self, encoder):
        encoder.prepare(10)
        first = encoder.encode(ids_of(10))
        kept = first.clone()
        encoder.encode(ids_of(11))
        assert torch.equal(first, kept)

    def test_released_it_holds_no_weights_and_is_prepared_anew(self, encoder, recorder):
        assert not encoder.release()
        encoder.prepare(10)
        assert encoder.release()
        assert encoder._weights is None
        assert not encoder.is_prepared(10)
        assert encoder.prepare(10)
        assert recorder.recorded == 2

    def test_while_the_weights_are_away_the_stock_module_encodes(self, encoder, stock_calls, monkeypatch):
        encoder.prepare(10)
        encoder.release()
        monkeypatch.setattr(FastTextEncoder, "_weights_are_here", False)
        assert not encoder.prepare(10)
        encoder.encode(ids_of(10))
        assert stock_calls == [1]

    def test_what_fails_is_encoded_by_the_stock_module_from_then_on(self, encoder, stock_calls, caplog, monkeypatch):
        encoder.prepare(10)

        def fail(rows: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("cannot compile anew")

        monkeypatch.setattr(encoder, "_run", fail)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            encoder.encode(ids_of(40))
            encoder.encode(ids_of(10))
        assert "cannot compile anew" in caplog.text
        assert stock_calls == [1, 1]

    def test_a_failed_preparation_is_logged_and_loses_no_prompt(self, text_encoder, stock_calls, caplog):
        class Broken:
            def record(self, work: Any) -> Any:
                raise RuntimeError("no compiler here")

        encoder = FastTextEncoder(text_encoder, CPU, Broken)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not encoder.prepare(10)
        assert "no compiler here" in caplog.text
        encoder.encode(ids_of(10))
        assert stock_calls == [1]
