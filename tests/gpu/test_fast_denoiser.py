"""The fast denoiser on a real NVIDIA GPU: compiled, recorded and uncompiled, against the stock transformer."""

import gc
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests.generator.fast.conftest import random_transformer
from zimage_ui.errors import JobCancelledError
from zimage_ui.generator.base import GenerationListener
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast import graphs, timing
from zimage_ui.generator.fast.attention import AttentionBackend, backend_times_ms, fastest_backend
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.graphs import CudaRecorder, RecordedFunction
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.loading import load_components
from zimage_ui.generator.sampling import Denoiser, StockDenoiser, initial_latents, make_schedule, sample
from zimage_ui.generator.untrained import DEFAULT, build_untrained_model
from zimage_ui.request import GenerationRequest, SchedulerName

pytestmark = [pytest.mark.gpu, pytest.mark.model]

CUDA = torch.device("cuda:0")
STEPS = 8
# Heads of 128 values, as the full-size model has them: not every kernel takes others.
SIZES = {"dim": 512, "n_heads": 4, "n_kv_heads": 4, "n_layers": 6, "axes_dims": [32, 48, 48], "cap_feat_dim": 64}


def model_on_gpu(dtype: torch.dtype) -> Any:
    return random_transformer(**SIZES).to(CUDA, dtype)


def requested_bytes() -> int:
    """What all tensors take; of what torch calls allocated, one may have up to a megabyte that it did not need.

    Garbage is none of them, nor is what another stream has done with: torch takes it back when it next looks.
    """
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.memory_stats(CUDA)["requested_bytes.all.current"])


def distance(values: torch.Tensor, expected: torch.Tensor) -> float:
    return float((values - expected).norm() / expected.norm())


class Unwatched:
    def enqueued(self, step: int, clean: torch.Tensor) -> None: ...

    def finish(self) -> None: ...


def finished(
    make_denoiser: Callable[[Any], Denoiser], height: int, width: int, pictures: int = 1, watcher: Any = None
) -> torch.Tensor:
    from diffusers import FlowMatchEulerDiscreteScheduler

    with torch.inference_mode():
        latents = initial_latents(range(pictures), 16, height, width, CUDA)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        schedule = make_schedule(scheduler, SchedulerName.EULER, STEPS, latents)
        cancel = threading.Event()
        return sample(make_denoiser(schedule), schedule, latents, watcher or Unwatched(), cancel).settle()


def ours(fast: FastTransformer, height: int, width: int, prompts: list[torch.Tensor], **options: Any) -> torch.Tensor:
    pictures, guidance_scale = options.get("pictures", 1), options.get("guidance_scale", 0.0)
    shape = DenoiserShape(height, width, caption_length(prompts[0]), pictures)
    return finished(
        lambda schedule: fast.denoiser(shape, schedule.host_timesteps, *prompts, guidance_scale=guidance_scale),
        height, width, pictures,
    )  # fmt: skip


def stock(model: Any, height: int, width: int, prompts: list[torch.Tensor], **options: Any) -> torch.Tensor:
    pictures, guidance_scale = options.get("pictures", 1), options.get("guidance_scale", 0.0)
    return finished(
        lambda _: StockDenoiser(model, prompts[0].dtype, *prompts, guidance_scale=guidance_scale),
        height, width, pictures,
    )  # fmt: skip


@pytest.fixture(scope="module")
def exact() -> Any:
    """The stock transformer in fp32, with the weights that bf16 holds: what is compared is the computing alone."""
    return model_on_gpu(torch.bfloat16).float()


@pytest.fixture(scope="module")
def half() -> Any:
    """The same in bf16."""
    return model_on_gpu(torch.bfloat16)


@pytest.fixture(scope="module")
def fast(half: Any) -> FastTransformer:
    return FastTransformer(half, CUDA, torch.bfloat16)


@pytest.fixture
def prompt() -> torch.Tensor:
    return torch.randn(40, 64, generator=torch.Generator().manual_seed(1)).to(CUDA, torch.bfloat16)


@pytest.mark.parametrize("prepared", [False, True], ids=["uncompiled", "prepared"])
@pytest.mark.parametrize(("height", "width", "pictures"), [(32, 32, 1), (26, 38, 1), (16, 24, 2)])
def test_in_bf16_it_is_as_near_to_fp32_as_the_stock_transformer(
    fast, half, exact, prompt, height, width, pictures, prepared
):
    fast.release()
    if prepared:
        assert fast.prepare(DenoiserShape(height, width, 64, pictures))
    found = ours(fast, height, width, [prompt], pictures=pictures)
    stock_half = stock(half, height, width, [prompt], pictures=pictures)
    expected = stock(exact, height, width, [prompt.float()], pictures=pictures)
    assert distance(found, expected) <= distance(stock_half, expected)
    assert distance(found, stock_half) <= 0.02  # two roundings apart; the full-size model is nearer


