"""A prompt encoded beside another job's steps by a text encoder that visits; by one at home while nobody asks."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.conftest import LIGHTHOUSE
from zimage_ui.errors import JobCancelledError
from zimage_ui.generator import encoding_ahead
from zimage_ui.generator.base import SILENT, GenerationListener
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.loading import load_components
from zimage_ui.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.model]
CUDA = torch.device("cuda:0")


class EachStep(GenerationListener):
    def __init__(self, then: Callable[[int], object]) -> None:
        self._then = then

    def step_done(self, step, num_steps, preview):
        if step < num_steps:
            self._then(step)


@pytest.fixture
def open_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[MemoryPlan], Engine]:
    monkeypatch.setattr(encoding_ahead, "LAYERS_A_PIECE", 1)  # it has three: three pieces

    def make(plan: MemoryPlan) -> Engine:
        components, _ = load_components(str(folder), progress=lambda _: None)
        return Engine(replace(components, memory_plan=plan), 2**26)

    return make


@pytest.fixture
def away(open_engine) -> Engine:
    return open_engine(MemoryPlan.TEXT_ENCODER_OFFLOADED)


def asked(prompt: str, **fields: Any) -> GenerationRequest:
    return GenerationRequest(**LIGHTHOUSE | {"prompt": prompt} | fields)


def draw(engine: Engine, request: GenerationRequest, then: Callable[[int], object] | None = None):
    result = engine.generate(request, EachStep(then) if then else SILENT, threading.Event())
    return bytes(result.images[0].pixels), result


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("steps", [2, 8])
def test_both_pictures_are_the_same_bits_wherever_the_prompt_stood(away, prepared, steps):
    if prepared:
        assert away.prepare(512, 512, 32)
    for turn in range(10):
        first, second = asked(f"first, {turn}", num_inference_steps=steps), asked(f"a red boat, {turn}")
        alone = [draw(away, request)[0] for request in (first, second)]
        away.forget_prompts()
        drawn, _ = draw(away, first, lambda _, following=second: away.encode_ahead(following))
        after, result = draw(away, second)
        assert [drawn, after] == alone
        assert result.encoded_ahead_ms > 0
        assert not result.embedding_cache_hit


def test_long_prompts_and_guidance_too(away):
    guided = asked("a red boat " * 60, guidance_scale=3.0, negative_prompt="grey " * 20)
    alone, _ = draw(away, guided)
    away.forget_prompts()
    draw(away, asked("first"), lambda _: away.encode_ahead(guided))
    after, result = draw(away, guided)
    assert after == alone
    assert result.encoded_ahead_ms > 0


def test_its_memory_is_taken_once(away):
    reserved = []
    for turn in range(30):
        following = asked(f"a red boat, {turn + 1:03}")
        draw(away, asked(f"a red boat, {turn:03}"), lambda _, following=following: away.encode_ahead(following))
        reserved.append(torch.cuda.memory_reserved(CUDA))
    assert len(set(reserved[2:])) == 1


@pytest.mark.parametrize("pieces", range(4))
def test_while_nobody_asks_it_is_done_piece_by_piece_and_waited_for(away, pieces):
    following = asked("a red boat")
    alone, _ = draw(away, following)
    away.forget_prompts()
    for _ in range(pieces):
        assert away.encode_ahead(following, wait=True)
        assert away._ahead._lane._stream.query()  # nothing is left to do
    after, result = draw(away, following)
    assert after == alone
    assert (result.encoded_ahead_ms > 0) == (pieces > 0)


def test_a_shape_is_prepared_right_after_a_prompt_was_begun(away):
    following = asked("a red boat")
    assert away.encode_ahead(following)
    assert away.prepare(512, 512, 32)
    after, result = draw(away, following)
    away.forget_prompts()
    assert after == draw(away, following)[0]
    assert result.encoded_ahead_ms > 0


def test_a_cancelled_job_leaves_what_was_begun(away):
    following, cancel = asked("a red boat"), threading.Event()
    alone, _ = draw(away, following)
    away.forget_prompts()

    def meanwhile(step: int) -> None:
        away.encode_ahead(following)
        if step == 2:
            cancel.set()

    with pytest.raises(JobCancelledError):
        away.generate(asked("first"), EachStep(meanwhile), cancel)
    after, result = draw(away, following)
    assert after == alone
    assert result.encoded_ahead_ms > 0


def test_an_encoder_that_comes_home_meanwhile(away):
    """The plan changes between the jobs: what was begun with visits is given up."""
    following = asked("a red boat")
    draw(away, asked("first", num_inference_steps=3), lambda step: step == 1 and away.encode_ahead(following))
    away._settle(MemoryPlan.RESIDENT)
    away._settle(MemoryPlan.TEXT_ENCODER_OFFLOADED)
    after, result = draw(away, following)
    away.forget_prompts()
    assert after == draw(away, following)[0]
    assert result.encoded_ahead_ms == 0.0


@pytest.mark.parametrize("prepared", [False, True])
def test_at_home_it_is_done_whole_while_nobody_asks_and_the_bits_are_the_same(open_engine, prepared):
    engine = open_engine(MemoryPlan.RESIDENT)
    if prepared:
        assert engine.prepare(512, 512, 32)
    for turn in range(10):
        following = asked(f"a red boat, {turn}")
        alone, _ = draw(engine, following)
        engine.forget_prompts()
        assert [engine.encode_ahead(following, wait=True) for _ in range(2)] == [True, False]
        assert torch.cuda.current_stream(CUDA).query()  # nothing is left to do
        draw(engine, asked(f"another, {turn}"))  # who comes first replays the same graphs
        after, result = draw(engine, following)
        assert after == alone
        assert result.encoded_ahead_ms > 0
        assert not result.embedding_cache_hit


def test_at_home_nothing_is_done_beside_steps(open_engine):
    engine, answers = open_engine(MemoryPlan.RESIDENT), []
    draw(engine, asked("first"), lambda _: answers.append(engine.encode_ahead(asked("a red boat"))))
    assert answers == [False] * 7
