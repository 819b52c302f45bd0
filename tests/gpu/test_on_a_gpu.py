"""The engine on a real NVIDIA GPU: `pytest tests/gpu`. Where there is none, nothing is collected (conftest.py)."""

import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.gpu.conftest import LIGHTHOUSE
from zimage_ui.errors import DeviceMemoryError, JobCancelledError
from zimage_ui.generator.base import GenerationListener
from zimage_ui.generator.clock import CudaEventClock
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.loading import load_components
from zimage_ui.request import GenerationRequest, Preview, SchedulerName
from zimage_ui.stages import Stage
from zimage_ui.telemetry.nvml import open_probe

pytestmark = [pytest.mark.gpu, pytest.mark.model]
CUDA = torch.device("cuda:0")


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    components, _ = load_components(str(folder), progress=lambda _: None)
    engine = Engine(components, 2**26)
    engine.fit_preview()
    yield engine
    torch.cuda.set_per_process_memory_fraction(1.0)


def make(engine: Engine, listener: GenerationListener | None = None, cancel=None, **fields):
    return engine.generate(
        GenerationRequest(**LIGHTHOUSE | fields), listener or GenerationListener(), cancel or threading.Event()
    )


def pixels(result, index: int = 0):
    return torch.frombuffer(bytearray(result.images[index].pixels), dtype=torch.uint8).int()


class Steps(GenerationListener):
    def __init__(self, then=lambda step: None):
        self.previews: list[Preview | None] = []
        self.at_s: list[float] = []
        self._then = then

    def step_done(self, step, num_steps, preview):
        self.previews.append(preview)
        self.at_s.append(time.perf_counter())
        self._then(step)


def test_it_computes_in_bf16_on_the_gpu_and_says_why(folder):
    components, info = load_components(str(folder), progress=lambda _: None)
    assert (info.device, info.dtype) == ("cuda:0", "bf16")
    assert info.device_name in info.dtype_reason
    assert {parameter.device for parameter in components.transformer.parameters()} == {CUDA}
    assert {parameter.dtype for parameter in components.transformer.parameters()} == {torch.bfloat16}


def test_it_draws_what_the_stock_pipeline_draws(engine, lighthouse):
    theirs, exact = lighthouse
    ours = pixels(make(engine))
    assert (ours - exact).abs().float().mean() <= 1.1 * (theirs - exact).abs().float().mean()
    assert (ours - exact).abs().max() < 40


def test_the_same_seed_is_the_same_picture_and_another_is_not(engine):
    first, again, other = make(engine), make(engine), make(engine, seed=4)
    assert torch.equal(pixels(first), pixels(again))
    assert not torch.equal(pixels(first), pixels(other))


def test_stages_account_for_the_wall_time(engine):
    make(engine)
    shares = []
    for seed in range(8):
        begun = time.perf_counter()
        result = make(engine, seed=seed, prompt=f"a new prompt, number {seed}")
        wall_ms = (time.perf_counter() - begun) * 1e3
        assert set(result.stage_ms) == {Stage.ENCODE, Stage.SAMPLE, Stage.DECODE}
        shares.append((wall_ms - sum(result.stage_ms.values())) / wall_ms)
    assert statistics.median(shares) < 0.01


def test_events_time_the_device_and_not_the_host():
    clock = CudaEventClock(CUDA)
    matrix = torch.randn(8192, 8192, device=CUDA, dtype=torch.bfloat16)
    begun = time.perf_counter()
    clock.start(Stage.SAMPLE)
    for _ in range(20):
        matrix @ matrix
    clock.stop()
    enqueued_ms = (time.perf_counter() - begun) * 1e3
    assert clock.stage_ms()[Stage.SAMPLE] > 3 * enqueued_ms


def test_previews_come_each_step_and_their_cost_is_measured(engine):
    steps = Steps()
    result = make(engine, steps)
    assert len(steps.previews) == 8
    assert all(preview is not None and (preview.width, preview.height) == (64, 64) for preview in steps.previews)
    assert len({preview.pixels for preview in steps.previews if preview}) > 1
    assert 0 < result.preview_ms < result.stage_ms[Stage.SAMPLE]