@pytest.mark.parametrize("prepared", [False, True], ids=["uncompiled", "prepared"])
def test_in_fp32_it_is_the_stock_transformer(exact, prompt, prepared):
    fast = FastTransformer(exact, CUDA, torch.float32)
    if prepared:
        assert fast.prepare(DenoiserShape(26, 38, 64))
    found = ours(fast, 26, 38, [prompt.float()])
    assert distance(found, stock(exact, 26, 38, [prompt.float()])) <= 1e-4


def test_nothing_is_compiled_where_there_are_kernels_of_our_own(half):
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    fast = FastTransformer(half, CUDA, torch.bfloat16)
    for shape in (DenoiserShape(32, 32, 64), DenoiserShape(26, 38, 32, 2)):
        assert fast.prepare(shape)
    assert fast._trusts_triton
    assert counters["stats"]["unique_graphs"] == before


def test_guidance(fast, half, prompt):
    negative = torch.randn(80, 64, generator=torch.Generator().manual_seed(2)).to(CUDA, torch.bfloat16)
    for shape in (DenoiserShape(16, 24, 64), DenoiserShape(16, 24, 96)):
        assert fast.prepare(shape)
    prompts = [prompt, negative]
    found = ours(fast, 16, 24, prompts, guidance_scale=2.0)
    assert distance(found, stock(half, 16, 24, prompts, guidance_scale=2.0)) <= 0.05


def test_replays_are_equal_bit_for_bit_and_do_not_disturb_each_other(fast, prompt):
    for shape in (DenoiserShape(32, 32, 64), DenoiserShape(16, 24, 64)):
        assert fast.prepare(shape)
    first = ours(fast, 32, 32, [prompt])
    other = ours(fast, 16, 24, [prompt])
    assert torch.equal(ours(fast, 32, 32, [prompt]), first)
    assert torch.equal(ours(fast, 16, 24, [prompt]), other)


def test_cancel_takes_effect_between_replays(fast, prompt):
    from diffusers import FlowMatchEulerDiscreteScheduler

    assert fast.prepare(DenoiserShape(32, 32, 64))
    cancel = threading.Event()

    class CancelsAtThird(Unwatched):
        def enqueued(self, step: int, clean: torch.Tensor) -> None:
            if step == 2:
                cancel.set()

    with torch.inference_mode():
        latents = initial_latents([1], 16, 32, 32, CUDA)
        schedule = make_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), SchedulerName.EULER, STEPS, latents)
        denoiser = fast.denoiser(DenoiserShape(32, 32, 64), schedule.host_timesteps, prompt)
        with pytest.raises(JobCancelledError):
            sample(denoiser, schedule, latents, CancelsAtThird(), cancel).settle()
    assert denoiser.forwards == 3


def test_many_shapes_share_the_memory_of_one(fast, prompt):
    fast.release()
    torch.cuda.empty_cache()
    assert fast.prepare(DenoiserShape(64, 64, 64))
    reserved = torch.cuda.memory_reserved(CUDA)
    for columns in range(16, 64, 8):
        assert fast.prepare(DenoiserShape(32, columns, 64))
    assert torch.cuda.memory_reserved(CUDA) - reserved < 300 * 2**20


def test_release_gives_the_memory_back(half, prompt):
    def reserved_bytes() -> int:
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(CUDA)

    own, shape = FastTransformer(half, CUDA, torch.bfloat16), DenoiserShape(128, 128, 64)
    released = []
    for _ in range(2):  # what a process keeps once is there before the second
        assert own.prepare(shape)
        held = reserved_bytes()
        assert own.release()
        released.append(reserved_bytes())
        assert released[-1] < held
    assert released[1] - released[0] <= 2 * 2**20


def test_the_weights_take_their_memory_once():
    model = model_on_gpu(torch.bfloat16)
    before = requested_bytes()
    FastTransformer(model, CUDA, torch.bfloat16)
    assert requested_bytes() - before < 2**20


def given_back_bytes(size_bytes: int) -> int:
    """How much less is allocated once memory that a second stream has used is no longer needed."""
    block = torch.empty(size_bytes, dtype=torch.uint8, device=CUDA)
    block.record_stream(torch.cuda.Stream())
    before = torch.cuda.memory_allocated(CUDA)
    del block
    torch.cuda.synchronize()
    torch.empty(1, device=CUDA)  # with the next request, torch looks which streams are done
    return before - torch.cuda.memory_allocated(CUDA)


