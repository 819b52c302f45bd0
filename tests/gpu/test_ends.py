"""The fast text encoder and VAE decoder on a real NVIDIA GPU: exact, compiled once, recorded, and back after a move."""

import threading
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.conftest import LIGHTHOUSE
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.components import Components, MemoryPlan
from zimage_ui.generator.decoding import decode
from zimage_ui.generator.encoding import without_last_layer
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.text_encoder import FastTextEncoder, encode_tokens, usual_ways
from zimage_ui.generator.fast.vae import FastDecoder
from zimage_ui.generator.fast.wide_attention import wide_attention
from zimage_ui.generator.loading import load_components
from zimage_ui.generator.residence import TextEncoderResidence
from zimage_ui.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.model]
CUDA = torch.device("cuda:0")


@pytest.fixture
def components(folder: Path) -> Components:
    with torch.inference_mode(False):  # as they are loaded; they are only used in inference mode
        return load_components(str(folder), progress=lambda _: None)[0]


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def distance(values: torch.Tensor, exact: torch.Tensor) -> float:
    return float((values.float() - exact).norm() / exact.norm())


def compilations() -> int:
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def latents_of(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((1, 16, height, width), generator=torch.Generator().manual_seed(seed)).to(CUDA)


@pytest.mark.usefixtures("inference")
class TestDecoder:
    @pytest.fixture
    def decoder(self, components: Components) -> FastDecoder:
        return FastDecoder(components.vae, CUDA)

    def test_is_no_further_from_exact_than_stock(self, components, decoder):
        latents = latents_of(64, 48)
        theirs = components.vae.decode(latents.to(components.dtype), return_dict=False)[0]
        exact = deepcopy(components.vae).float().decode(latents, return_dict=False)[0]
        assert decoder.prepare(64, 48)
        ours = decoder.decode(latents.to(components.dtype))[0]
        assert ours.shape == exact.shape
        assert distance(ours, exact) <= 1.1 * distance(theirs, exact)

    def test_replays_what_it_would_compute(self, components, decoder):
        first, second = (latents_of(32, 32, seed).to(components.dtype) for seed in (1, 2))
        decoder.prepare(32, 32)
        pictures = [decoder.decode(latents)[0] for latents in (first, second, first)]
        assert torch.equal(pictures[0], pictures[2])
        assert not torch.equal(pictures[0], pictures[1])
        assert torch.allclose(pictures[1].float(), decoder._run(second).float(), atol=2e-2)

    def test_other_sizes_are_decoded_without_compiling_again(self, components, decoder):
        decoder.prepare(64, 64)
        before = compilations()
        for size in ((48, 80), (66, 50), (128, 128)):
            (picture,) = decoder.decode(latents_of(*size).to(components.dtype))
            assert picture.shape[-2:] == (8 * size[0], 8 * size[1])
            assert decoder.prepare(*size)
        assert compilations() == before

    def test_memory_stays_the_same_picture_after_picture(self, decoder):
        for size in ((64, 64), (32, 96)):
            decoder.prepare(*size)

        def draw(count: int) -> int:
            for place in range(count):
                size = ((64, 64), (32, 96))[place % 2]
                latents, waits = latents_of(*size, place), {"cancel": threading.Event(), "settle": lambda: None}
                decode(decoder, latents, [place], tiled=False, **waits)
            return torch.cuda.memory_reserved(CUDA)

        assert draw(4) == draw(20)

    def test_released_it_gives_its_memory_back_and_goes_on(self, components, decoder):
        latents = latents_of(64, 64).to(components.dtype)
        decoder.prepare(64, 64)
        expected = decoder.decode(latents)[0]
        decoder.release()
        torch.cuda.empty_cache()
        freed = torch.cuda.memory_reserved(CUDA)
        assert torch.allclose(decoder.decode(latents)[0].float(), expected.float(), atol=2e-2)
        assert decoder.prepare(64, 64)
        assert torch.cuda.memory_reserved(CUDA) > freed


@pytest.mark.usefixtures("inference")
class TestTextEncoder:
    @pytest.fixture
    def text_encoder(self, components: Components) -> Any:
        with torch.inference_mode(False):
            return without_last_layer(components.text_encoder).to(CUDA)

    @pytest.mark.parametrize("tokens", [5, 32, 61])
    @pytest.mark.parametrize("ways", [slice(None), slice(-1, None)], ids=["as usual", "compiled"])
    def test_is_no_further_from_exact_than_stock(self, text_encoder, tokens, ways):
        ids = list(range(3, 3 + tokens))
        theirs = encode_tokens(text_encoder, ids, CUDA)
        exact = encode_tokens(deepcopy(text_encoder).float(), ids, CUDA)
        encoder = FastTextEncoder(text_encoder, CUDA, ways=usual_ways(text_encoder, CUDA)[ways])
        assert encoder.prepare(tokens)
        ours = encoder.encode(ids)
        assert ours.shape == exact.shape
        assert distance(ours, exact) <= 1.1 * distance(theirs, exact)

    def test_without_kernels_of_our_own_lengths_are_compiled_once(self, text_encoder):
        encoder = FastTextEncoder(text_encoder, CUDA, ways=usual_ways(text_encoder, CUDA)[-1:])
        encoder.prepare(64)
        before = compilations()
        for tokens in (32, 96, 512):
            assert encoder.prepare(tokens)
        assert compilations() == before

    def test_it_leaves_and_comes_back(self, text_encoder):
        ids = list(range(3, 40))
        encoder, residence = FastTextEncoder(text_encoder, CUDA), TextEncoderResidence(text_encoder, CUDA)
        residence.settle(resident=True)
        encoder.prepare(len(ids))
        expected = encoder.encode(ids)
        allocated = torch.cuda.memory_allocated(CUDA)
        encoder.release()
        residence.settle(resident=False)
        size_bytes = sum(parameter.nbytes for parameter in text_encoder.layers.parameters())
        assert torch.cuda.memory_allocated(CUDA) < allocated - 0.9 * size_bytes
        assert not encoder.prepare(len(ids))
        away = encoder.encode(ids)
        residence.settle(resident=True)
        assert encoder.prepare(len(ids))
        assert torch.equal(encoder.encode(ids), expected)
        assert distance(away, expected.float()) < 0.05


@pytest.mark.usefixtures("inference")
def test_wide_attention_is_attention():
    query, key, value = torch.randn(4096, 1536, device=CUDA, dtype=torch.bfloat16).chunk(3, -1)
    exact = torch.softmax(query.float() @ key.float().T / 512**0.5, -1) @ value.float()
    theirs = torch.nn.functional.scaled_dot_product_attention(query[None, None], key[None, None], value[None, None])[
        0, 0
    ]
    assert distance(wide_attention(query, key, value), exact) <= 1.1 * distance(theirs, exact)


def test_prepared_or_not_and_after_the_encoder_moved_pictures_are_no_further_from_exact_than_stock(
    components, lighthouse
):
    engine = Engine(components, 2**26)
    theirs, exact = lighthouse

    def draw() -> torch.Tensor:
        engine.forget_prompts()
        image = engine.generate(GenerationRequest(**LIGHTHOUSE), SILENT, threading.Event()).images[0]
        return torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).int()

    before = draw()
    assert engine.prepare(512, 512, 32)
    prepared = draw()
    engine._ladder._rungs = [MemoryPlan.TEXT_ENCODER_OFFLOADED]
    offloaded = draw()
    for picture in (before, prepared, offloaded):
        assert (picture - exact).abs().float().mean() <= 1.1 * (theirs - exact).abs().float().mean()