def test_cancel_takes_effect_within_a_step(engine):
    cancel = threading.Event()
    steps = Steps(then=lambda step: cancel.set() if step == 3 else None)
    with pytest.raises(JobCancelledError):
        make(engine, steps, cancel, num_inference_steps=40, width=1024, height=1024)
    assert len(steps.previews) <= 5


@pytest.mark.parametrize("scheduler", list(SchedulerName))
def test_every_scheduler_works(engine, scheduler):
    result = make(engine, scheduler=scheduler)
    assert result.nfe == 8
    assert len(set(bytes(result.images[0].pixels))) > 16


def test_a_batch_holds_the_pictures_of_its_seeds(engine):
    batch = make(engine, num_images_per_prompt=3)
    assert [image.seed for image in batch.images] == [3, 4, 5]
    alone = make(engine, seed=4)
    assert (pixels(batch, 1) - pixels(alone)).abs().float().mean() < 2


def test_the_text_encoder_can_live_on_the_host_and_changes_no_pixel(engine):
    resident = make(engine)
    engine.forget_prompts()
    engine._ladder._rungs = [MemoryPlan.TEXT_ENCODER_OFFLOADED]
    offloaded = make(engine)
    assert {parameter.device.type for parameter in engine.components.text_encoder.parameters()} == {"cpu"}
    assert offloaded.memory_plan == MemoryPlan.TEXT_ENCODER_OFFLOADED
    assert torch.equal(pixels(resident), pixels(offloaded))


def test_the_peaks_are_torchs(engine):
    told = make(engine).memory
    assert told.allocated_peak_bytes == torch.cuda.max_memory_allocated(CUDA)
    assert told.reserved_peak_bytes == torch.cuda.max_memory_reserved(CUDA)


def test_the_tiled_plan_decodes_in_tiles_with_less_memory_and_draws_the_same_scene(engine):
    weights_bytes = torch.cuda.memory_allocated(CUDA)
    whole = make(engine, width=1024, height=1024)
    engine._ladder._rungs = [MemoryPlan.TILED]
    tiled = make(engine, width=1024, height=1024)
    assert tiled.memory_plan == MemoryPlan.TILED
    whole_bytes, tiled_bytes = (result.memory.allocated_peak_bytes - weights_bytes for result in (whole, tiled))
    assert tiled_bytes < 0.6 * whole_bytes
    # Not the same pixels: each tile has group norms of its own. The scene is.
    both = torch.stack([pixels(whole).float(), pixels(tiled).float()])
    assert torch.corrcoef(both)[0, 1] > 0.95


def test_out_of_memory_is_told_and_the_next_picture_works(engine):
    before = make(engine)
    total = torch.cuda.get_device_properties(CUDA).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(CUDA) + 150 * 2**20) / total)
    with pytest.raises(DeviceMemoryError) as error:
        make(engine, width=2048, height=2048, num_images_per_prompt=8)
    assert "2048 x 2048" in error.value.message
    assert torch.equal(pixels(make(engine, width=512, height=512)), pixels(before))


def test_memory_does_not_grow(engine):
    for seed in range(3):
        make(engine, seed=seed)
    reserved = torch.cuda.memory_reserved(CUDA)
    allocated = torch.cuda.memory_allocated(CUDA)
    for seed in range(30):
        make(engine, seed=seed, prompt=f"prompt {seed % 7}")
    assert torch.cuda.memory_reserved(CUDA) == reserved
    assert torch.cuda.memory_allocated(CUDA) - allocated < 2**20


def test_nvml_reads_this_card():
    probe = open_probe()
    try:
        (gpu, *_) = probe.read().gpus
    finally:
        probe.close()
    assert gpu.name == torch.cuda.get_device_name(CUDA)
    assert 10 < gpu.temperature_c < 110
    assert 0 < gpu.power_w <= 1.2 * gpu.power_limit_w
    assert 0 < gpu.sm_clock_mhz <= gpu.max_sm_clock_mhz
    assert 0 < gpu.nvml_used_bytes < gpu.nvml_total_bytes
    assert 0 <= gpu.utilization_pct <= 100
    assert gpu.throttle_reasons is not None
    assert gpu.driver