def test_a_failed_capture_leaves_the_gpu_usable_and_the_picture_whole(half, prompt, caplog):
    class Synchronises(CudaRecorder):
        def record(self, work: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
            def waits() -> torch.Tensor:
                answer = work()
                answer.sum().item()  # not allowed while a graph is captured
                return answer

            return super().record(waits)

    broken = FastTransformer(half, CUDA, torch.bfloat16, Synchronises(CUDA))
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        assert not broken.prepare(DenoiserShape(16, 24, 64))
    assert "could not be prepared" in caplog.text
    assert torch.randn(2**20, device=CUDA).std().item() == pytest.approx(1, abs=0.01)
    assert given_back_bytes(2**26) >= 2**26
    found = ours(broken, 16, 24, [prompt])
    assert distance(found, stock(half, 16, 24, [prompt])) <= 0.02


def test_a_recorded_function_reads_what_it_is_called_with():
    with torch.inference_mode():
        recorded = RecordedFunction(lambda a, b: a @ b, (torch.zeros(8, 8, device=CUDA),) * 2, CudaRecorder(CUDA))
        one, other = torch.randn(8, 8, device=CUDA), torch.randn(8, 8, device=CUDA)
        first = recorded(one, other)
        second = recorded(other, one)
    assert torch.allclose(first, one @ other, atol=1e-5)
    assert torch.allclose(second, other @ one, atol=1e-5)


def test_a_recorder_goes_on_when_its_last_recording_is_gone():
    """Torch ends a pool of memory with the last graph in it."""
    recorder, example = CudaRecorder(CUDA), torch.full((2**20,), 3.0, device=CUDA)
    for _ in range(3):
        recorded = RecordedFunction(lambda a: (a + 1).sqrt() * 2, (example,), recorder)
        assert torch.equal(recorded(example), torch.full_like(example, 4.0))
        del recorded


def test_after_a_recording_that_failed_the_recorder_goes_on_and_what_was_recorded_stays():
    recorder, example = CudaRecorder(CUDA), torch.full((2**20,), 3.0, device=CUDA)
    before = RecordedFunction(lambda a: a + 1, (example,), recorder)
    for _ in range(2):
        with pytest.raises(RuntimeError):
            RecordedFunction(lambda a: a * a.sum().item(), (example,), recorder)  # waits, which no graph can
        after = RecordedFunction(lambda a: a * 2, (example,), recorder)
        assert torch.equal(before(example), torch.full_like(example, 4.0))
        assert torch.equal(after(example), torch.full_like(example, 6.0))


def test_a_recording_stays_whole_when_others_of_its_stream_are_gone():
    """With the first graph of a stream that goes, torch 2.13 gives up the scratch memory that cuBLAS has for it."""
    with torch.inference_mode():
        weight, rows = torch.randn(2560, 9728, device=CUDA).bfloat16(), torch.randn(32, 9728, device=CUDA).bfloat16()
        recorder = CudaRecorder(CUDA)  # so few rows of so many features are multiplied in parts, which are then summed
        kept = RecordedFunction(partial(functional.linear, weight=weight), (rows,), recorder)
        expected = kept(rows)
        for other in (recorder, CudaRecorder(CUDA)):
            RecordedFunction(partial(functional.linear, weight=weight), (rows,), other)
            torch.cuda.empty_cache()
            with torch.cuda.stream(graphs._stream(CUDA)):
                others = [torch.full((2**23,), 7.0, device=CUDA) for _ in range(8)]
            torch.cuda.synchronize()
            assert torch.equal(kept(rows), expected)
            assert all(torch.equal(each, torch.full_like(each, 7.0)) for each in others)


def test_the_fastest_attention_is_one_that_was_timed(monkeypatch):
    monkeypatch.setattr(timing, "_HOPELESS", 1e9)
    monkeypatch.setattr(timing, "_BEHIND", 1e9)
    shape = (1, 1056, 30, 128)
    times_ms = backend_times_ms(shape, torch.bfloat16, CUDA)
    assert AttentionBackend.FLASH in times_ms
    assert all(taken > 0 for taken in times_ms.values())
    assert fastest_backend(shape, torch.bfloat16, CUDA) in times_ms


def test_the_engine_draws_the_same_picture_prepared_and_not(tmp_path):
    folder = build_untrained_model(tmp_path / "untrained", DEFAULT)
    components, _ = load_components(str(folder), progress=lambda _: None)
    engine = Engine(components, 2**26)
    request = GenerationRequest(prompt="a lighthouse at dusk", width=512, height=384, seed=3)
    pictures = []
    for prepare in (False, True):
        if prepare:
            assert engine.prepare(512, 384, 32)
        (image,) = engine.generate(request, GenerationListener(), threading.Event()).images
        pictures.append(torch.frombuffer(bytearray(image.pixels), dtype=torch.uint8).int())
    difference = (pictures[0] - pictures[1]).abs().float()
    assert 0 < difference.mean() < 1.5  # rounded at other places, so it is not the same way that was taken twice
