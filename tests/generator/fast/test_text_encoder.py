"""The fast text encoder: the stock features of exactly the prompt's tokens, padded, replayed, or with weights away."""

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.encoding import without_last_layer
from zimage_ui.generator.fast import text_encoder as module
from zimage_ui.generator.fast.any_size import compiled
from zimage_ui.generator.fast.text_encoder import FastTextEncoder, Layer, encode_tokens, run_layer, usual_ways

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


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
    encoder = FastTextEncoder(text_encoder, CPU, ways=[lambda: layer])
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
        return FastTextEncoder(text_encoder, CPU, recorder)

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

    def test_rotary_tables_are_made_before_the_recording(self, encoder, monkeypatch):
        made: list[int] = []
        tables = module.rotary_tables
        monkeypatch.setattr(module, "rotary_tables", lambda tokens, _: made.append(tokens) or tables(tokens, _))
        encoder.prepare(10)
        for _ in range(3):
            encoder.encode(ids_of(10))
        assert made == [32]

    def test_a_table_that_cannot_be_read_is_the_prompts_fault_alone(self, encoder, monkeypatch):
        """Memory may be full just now: nothing of it says that the kernels are no good."""
        encoder.prepare(10)

        def full(*_: Any) -> torch.Tensor:
            raise RuntimeError("pinned memory is full")

        with monkeypatch.context() as patch:
            patch.setattr(module, "embedded", full)
            with pytest.raises(RuntimeError, match="pinned memory"):
                encoder.encode(ids_of(10))
        assert encoder.is_prepared(10)
        assert encoder.encode(ids_of(10)).shape[0] == 10

    def test_released_it_holds_no_weights_and_is_prepared_anew(self, encoder, recorder):
        assert not encoder.release()
        encoder.prepare(10)
        assert encoder.release()
        assert encoder._weights is None
        assert not encoder.is_prepared(10)
        assert encoder.prepare(10)
        assert recorder.recorded == 2

    def test_it_lacks_what_was_released_until_that_is_prepared_anew(self, encoder, monkeypatch):
        assert encoder.lacks(10)
        encoder.prepare(10)
        assert not encoder.lacks(10)
        encoder.release()
        assert encoder.lacks(10)
        monkeypatch.setattr(FastTextEncoder, "_weights_are_here", False)
        assert not encoder.lacks(10)

    def test_what_cannot_be_prepared_is_lacked_no_longer(self, text_encoder):
        class Broken:
            def record(self, work: Any) -> Any:
                raise RuntimeError("no graphs here")

        encoder = FastTextEncoder(text_encoder, CPU, Broken(), [lambda: run_layer])
        assert not encoder.prepare(10)
        assert not encoder.is_prepared(10)
        assert not encoder.lacks(10)
        assert encoder.lacks(40)

    def test_while_the_weights_are_away_the_stock_module_encodes(self, encoder, stock_calls, monkeypatch):
        encoder.prepare(10)
        encoder.release()
        monkeypatch.setattr(FastTextEncoder, "_weights_are_here", False)
        assert not encoder.prepare(10)
        encoder.encode(ids_of(10))
        assert stock_calls == [1]

    def test_what_fails_is_encoded_by_the_stock_module_from_then_on(self, encoder, stock_calls, caplog, monkeypatch):
        encoder.prepare(10)

        def fail(*_: Any) -> torch.Tensor:
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

        encoder = FastTextEncoder(text_encoder, CPU, Broken())
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not encoder.prepare(10)
        assert "no compiler here" in caplog.text
        encoder.encode(ids_of(10))
        assert stock_calls == [1]


