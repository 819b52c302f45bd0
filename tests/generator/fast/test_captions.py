"""Captions refined once for a request: as the stock transformer refines them, recorded or not."""

import logging
import sys

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.fast import block, parts, step
from zimage_ui.generator.fast import captions as module
from zimage_ui.generator.fast.captions import Captions
from zimage_ui.generator.fast.step import StepNetwork

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


@pytest.fixture
def recorder():
    return ReplayingRecorder()


@pytest.fixture
def captions(transformer, recorder):
    return made(transformer, recorder)


def made(transformer, recorder):
    network = StepNetwork(transformer)
    return Captions(network, transformer.rope_embedder, CPU, torch.float32, recorder)


@pytest.fixture
def stock(transformer, noise):
    """What the stock transformer makes of a caption before its main layers."""

    def refined(prompt_embeds):
        seen = []
        handle = transformer.context_refiner[-1].register_forward_hook(lambda _, inputs, output: seen.append(output))
        try:
            transformer([noise(16, 1, 8, 8)], torch.tensor([0.5]), [prompt_embeds])
        finally:
            handle.remove()
        return seen[0]

    return refined


@pytest.mark.parametrize("prepared", [False, True])
@pytest.mark.parametrize("tokens", [1, 14, 32, 40])
def test_they_are_embedded_padded_and_refined_as_the_stock_transformer_does(
    captions, stock, noise, distance, tokens, prepared
):
    prompt_embeds = noise(tokens, 24)
    if prepared:
        assert captions.prepare(tokens + -tokens % 32)
    found = captions.refined(prompt_embeds)
    assert found.shape == (1, tokens + -tokens % 32, 96)
    assert distance(found, stock(prompt_embeds)) < 1e-6


def test_one_recording_serves_all_prompts_of_a_length_one_after_the_other(captions, recorder, stock, noise, distance):
    for _ in range(2):
        assert captions.prepare(32)
    long, short = noise(32, 24), noise(3, 24, seed=1)
    for prompt_embeds in (long, short, long):
        assert distance(captions.refined(prompt_embeds), stock(prompt_embeds)) < 1e-6
    assert recorder.recorded == 1


def test_released_they_are_refined_all_the_same(captions, recorder, stock, noise, distance):
    captions.prepare(32)
    assert captions.release()
    assert not captions.release()
    assert distance(captions.refined(noise(9, 24)), stock(noise(9, 24))) < 1e-6
    assert captions.prepare(32)
    assert recorder.recorded == 2


def test_where_our_own_kernels_fail_others_are_recorded(
    transformer, recorder, monkeypatch, caplog, stock, noise, distance
):
    monkeypatch.setattr(module, "has_triton_parts", lambda *_: True)
    monkeypatch.setitem(sys.modules, "zimage_ui.generator.fast.triton_parts", None)
    captions = made(transformer, recorder)
    with caplog.at_level(logging.WARNING):
        assert captions.prepare(32)
    assert "refining captions of 32 tokens could not be prepared: ModuleNotFoundError" in caplog.text
    assert recorder.recorded == 1
    assert distance(captions.refined(noise(9, 24)), stock(noise(9, 24))) < 1e-6


@pytest.mark.parametrize("record", [True, False])
def test_recorded_or_not_the_same_kernels_compute(transformer, recorder, monkeypatch, noise, record):
    """Where layers are streamed nothing is recorded, and a picture has the same bits."""
    asked = []

    def parts_by(*, triton):
        asked.append(triton)
        return parts

    monkeypatch.setattr(module, "has_triton_parts", lambda *_: True)
    for room in (step, block):
        monkeypatch.setattr(room, "parts_by", parts_by)
    captions = made(transformer, recorder)
    assert captions.prepare(32, record=record)
    assert recorder.recorded == int(record)
    asked.clear()
    captions.refined(noise(9, 24))
    assert asked
    assert all(asked)
    assert captions.release() is record


def test_a_length_that_always_fails_is_tried_once_until_all_is_released(transformer, recorder, monkeypatch, caplog):
    captions = made(transformer, recorder)
    monkeypatch.setattr(StepNetwork, "refine", None)
    for _ in range(2):
        assert not captions.prepare(32)
    assert caplog.text.count("could not be prepared") == 1
    captions.release()
    assert not captions.prepare(32)
    assert caplog.text.count("could not be prepared") == 2


def test_where_nothing_is_recorded_nothing_is_prepared(transformer, noise):
    network = StepNetwork(transformer)
    captions = Captions(network, transformer.rope_embedder, CPU, torch.float32, None)
    assert not captions.prepare(32)
    assert captions.refined(noise(5, 24)).isfinite().all()
