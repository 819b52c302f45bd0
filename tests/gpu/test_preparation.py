"""Shapes prepared one after the other while nobody waits, in one pool of memory for all parts of the engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.generator.hooked import transformer_pass
from tests.gpu.conftest import LIGHTHOUSE
from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.base import SILENT, ShapeState, ShapeStatus
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.graphs import CudaRecorder
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.loading import load_components
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.model, pytest.mark.timeout(400)]
CUDA = torch.device("cuda:0")
SHAPES = [PictureShape(512, 512, 32), PictureShape(512, 512, 64), PictureShape(384, 640, 32)]
_PIECE_S = 3.0


@pytest.fixture
def generator(folder: Path) -> Iterator[ZImageGenerator]:
    generator = ZImageGenerator(str(folder), embedding_cache_bytes=2**26)
    generator.load(lambda _: None)
    generator.warmup(lambda _: None)
    yield generator
    generator.close()


def request(**fields) -> GenerationRequest:
    return GenerationRequest(**LIGHTHOUSE | fields)


def finish(generator: ZImageGenerator) -> list[float]:
    """Prepare all that is left; how long each piece took, in seconds."""
    pieces_s, done = [], True
    while done:
        begun = time.perf_counter()
        done = generator.prepare_next(lambda _: None)
        torch.cuda.synchronize(CUDA)
        pieces_s.append(time.perf_counter() - begun)
    return pieces_s


def states(generator: ZImageGenerator) -> set[ShapeState]:
    return {status.state for status in generator.shapes()}


def drawn(engine: Engine, size: PictureShape, prompt: str) -> torch.Tensor:
    asked = request(prompt=prompt, width=size.width, height=size.height)
    image = engine.generate(asked, SILENT, threading.Event()).images[0]
    return torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).int()


def test_the_default_size_is_warm_first_and_all_others_after_short_pieces(generator):
    sizes = [(status.width, status.height) for status in generator.shapes() if status.state is ShapeState.WARM]
    assert set(sizes) == {generator.info.profile.sizes[0]}
    pieces_s = finish(generator)
    assert states(generator) == {ShapeState.WARM}
    assert sorted(pieces_s)[len(pieces_s) // 2] < _PIECE_S


def test_a_shape_that_was_never_seen_is_drawn_at_once_and_prepared_next(generator):
    asked = request(width=448, height=576)
    assert generator.generate(asked).shape_warm is False
    heard: list[tuple[ShapeStatus, ...]] = []
    generator.prepare_next(heard.append)
    assert [(status.width, status.height) for status in heard[0] if status.state is ShapeState.PREPARING] == [
        (448, 576)
    ]
    finish(generator)
    assert generator.generate(asked).shape_warm is True


def test_after_running_out_of_memory_all_is_prepared_again(generator):
    finish(generator)

    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = transformer_pass(generator._engine).register_forward_pre_hook(run_out)
    with pytest.raises(DeviceMemoryError):
        generator.generate(request(width=448, height=576))  # not prepared: no graph is replayed in its place
    handle.remove()
    assert states(generator) == {ShapeState.COLD}
    finish(generator)
    assert states(generator) == {ShapeState.WARM}
    assert generator.generate(request()).shape_warm is True


def test_after_a_picture_that_others_were_given_up_for_one_less_is_kept(generator):
    finish(generator)
    warm = len(generator.shapes())
    failures = [torch.OutOfMemoryError("CUDA out of memory.")]

    def run_out_once(*_: object) -> None:
        if failures:
            raise failures.pop()

    handle = transformer_pass(generator._engine).register_forward_pre_hook(run_out_once)
    generator.generate(request(width=448, height=576))
    handle.remove()
    finish(generator)
    assert [shape.state for shape in generator.shapes()].count(ShapeState.WARM) == warm - 1


def test_memory_that_ran_out_is_counted(generator):
    before = generator._engine.times_out_of_memory
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(2**44, dtype=torch.uint8, device=CUDA)
    assert generator._engine.times_out_of_memory == before + 1


class OwnPools:
    """Gives each recording a pool of its own."""

    def record(self, work: Callable[[], Any]) -> Any:
        return CudaRecorder(CUDA).record(work)


def test_parts_that_share_a_pool_draw_what_parts_with_pools_of_their_own_draw(folder):
    """In turns, so that whatever one graph would leave in another's memory would be seen."""

    def engine(**options) -> Engine:
        components, _ = load_components(str(folder), progress=lambda _: None)
        made = Engine(components, 2**26, **options)
        for shape in SHAPES:
            assert made.prepare(shape.width, shape.height, shape.caption_tokens)
        return made

    shared, apart = engine(), engine(recorder=OwnPools())
    prompts = ["a lighthouse at dusk", "a red boat " * 12]
    for turn in range(6):
        size, prompt = SHAPES[turn % len(SHAPES)], f"{prompts[turn % 2]}, {turn}"
        difference = (drawn(shared, size, prompt) - drawn(apart, size, prompt)).abs()
        assert difference.float().mean() < 0.5


def test_where_the_text_encoder_is_away_pictures_in_between_leave_the_pool_whole(folder):
    components, _ = load_components(str(folder), progress=lambda _: None)
    engine = Engine(replace(components, memory_plan=MemoryPlan.TEXT_ENCODER_OFFLOADED), 2**26)
    pools = set()
    for size in SHAPES:
        assert engine.prepare(size.width, size.height, size.caption_tokens)
        drawn(engine, size, "a lighthouse at dusk")
        pools.add(engine._transformer._passes._recorder._pool.handle()[0])
    assert len(pools) == 1


def test_parts_that_share_a_pool_need_less_memory(folder):
    def reserved_bytes(**options) -> int:
        components, _ = load_components(str(folder), progress=lambda _: None)
        engine = Engine(components, 2**26, **options)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_reserved(CUDA)
        engine.prepare(1024, 1024, 32)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(CUDA) - before

    reserved_bytes()  # the first pays for what a process keeps once, such as cuBLAS's workspaces
    assert reserved_bytes() < reserved_bytes(recorder=OwnPools())