class TestWays:
    """Of making a layer, with a recorder; each layer tells when it runs."""

    @pytest.fixture
    def recorder(self) -> ReplayingRecorder:
        return ReplayingRecorder()

    @pytest.fixture
    def ran(self) -> list[str]:
        return []

    @pytest.fixture
    def way(self, ran) -> Callable[[str], Callable[[], Layer]]:
        def named(name: str) -> Callable[[], Layer]:
            def layer(*arguments: Any) -> torch.Tensor:
                ran.append(name)
                return run_layer(*arguments)

            return lambda: layer

        return named

    def test_the_first_that_works_is_used_for_all_lengths_and_no_other_is_made(
        self, text_encoder, stock_calls, recorder, ran, way
    ):
        def unwanted() -> Layer:
            raise AssertionError("nobody asked for this")

        encoder = FastTextEncoder(text_encoder, CPU, recorder, [way("ours"), unwanted])
        assert encoder.prepare(20)
        assert encoder.prepare(20)
        encoder.encode(ids_of(20))
        encoder.encode(ids_of(50))
        assert (set(ran), recorder.recorded, stock_calls) == ({"ours"}, 1, [])

    def test_one_that_cannot_be_made_or_fails_is_logged_and_followed_by_the_next(
        self, text_encoder, stock_calls, recorder, ran, way, distance, caplog
    ):
        def unmakable() -> Layer:
            raise ImportError("no such compiler")

        def failing(*_: Any) -> torch.Tensor:
            raise RuntimeError("no kernel for this card")

        expected = encode_tokens(text_encoder, ids_of(50), CPU)
        stock_calls.clear()
        ways = [unmakable, lambda: failing, way("compiled")]
        encoder = FastTextEncoder(text_encoder, CPU, recorder, ways)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert encoder.prepare(20)
        assert "no such compiler" in caplog.text
        assert "no kernel for this card" in caplog.text
        ran.clear()
        assert distance(encoder.encode(ids_of(50)), expected) < 1e-5  # a length that nobody prepared
        assert (set(ran), recorder.recorded, stock_calls) == ({"compiled"}, 1, [])

    def test_where_all_fail_the_stock_module_encodes(self, text_encoder, stock_calls, recorder, caplog):
        def unmakable() -> Layer:
            raise ImportError("no such compiler")

        encoder = FastTextEncoder(text_encoder, CPU, recorder, [unmakable, unmakable])
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not encoder.prepare(20)
        assert caplog.text.count("no such compiler") >= 2
        encoder.encode(ids_of(20))
        assert (recorder.recorded, stock_calls) == (0, [1])

    def test_what_last_worked_serves_lengths_that_nobody_prepared(self, text_encoder, recorder, ran, way):
        ours = way("ours")()

        def for_short_prompts(*arguments: Any) -> torch.Tensor:
            if len(arguments[0]) > 32:
                raise RuntimeError("too long for these kernels")
            return ours(*arguments)

        encoder = FastTextEncoder(text_encoder, CPU, recorder, [lambda: for_short_prompts, way("compiled")])
        assert encoder.prepare(20)
        assert encoder.prepare(50)
        ran.clear()
        encoder.encode(ids_of(90))
        assert set(ran) == {"compiled"}
        ran.clear()
        encoder.encode(ids_of(20))
        assert set(ran) == {"ours"}

    @pytest.mark.parametrize(
        ("device", "dtype", "head_dim", "expected"),
        [
            (CUDA, torch.bfloat16, 128, ["_layer_with_triton", "_compiled_layer"]),
            (CUDA, torch.bfloat16, 48, ["_compiled_layer"]),
            (CUDA, torch.float16, 128, ["_compiled_layer"]),
            (CPU, torch.bfloat16, 128, ["_plain_layer"]),
        ],
        ids=str,
    )
    def test_kernels_of_our_own_come_first_where_they_serve(
        self, text_encoder, device, dtype, head_dim, expected, monkeypatch
    ):
        text_encoder.to(dtype).config.head_dim = head_dim
        monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
        assert [way.__name__ for way in usual_ways(text_encoder, device)] == expected
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert [way.__name__ for way in usual_ways(text_encoder, device)] == expected[-1:]

    def test_nothing_is_compiled_where_an_encoder_is_made(self, text_encoder, recorder, monkeypatch):
        asked: list[Any] = []
        monkeypatch.setattr(module, "compiled", lambda *arguments, **_: asked.append(arguments) or run_layer)
        monkeypatch.setattr(module, "has_triton_parts", lambda *_: False)
        module._compiled_layer.cache_clear()
        ways = usual_ways(text_encoder, CUDA)
        FastTextEncoder(text_encoder, CUDA, recorder)
        assert not asked
        encoder = FastTextEncoder(text_encoder, CPU, recorder, ways)
        assert encoder.prepare(20)
        assert encoder.prepare(50)
        module._compiled_layer.cache_clear()
        assert len(asked) == 1
