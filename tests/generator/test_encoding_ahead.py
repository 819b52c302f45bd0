"""Prompts encoded a piece at a time before they are asked for: the same bits, counted honestly, in nobody's way."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator import encoding, encoding_ahead
from zimage_ui.generator.base import SILENT, GenerationListener
from zimage_ui.generator.clock import HostStopwatch
from zimage_ui.generator.components import Components, MemoryPlan
from zimage_ui.generator.embedding_cache import EmbeddingCache
from zimage_ui.generator.encoding import PromptEncoder, with_layers, without_last_layer
from zimage_ui.generator.encoding_ahead import LAYERS_A_PIECE, PromptsAhead
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.text_encoder import encode_tokens
from zimage_ui.generator.residence import VisitingLayers
from zimage_ui.request import GenerationRequest, Preview
from zimage_ui.stages import Stage

pytestmark = pytest.mark.model
CPU = torch.device("cpu")
PROMPT, OTHER = "a red cat on an old wooden house", "一只蓝色的狗"
LAYERS = 2 * LAYERS_A_PIECE + 2  # three pieces
PIECES = 3


class Lane:
    """Notes who works beside whom; `room` is what the device has left."""

    def __init__(self) -> None:
        self.room = 10**12
        self.asked = 0
        self.squeezed = 0
        self.log: list[str] = []

    @contextmanager
    def beside(self) -> Iterator[None]:
        self.log.append("begin")
        yield
        self.log.append("end")

    def join(self) -> None:
        self.log.append("join")

    def free_bytes(self) -> int:
        self.asked += 1
        return self.room

    def times_squeezed(self) -> int:
        return self.squeezed


@pytest.fixture(scope="module")
def deep_encoder(stock: Any) -> Any:
    config = deepcopy(stock.text_encoder.config)
    config.num_hidden_layers = LAYERS + 1
    config.layer_types = ["full_attention"] * (LAYERS + 1)
    torch.manual_seed(5)
    return type(stock.text_encoder)(config).eval().requires_grad_(False)


@pytest.fixture
def deep(components: Components, deep_encoder: Any) -> Components:
    return replace(components, text_encoder=without_last_layer(deep_encoder))


@pytest.fixture
def lane() -> Lane:
    return Lane()


@pytest.fixture
def ahead(deep: Components, lane: Lane) -> PromptsAhead:
    return PromptsAhead(deep, lane)


@pytest.fixture
def encoder(deep: Components, ahead: PromptsAhead) -> PromptEncoder:
    return PromptEncoder(deep, EmbeddingCache(1 << 20), lambda ids: encode_tokens(deep.text_encoder, ids, CPU), ahead)


def expected(deep: Components, prompt: str) -> torch.Tensor:
    plain = PromptEncoder(deep, EmbeddingCache(0), lambda ids: encode_tokens(deep.text_encoder, ids, CPU))
    return plain.encode(prompt)[0].prompt_embeds


def test_layers_in_slices_are_all_layers(deep: Components) -> None:
    rows = torch.randn(1, 9, deep.text_encoder.config.hidden_size)
    with torch.inference_mode():
        whole = deep.text_encoder(inputs_embeds=rows, use_cache=False).last_hidden_state
        for begin, end in ((0, 4), (4, 5), (5, LAYERS)):
            rows = with_layers(deep.text_encoder, begin, end)(inputs_embeds=rows, use_cache=False).last_hidden_state
    assert torch.equal(rows, whole)


@pytest.mark.parametrize("pieces", range(PIECES + 1))
def test_wherever_it_stands_when_it_is_asked_for_the_bits_are_the_same(deep, encoder, lane, pieces):
    for _ in range(pieces):
        assert encoder.encode_ahead(PROMPT)
    embedding, hit = encoder.encode(PROMPT)
    assert torch.equal(embedding.prompt_embeds, expected(deep, PROMPT))
    assert not hit  # the text encoder did run for it
    assert (embedding.ahead_ms() > 0) == (pieces > 0)
    assert embedding.elapsed_ms() >= embedding.ahead_ms()
    assert lane.log[-1:] == (["join"] if pieces else [])
    assert encoder.encode(PROMPT)[1]


def test_it_ends_and_says_so(encoder, ahead):
    assert [encoder.encode_ahead(PROMPT) for _ in range(PIECES + 2)] == [True] * PIECES + [False] * 2
    embedding, _ = encoder.encode(PROMPT)
    assert embedding.ahead_ms() == embedding.elapsed_ms()
    assert not encoder.encode_ahead(PROMPT)  # it is cached
    assert ahead.take(PROMPT) is None


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[HostStopwatch]:
    """Stopwatches of pieces that somebody waited for."""
    waited: list[HostStopwatch] = []

    class Watched(HostStopwatch):
        def elapsed_ms(self) -> float:
            waited.append(self)
            return super().elapsed_ms()

    for room in (encoding, encoding_ahead):
        monkeypatch.setattr(room, "stopwatch", lambda device: Watched())
    return waited


def test_whoever_has_the_time_waits_for_each_piece(encoder, waits):
    assert encoder.encode_ahead(PROMPT)
    assert waits == []
    assert encoder.encode_ahead(PROMPT, wait=True)
    assert len(waits) == 1


def test_all_its_work_is_beside(encoder, lane):
    while encoder.encode_ahead(PROMPT):
        pass
    assert lane.log == ["begin", "end"] * (PIECES + 1)


def test_layers_that_visit_are_fetched_one_at_a_time_and_come_home(deep, encoder):
    home = [parameter.data_ptr() for parameter in deep.text_encoder.layers.parameters()]
    fetched: list[int] = []

    def fetch(weight: torch.Tensor) -> torch.Tensor:
        fetched.append(weight.data_ptr())
        return weight.clone()

    visits = VisitingLayers(deep.text_encoder.layers, fetch)
    try:
        while encoder.encode_ahead(PROMPT):
            assert visits.away == 0
            assert [parameter.data_ptr() for parameter in deep.text_encoder.layers.parameters()] == home
    finally:
        visits.end()
    assert fetched == home
    assert torch.equal(encoder.encode(PROMPT)[0].prompt_embeds, expected(deep, PROMPT))


def test_another_prompt_takes_the_place_of_one_under_way_and_not_of_one_that_is_done(deep, encoder, ahead):
    while encoder.encode_ahead(PROMPT):
        pass
    assert encoder.encode_ahead(OTHER)
    assert encoder.encode_ahead("a third")
    assert ahead.take(OTHER) is None
    assert ahead.take("a third") is not None
    assert encoder.encode(PROMPT)[0].ahead_ms() > 0


def test_few_prompts_are_kept_that_nobody_asks_for(encoder, ahead):
    prompts = [f"boat {number}" for number in range(6)]
    for prompt in prompts:
        while encoder.encode_ahead(prompt):
            pass
    kept = [prompt for prompt in prompts if ahead.take(prompt) is not None]
    assert kept == prompts[-4:]


def test_a_prompt_that_is_asked_for_again_and_again_is_kept(encoder, ahead):
    """That of a job that waits, while others write."""
    while encoder.encode_ahead(PROMPT):
        pass
    for draft in (f"boat {number}" for number in range(6)):
        while encoder.encode_ahead(draft):
            pass
        assert not encoder.encode_ahead(PROMPT)
    assert ahead.take(PROMPT) is not None


def test_a_prompt_too_long_is_cut_alike(deep, encoder):
    long = "a blue dog " * 300
    while encoder.encode_ahead(long):
        pass
    embedding, _ = encoder.encode(long)
    assert embedding.prompt_tokens == 512
    assert embedding.truncated_tokens > 0
    assert torch.equal(embedding.prompt_embeds, expected(deep, long))


def test_without_room_nothing_is_done(encoder, ahead, lane):
    lane.room = 10
    assert not encoder.encode_ahead(PROMPT)
    lane.room = 10**12
    assert encoder.encode_ahead(PROMPT)
    assert encoder.encode_ahead(PROMPT)
    assert lane.asked == 2  # what it once took, it keeps
    ahead.forget()
    lane.room = 10
    assert not encoder.encode_ahead(PROMPT)


def test_once_somebody_else_was_short_of_memory_it_asks_for_room_anew(encoder, lane):
    assert encoder.encode_ahead(PROMPT)
    lane.room = 10
    assert encoder.encode_ahead(PROMPT)
    lane.squeezed = 1
    assert not encoder.encode_ahead(PROMPT)


def test_without_memory_it_is_tried_again_when_twice_as_much_is_free(deep, encoder, lane, fail_forward):
    layer_bytes = sum(parameter.nbytes for parameter in deep.text_encoder.layers[0].parameters())
    lane.room = 2 * layer_bytes
    fail_forward(deep.text_encoder.layers[LAYERS_A_PIECE], torch.OutOfMemoryError("CUDA out of memory."))
    assert encoder.encode_ahead(PROMPT)
    assert not encoder.encode_ahead(PROMPT)
    assert not encoder.encode_ahead(PROMPT)
    lane.room = 4 * layer_bytes
    while encoder.encode_ahead(PROMPT):
        pass
    embedding, _ = encoder.encode(PROMPT)
    assert embedding.ahead_ms() == embedding.elapsed_ms()
    assert torch.equal(embedding.prompt_embeds, expected(deep, PROMPT))


def test_a_failure_is_the_jobs_own_to_tell_and_the_last(deep, encoder, fail_forward, caplog):
    fail_forward(deep.text_encoder.layers[LAYERS_A_PIECE], RuntimeError("a broken library"), times=2)
    assert encoder.encode_ahead(PROMPT)
    with caplog.at_level(logging.WARNING):
        assert not encoder.encode_ahead(PROMPT)
    assert "no prompt is encoded ahead any more" in caplog.text
    assert not encoder.encode_ahead(OTHER)
    with pytest.raises(RuntimeError, match="a broken library"):
        encoder.encode(PROMPT)
    assert torch.equal(encoder.encode(PROMPT)[0].prompt_embeds, expected(deep, PROMPT))


def test_a_driver_that_does_not_answer_raises_nothing(encoder, lane, monkeypatch):
    def broken() -> int:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(lane, "free_bytes", broken)
    assert not encoder.encode_ahead(PROMPT)
    assert not encoder.encode_ahead(OTHER)


def test_what_fails_while_it_is_finished_fails_the_job_and_is_begun_anew(deep, encoder, fail_forward):
    assert encoder.encode_ahead(PROMPT)
    fail_forward(deep.text_encoder.layers[LAYERS_A_PIECE], torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(torch.OutOfMemoryError):
        encoder.encode(PROMPT)
    assert torch.equal(encoder.encode(PROMPT)[0].prompt_embeds, expected(deep, PROMPT))


class TestWhole:
    """All of a prompt at once, where the text encoder lives on the device and nothing else is under way."""

    def test_it_is_what_a_job_would_do_and_counts_as_done_before(self, deep, encoder, lane):
        assert [encoder.encode_ahead(PROMPT, wait=True, whole=True) for _ in range(3)] == [True, False, False]
        assert lane.log == []  # on the caller's own stream
        embedding, hit = encoder.encode(PROMPT)
        assert torch.equal(embedding.prompt_embeds, expected(deep, PROMPT))
        assert not hit
        assert embedding.ahead_ms() == embedding.elapsed_ms() > 0
        assert not encoder.encode_ahead(PROMPT, whole=True)  # it is cached
        assert encoder.encode(PROMPT)[1]

    def test_it_is_waited_for(self, encoder, waits):
        assert encoder.encode_ahead(PROMPT, whole=True)
        assert len(waits) == 1

    def test_few_are_kept_that_nobody_asks_for(self, encoder, ahead):
        prompts = [f"boat {number}" for number in range(6)]
        assert all(encoder.encode_ahead(prompt, whole=True) for prompt in prompts)
        assert [prompt for prompt in prompts if ahead.take(prompt) is not None] == prompts[-4:]

    def test_no_layer_has_to_find_room(self, encoder, lane):
        lane.room = 0
        assert encoder.encode_ahead(PROMPT, whole=True)

    def test_without_memory_the_next_one_is_tried_again(self, deep, encoder, fail_forward):
        fail_forward(deep.text_encoder.layers[1], torch.OutOfMemoryError("CUDA out of memory."))
        assert not encoder.encode_ahead(PROMPT, whole=True)
        assert encoder.encode_ahead(OTHER, whole=True)
        assert encoder.encode(PROMPT)[0].ahead_ms() == 0.0

    def test_any_other_failure_is_logged_and_the_last(self, deep, encoder, fail_forward, caplog):
        fail_forward(deep.text_encoder.layers[1], RuntimeError("a broken library"))
        with caplog.at_level(logging.WARNING):
            assert not encoder.encode_ahead(PROMPT, whole=True)
        assert "no prompt is encoded ahead any more" in caplog.text
        assert not encoder.encode_ahead(OTHER, whole=True)
        assert torch.equal(encoder.encode(PROMPT)[0].prompt_embeds, expected(deep, PROMPT))


class Meanwhile(GenerationListener):
    """Calls `work` with every step but the last, as the worker does."""

    def __init__(self, work: Any) -> None:
        self._work = work
        self.answers: list[bool] = []

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        if step < num_steps:
            self.answers.append(self._work())


class TestEngine:
    @pytest.fixture
    def whole(self, components: Components, deep_encoder: Any) -> Components:
        plan = MemoryPlan.TEXT_ENCODER_OFFLOADED
        return replace(components, text_encoder=deep_encoder, memory_plan=plan)

    @pytest.fixture
    def engine(self, whole: Components) -> Engine:
        return Engine(whole, 1 << 20)

    @pytest.fixture
    def home(self, engine: Engine, lane: Lane) -> Engine:
        """As if its device were no CPU, which does nothing ahead."""
        engine._ahead = engine._encoder._ahead = PromptsAhead(engine.components, lane)
        return engine

    @pytest.fixture
    def away(self, home: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
        """As if its text encoder lived elsewhere than where it computes."""
        monkeypatch.setattr(type(home._residence), "visits", True)
        monkeypatch.setattr(type(home._residence), "visits_unnoticed", True)
        return home

    def asked(self, **changes: Any) -> GenerationRequest:
        fields = {"prompt": PROMPT, "width": 64, "height": 64, "num_inference_steps": 4, "seed": 7, **changes}
        return GenerationRequest(**fields)

    def test_beside_the_steps_of_another_job_and_the_picture_is_the_same(self, away, whole, deep_encoder, as_array):
        following = self.asked(prompt=OTHER)
        listener = Meanwhile(lambda: away.encode_ahead(following))
        first = away.generate(self.asked(), listener, threading.Event())
        assert listener.answers == [True] * PIECES
        second = away.generate(following, SILENT, threading.Event())
        alone = Engine(replace(whole, text_encoder=deep_encoder), 1 << 20)
        for made, request in ((first, self.asked()), (second, following)):
            plain = alone.generate(request, SILENT, threading.Event())
            # on a CPU, where no encoder is ever away, the job alone uses the fast layers
            assert abs(as_array(made.images[0]).astype(int) - as_array(plain.images[0])).max() <= 1
        assert (first.encoded_ahead_ms, second.embedding_cache_hit) == (0.0, False)
        assert second.encoded_ahead_ms > 0
        assert away.generate(following, SILENT, threading.Event()).encoded_ahead_ms == 0.0

    def test_the_negative_prompt_follows_where_there_is_guidance(self, away):
        guided = self.asked(guidance_scale=3.0, negative_prompt=OTHER)
        answers = [away.encode_ahead(guided) for _ in range(2 * PIECES + 1)]
        assert answers == [True] * (2 * PIECES) + [False]
        unguided = self.asked(prompt="a boat", negative_prompt="never read")
        assert [away.encode_ahead(unguided) for _ in range(PIECES + 1)] == [True] * PIECES + [False]
        assert away.generate(guided, SILENT, threading.Event()).encoded_ahead_ms > 0

    def test_from_pages_that_are_not_locked_it_comes_only_while_nobody_asks(self, away, monkeypatch):
        """Copies of them hold up whoever asks for them."""
        monkeypatch.setattr(type(away._residence), "visits_unnoticed", False)
        assert not away.encode_ahead(self.asked())
        assert away.encode_ahead(self.asked(), wait=True)

    def test_who_waits_for_a_piece_does_so(self, away, monkeypatch):
        waits: list[bool] = []
        monkeypatch.setattr(away._ahead, "advance", lambda prompt, *, wait: waits.append(wait) or True)
        assert away.encode_ahead(self.asked())
        assert away.encode_ahead(self.asked(), wait=True)
        assert waits == [False, True]

    def test_with_the_encoder_at_home_nothing_is_done_beside_steps(self, home):
        listener = Meanwhile(lambda: home.encode_ahead(self.asked(prompt=OTHER)))
        home.generate(self.asked(), listener, threading.Event())
        assert listener.answers == [False] * 3
        assert home.generate(self.asked(prompt=OTHER), SILENT, threading.Event()).encoded_ahead_ms == 0.0

    def test_with_the_encoder_at_home_it_is_done_whole_while_nobody_asks(self, home, lane):
        alone = home.generate(self.asked(), SILENT, threading.Event())
        home.forget_prompts()
        assert [home.encode_ahead(self.asked(), wait=True) for _ in range(2)] == [True, False]
        assert lane.log == []
        result = home.generate(self.asked(), SILENT, threading.Event())
        assert result.images == alone.images
        assert (result.encoded_ahead_ms > 0, result.embedding_cache_hit) == (True, False)

    def test_with_the_encoder_at_home_both_prompts_are_done_where_there_is_guidance(self, home):
        guided = self.asked(guidance_scale=3.0, negative_prompt=OTHER)
        assert [home.encode_ahead(guided, wait=True) for _ in range(3)] == [True, True, False]
        result = home.generate(guided, SILENT, threading.Event())
        assert result.encoded_ahead_ms > 0
        assert not result.embedding_cache_hit

    def test_what_was_done_at_home_serves_a_job_for_which_the_encoder_left(self, home, monkeypatch):
        assert home.encode_ahead(self.asked(), wait=True)
        monkeypatch.setattr(type(home._residence), "visits", True)
        assert not home.encode_ahead(self.asked(), wait=True)
        assert home.generate(self.asked(), SILENT, threading.Event()).encoded_ahead_ms > 0

    def test_while_its_weights_are_in_two_places_nothing_is_done(self, home, monkeypatch):
        """Moving them failed: the next job puts that right, and until then they fit nobody."""
        monkeypatch.setattr(type(home._residence), "is_at_home", False)
        assert not home.encode_ahead(self.asked(), wait=True)
        monkeypatch.undo()
        assert home.encode_ahead(self.asked(), wait=True)

    def test_a_cpu_does_nothing_ahead(self, engine):
        assert not engine.encode_ahead(self.asked(), wait=True)
        listener = Meanwhile(lambda: engine.encode_ahead(self.asked(prompt=OTHER)))
        engine.generate(self.asked(), listener, threading.Event())
        assert listener.answers == [False] * 3

    def test_what_is_left_is_part_of_encode(self, away):
        assert away.encode_ahead(self.asked())
        result = away.generate(self.asked(), SILENT, threading.Event())
        assert result.encoded_ahead_ms > 0
        assert result.stage_ms[Stage.ENCODE] > 0

    def test_running_out_of_memory_gives_up_what_is_under_way(self, away, lane, fail_forward):
        from tests.generator.hooked import transformer_pass

        assert away.encode_ahead(self.asked(prompt=OTHER))
        fail_forward(transformer_pass(away), torch.OutOfMemoryError("CUDA out of memory."), times=2)
        with pytest.raises(DeviceMemoryError):
            away.generate(self.asked(), SILENT, threading.Event())
        result = away.generate(self.asked(prompt=OTHER), SILENT, threading.Event())
        assert result.encoded_ahead_ms == 0.0
