"""Compiled functions, traced as for a GPU but run without a compiler: how often they compile, and what they give."""

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.fast.compiled_step import compiled_functions
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.shapes import DenoiserShape

pytestmark = pytest.mark.model

CPU = torch.device("cpu")


def velocity(fast, noise):
    denoiser = fast.denoiser(DenoiserShape(10, 14, 32), (500.0,), noise(14, 24, seed=1))
    with torch.inference_mode():
        return denoiser.predict(noise(1, 16, 10, 14), torch.tensor(500.0), 0)


@pytest.fixture
def fast(transformer, backend, monkeypatch):
    """A model that is traced as it is on a GPU: no packed weights."""
    monkeypatch.setattr("zimage_ui.generator.fast.step.packing_pays", lambda transformer: False)
    functions = compiled_functions(backend=backend)
    return FastTransformer(transformer, CPU, torch.float32, ReplayingRecorder(), ways=[lambda: functions])


def test_one_compilation_serves_all_blocks_of_equal_sizes(fast, backend):
    assert fast.prepare(DenoiserShape(8, 8, 32))
    assert backend.compilations == 4  # the entry, the block for image tokens and for all tokens, the exit


def test_further_sizes_and_captions_compile_nothing(fast, backend):
    for shape in (DenoiserShape(8, 8, 32), DenoiserShape(8, 16, 64), DenoiserShape(16, 10, 32)):
        assert fast.prepare(shape)
    compiled = backend.compilations
    for columns in range(3, 12):
        for caption_tokens in (32, 64, 96):
            assert fast.prepare(DenoiserShape(12, 2 * columns, caption_tokens))
    assert backend.compilations == compiled <= 8


def test_it_computes_what_the_uncompiled_functions_compute(transformer, fast, noise, distance):
    fast.prepare(DenoiserShape(10, 14, 32))
    plain = FastTransformer(transformer, CPU, torch.float32)
    assert distance(velocity(fast, noise), velocity(plain, noise)) < 1e-6
