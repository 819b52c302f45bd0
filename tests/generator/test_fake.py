"""The scripted generator: a true `Generator`, deterministic, without torch, and slow or failing on cue."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, JobCancelledError, ModelNotFoundError
from zimage_ui.generator.base import (
    GenerationListener,
    GenerationResult,
    Generator,
    ShapeState,
    ShapeStatus,
    WarmupPhase,
    WarmupProgress,
)
from zimage_ui.generator.fake import FAKE_PROFILE, FakeGenerator, FakeScript
from zimage_ui.request import GenerationRequest, Preview
from zimage_ui.stages import Stage

STAGES = [Stage.ENCODE, Stage.SAMPLE, Stage.DECODE]


@dataclass
class Recorder(GenerationListener):
    stages: list[Stage] = field(default_factory=list)
    steps: list[tuple[int, int, Preview | None]] = field(default_factory=list)

    def stage_started(self, stage: Stage) -> None:
        self.stages.append(stage)

    def step_done(self, step: int, num_steps: int, preview: Preview | None) -> None:
        self.steps.append((step, num_steps, preview))


def request(**changes: object) -> GenerationRequest:
    fields: dict[str, object] = {"prompt": "a red cat", "width": 128, "height": 96, "seed": 7}
    return GenerationRequest(**{**fields, **changes})  # type: ignore[arg-type]


def pixels(result: GenerationResult) -> list[bytes]:
    return [bytes(image.pixels) for image in result.images]


def test_it_is_a_generator_and_loads_without_torch():
    code = (
        "import sys; from zimage_ui.generator.fake import FakeGenerator as F; g = F(); g.load(lambda p: None);"
        "from zimage_ui.request import GenerationRequest as R; g.generate(R(prompt='a', width=64, height=64, seed=1));"
        "sys.exit(any(m in sys.modules for m in ('torch', 'diffusers', 'transformers', 'numpy')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    generator: Generator = FakeGenerator()
    assert generator.info is None


def test_loading_and_warming_report_their_progress():
    heard: list[WarmupProgress] = []
    generator = FakeGenerator(FakeScript(load_s=0.004, warmup_s=0.004))
    info = generator.load(heard.append)
    generator.warmup(heard.append)
    assert [(step.phase, step.progress) for step in heard] == [
        (phase, part / 4) for phase in (WarmupPhase.LOADING, WarmupPhase.WARMING) for part in (1, 2, 3, 4)
    ]
    assert all(step.detail for step in heard)
    assert generator.info is info
    assert info.profile is FAKE_PROFILE
    assert not info.trained
    generator.close()
    assert generator.info is None


def test_loading_fails_on_cue():
    generator = FakeGenerator(FakeScript(fail_load=True))
    with pytest.raises(ModelNotFoundError):
        generator.load(lambda _: None)
    assert generator.info is None


def test_pictures_follow_prompt_and_seed_and_nothing_else():
    generator = FakeGenerator()
    first = generator.generate(request())
    assert pixels(generator.generate(request())) == pixels(first)
    assert pixels(FakeGenerator().generate(request())) == pixels(first)
    assert pixels(generator.generate(request(seed=8))) != pixels(first)
    assert pixels(generator.generate(request(prompt="a blue cat"))) != pixels(first)
    assert len({bytes(first.images[0].pixels[offset : offset + 3]) for offset in range(0, 96 * 128 * 3, 3)}) > 50


def test_each_seed_of_a_batch_is_its_own_picture():
    result = FakeGenerator().generate(request(num_images_per_prompt=3))
    assert [(image.index, image.seed) for image in result.images] == [(0, 7), (1, 8), (2, 9)]
    assert all((image.width, image.height, len(image.pixels)) == (128, 96, 128 * 96 * 3) for image in result.images)
    assert pixels(result)[1] == pixels(FakeGenerator().generate(request(seed=8)))[0]


def test_a_listener_hears_every_stage_and_step_and_sees_the_picture_grow():
    recorder = Recorder()
    result = FakeGenerator().generate(request(num_inference_steps=4), recorder)
    assert recorder.stages == STAGES
    assert [(step, of) for step, of, _ in recorder.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    previews = [preview for _, _, preview in recorder.steps if preview is not None]
    assert [(preview.width, preview.height, len(preview.pixels)) for preview in previews] == [(16, 12, 576)] * 4
    contrasts = [max(preview.pixels) - min(preview.pixels) for preview in previews]
    assert contrasts == sorted(contrasts)
    assert contrasts[0] < contrasts[-1]
    assert result.nfe == 4
    assert list(result.stage_ms) == STAGES


def test_no_preview_is_made_when_none_is_wanted():
    recorder = Recorder()
    FakeGenerator().generate(request(preview=False), recorder)
    assert {preview for _, _, preview in recorder.steps} == {None}


def test_it_is_as_slow_as_it_is_told():
    script = FakeScript(encode_s=0.03, step_s=0.01, decode_s=0.02)
    result = FakeGenerator(script).generate(request(num_inference_steps=4))
    assert result.stage_ms[Stage.ENCODE] >= 30
    assert result.stage_ms[Stage.SAMPLE] >= 40
    assert result.stage_ms[Stage.DECODE] >= 20


def test_a_known_prompt_needs_no_encoding_and_is_counted():
    generator = FakeGenerator(FakeScript(encode_s=0.001))
    hits = [generator.generate(request(prompt=prompt)).embedding_cache_hit for prompt in ("a", "b", "a")]
    assert hits == [False, False, True]
    stats = generator.cache_stats()
    assert (stats.hits, stats.misses, stats.entries) == (1, 2, 2)
    assert stats.saved_ms == pytest.approx(1.0)
    for number in range(stats.capacity_bytes):
        generator.generate(request(prompt=f"prompt {number}", width=64, height=64))
    assert generator.cache_stats().entries == stats.capacity_bytes
    assert not generator.generate(request(prompt="a")).embedding_cache_hit


def test_long_prompts_are_cut_and_counted():
    result = FakeGenerator(FakeScript(max_prompt_tokens=3)).generate(request(prompt="one two three four five"))
    assert (result.prompt_tokens, result.truncated_tokens) == (3, 2)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("cue", "error"),
    [
        ("fail_at", GenerationError),
        ("out_of_memory_at", DeviceMemoryError),
        ("lose_device_at", DeviceLostError),
    ],
)
def test_every_stage_fails_on_cue_and_works_again_after(stage: Stage, cue: str, error: type[GenerationError]):
    generator = FakeGenerator(FakeScript(**{cue: stage, "failures": 2}))  # type: ignore[arg-type]
    for _ in range(2):
        recorder = Recorder()
        with pytest.raises(error) as raised:
            generator.generate(request(), recorder)
        assert type(raised.value) is error
        assert recorder.stages[-1] is stage
    assert generator.generate(request()).images


def test_without_a_count_it_fails_for_ever():
    generator = FakeGenerator(FakeScript(fail_at=Stage.DECODE))
    for _ in range(5):
        with pytest.raises(GenerationError):
            generator.generate(request())


def test_a_cancelled_job_ends_within_one_step():
    gate, cancel = threading.Event(), threading.Event()
    generator = FakeGenerator(FakeScript(), gate)
    recorder = Recorder()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(generator.generate, request(num_inference_steps=50), recorder, cancel)
        assert generator.entered.wait(10)
        cancel.set()
        gate.set()
        with pytest.raises(JobCancelledError):
            job.result(10)
    assert recorder.steps == []


def test_a_pause_ends_when_the_job_is_cancelled():
    cancel = threading.Event()
    generator = FakeGenerator(FakeScript(step_s=3600))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(generator.generate, request(), GenerationListener(), cancel)
        assert generator.entered.wait(10)
        cancel.set()
        with pytest.raises(JobCancelledError):
            job.result(10)


class TestShapes:
    def test_by_default_nothing_is_prepared(self):
        generator = FakeGenerator()
        generator.load(lambda progress: None)
        generator.warmup(lambda progress: None)
        assert generator.shapes() == ()
        assert not generator.prepare_next(lambda shapes: None)
        assert generator.generate(request()).shape_warm is None

    def test_a_size_is_prepared_in_two_pieces_the_ones_asked_for_too(self):
        generator = FakeGenerator(FakeScript(prepare_s=0.0))
        generator.load(lambda progress: None)
        generator.warmup(lambda progress: None)
        assert [shape.state for shape in generator.shapes()] == [
            ShapeState.WARM, *[ShapeState.COLD] * (len(FAKE_PROFILE.sizes) - 1),
        ]  # fmt: skip
        assert generator.generate(request()).shape_warm is False
        heard: list[tuple[ShapeStatus, ...]] = []
        pieces = 0
        while generator.prepare_next(heard.append):
            pieces += 1
        assert pieces == len(heard) == 2 * len(FAKE_PROFILE.sizes)
        assert generator.generate(request()).shape_warm is True


class TestEncodingAhead:
    def test_by_default_nothing_is_encoded_ahead(self):
        assert not FakeGenerator().encode_ahead(request())

    def test_a_prompt_is_encoded_once_and_no_cache_hit(self):
        generator = FakeGenerator(FakeScript(encode_s=0.002, encodes_ahead=True))
        assert [generator.encode_ahead(request()) for _ in range(2)] == [True, False]
        first, second = generator.generate(request()), generator.generate(request())
        assert (first.encoded_ahead_ms, first.embedding_cache_hit) == (2.0, False)
        assert (second.encoded_ahead_ms, second.embedding_cache_hit) == (0.0, True)
        assert not generator.encode_ahead(request())
