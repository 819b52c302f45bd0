"""The stages in order, against the stock pipeline; and out of memory, cancelled, broken: the next request works."""

import logging
import math
import threading
import weakref
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer
from tests.generator.fast.two_streams import ThreadedTransfer
from tests.generator.hooked import decoder_pass, text_encoder_pass, transformer_pass
from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, JobCancelledError
from zimage_ui.generator import decoding, reporting
from zimage_ui.generator.base import SILENT, GenerationListener
from zimage_ui.generator.components import Components, MemoryPlan
from zimage_ui.generator.engine import Engine
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.giving_way import GAVE_WAY
from zimage_ui.generator.fast.shapes import PictureShape
from zimage_ui.generator.fast.step import EAGER
from zimage_ui.request import GenerationRequest, SchedulerName
from zimage_ui.stages import MonotonicClock, Stage

pytestmark = pytest.mark.model

PROMPTS = ("a red cat on an old wooden house", "一只红色的猫在花园里，清晨的阳光")
STAGES = [Stage.ENCODE, Stage.SAMPLE, Stage.DECODE]
FULL = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def engine(components: Components) -> Engine:
    return Engine(components, 1 << 20)


def request(**changes: Any) -> GenerationRequest:
    return GenerationRequest(
        **{"prompt": PROMPTS[0], "width": 64, "height": 64, "num_inference_steps": 4, "seed": 7, **changes}
    )


def make(engine: Engine, asked: GenerationRequest, listener: Any = SILENT, cancel: threading.Event | None = None):
    return engine.generate(asked, listener, cancel or threading.Event())


def stock_pictures(stock: Any, asked: GenerationRequest) -> list[np.ndarray]:
    pictures = stock(
        [asked.prompt],
        negative_prompt=[asked.negative_prompt],
        width=asked.width,
        height=asked.height,
        num_inference_steps=asked.num_inference_steps,
        guidance_scale=asked.guidance_scale,
        num_images_per_prompt=asked.num_images_per_prompt,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in asked.seeds],
    ).images
    return [np.asarray(picture).astype(int) for picture in pictures]


def part(engine: Engine, stage: Stage) -> Any:
    return {
        Stage.ENCODE: text_encoder_pass(engine),
        Stage.SAMPLE: transformer_pass(engine),
        Stage.DECODE: decoder_pass(engine),
    }[stage]


class TestAgainstStock:
    @pytest.mark.parametrize("images", [1, 3])
    @pytest.mark.parametrize("steps", [4, 8])
    @pytest.mark.parametrize("prompt", PROMPTS)
    @pytest.mark.parametrize("size", [(64, 64), (128, 80), (96, 192)])
    def test_every_pixel_is_within_one(self, engine, stock, size, prompt, steps, images, as_array):
        asked = request(
            prompt=prompt, width=size[0], height=size[1], num_inference_steps=steps, num_images_per_prompt=images
        )
        result = make(engine, asked)
        assert len(result.images) == images
        for image, expected in zip(result.images, stock_pictures(stock, asked), strict=True):
            assert np.abs(as_array(image).astype(int) - expected).max() <= 1

    def test_with_guidance(self, engine, stock, as_array):
        asked = request(guidance_scale=3.0, negative_prompt="grey and flat", num_images_per_prompt=2)
        result = make(engine, asked)
        for image, expected in zip(result.images, stock_pictures(stock, asked), strict=True):
            assert np.abs(as_array(image).astype(int) - expected).max() <= 1
        assert result.nfe == 8

    def test_a_prompt_too_long_is_cut_alike_and_reported(self, engine, stock, as_array):
        asked = request(prompt="a blue dog " * 300)
        result = make(engine, asked)
        assert result.prompt_tokens == 512
        assert result.truncated_tokens > 0
        difference = as_array(result.images[0]).astype(int) - stock_pictures(stock, asked)[0]
        assert np.abs(difference).max() <= 1


class TestResult:
    def test_names_its_pictures(self, engine):
        result = make(engine, request(num_images_per_prompt=3, width=96))
        assert [(image.index, image.seed, image.width, image.height) for image in result.images] == [
            (index, 7 + index, 96, 64) for index in range(3)
        ]

    def test_a_picture_of_a_batch_is_the_one_its_seed_makes_alone(self, engine, as_array):
        together = make(engine, request(num_images_per_prompt=2)).images[1]
        alone = make(engine, request(seed=8)).images[0]
        assert np.abs(as_array(together).astype(int) - as_array(alone)).max() <= 1

    def test_all_work_is_done_within_the_stages(self, engine, monkeypatch):
        log: list[str] = []

        class LoggedClock(MonotonicClock):
            def start(self, stage: Stage) -> None:
                log.append(f"{stage} begins")
                super().start(stage)

            def stop(self) -> None:
                log.append("end")
                super().stop()

        monkeypatch.setattr("zimage_ui.generator.engine.stage_clock", lambda device: LoggedClock())
        handles = [
            part(engine, stage).register_forward_hook(lambda *_, stage=stage: log.append(f"{stage} works"))
            for stage in STAGES
        ]
        try:
            result = make(engine, request(num_inference_steps=2))
        finally:
            for handle in handles:
                handle.remove()
        assert log == [
            "encode begins", "encode works",
            "sample begins", "sample works", "sample works",
            "decode begins", "decode works",
            "end",
        ]  # fmt: skip
        assert list(result.stage_ms) == STAGES
        assert all(milliseconds > 0 for milliseconds in result.stage_ms.values())

    def test_counts(self, engine, recorder):
        first = make(engine, request(), recorder)
        assert recorder.stages == STAGES
        second = make(engine, request(seed=99))
        assert recorder.steps == [(step, 4) for step in range(1, 5)]
        assert (first.nfe, first.embedding_cache_hit, second.embedding_cache_hit) == (4, False, True)
        assert first.truncated_tokens == 0
        assert first.prompt_tokens == second.prompt_tokens > 0
        assert first.memory is None  # a CPU keeps no count
        assert first.memory_plan == "resident"
        assert (engine.cache_stats().hits, engine.cache_stats().misses) == (1, 1)

    def test_many_pictures_of_one_prompt_share_one_encoding(self, engine):
        make(engine, request(num_images_per_prompt=3))
        assert engine.cache_stats().misses == 1

    def test_the_same_request_makes_the_same_picture(self, engine):
        assert make(engine, request()).images[0].pixels == make(engine, request()).images[0].pixels

    def test_a_seed_is_drawn_where_none_is_given(self, engine):
        assert make(engine, request(seed=None)).images[0].seed >= 0

    @pytest.mark.parametrize("scheduler", list(SchedulerName))
    def test_each_solver_makes_a_picture_of_its_own(self, engine, scheduler):
        result = make(engine, request(scheduler=scheduler, num_inference_steps=5))
        assert result.nfe == 5
        others = [make(engine, request(scheduler=other, num_inference_steps=5)) for other in SchedulerName]
        assert sum(other.images[0].pixels == result.images[0].pixels for other in others) == 1


class TestPreviews:
    def test_come_with_each_step_once_fitted_and_change(self, engine, recorder):
        engine.fit_preview()
        result = make(engine, request(width=96), recorder)
        assert [(preview.width, preview.height) for preview in recorder.previews] == [(12, 8)] * 4
        assert len({preview.pixels for preview in recorder.previews}) == 4
        assert 0 < result.preview_ms < result.stage_ms[Stage.SAMPLE]

    def test_do_not_change_the_picture(self, engine):
        without = make(engine, request(preview=False))
        engine.fit_preview()
        assert make(engine, request()).images[0].pixels == without.images[0].pixels

    def test_are_left_out_where_not_wanted_or_not_fitted(self, engine, recorder):
        make(engine, request(), recorder)
        engine.fit_preview()
        result = make(engine, request(preview=False), recorder)
        assert recorder.previews == [None] * 8
        assert result.preview_ms == 0.0


class TestCancel:
    def test_in_the_middle_of_sampling(self, engine, recorder):
        cancel = threading.Event()
        recorder.at_step = lambda step: step == 2 and cancel.set()
        with pytest.raises(JobCancelledError):
            make(engine, request(num_inference_steps=20), recorder, cancel)
        assert recorder.steps[-1] == (2, 20)
        assert recorder.stages == [Stage.ENCODE, Stage.SAMPLE]

    def test_before_it_begins(self, engine, recorder):
        cancel = threading.Event()
        cancel.set()
        with pytest.raises(JobCancelledError):
            make(engine, request(), recorder, cancel)
        assert recorder.stages == []

    def test_after_the_last_step_nothing_is_decoded(self, engine, recorder):
        cancel = threading.Event()
        recorder.at_step = lambda step: step == 4 and cancel.set()
        with pytest.raises(JobCancelledError):
            make(engine, request(), recorder, cancel)
        assert Stage.DECODE not in recorder.stages

    def test_nothing_is_under_way_when_it_is_raised(self, engine, recorder, monkeypatch):
        fences: list[str] = []
        monkeypatch.setattr(
            "zimage_ui.generator.engine.record_fence",
            lambda device: SimpleNamespace(wait=lambda: fences.append(f"waited for {device}")),
        )
        cancel = threading.Event()
        recorder.at_step = lambda step: cancel.set()
        with pytest.raises(JobCancelledError):
            make(engine, request(), recorder, cancel)
        assert fences == ["waited for cpu"]

    def test_the_next_request_works(self, engine, recorder):
        expected = make(engine, request()).images[0].pixels
        cancel = threading.Event()
        recorder.at_step = lambda step: cancel.set()
        with pytest.raises(JobCancelledError):
            make(engine, request(seed=1), recorder, cancel)
        assert make(engine, request()).images[0].pixels == expected


class TestADeviceThatWorksMeanwhile:
    """As a GPU does: the first picture is decoded while the host still waits for the last step."""

    @pytest.fixture
    def met(self, engine, monkeypatch):
        """What happens, in order: stages and steps that are told, and passes through the decoder."""
        for module in (decoding, reporting):
            monkeypatch.setattr(module, "works_meanwhile", lambda device: True)
        happened = []
        decoder_pass(engine).register_forward_pre_hook(lambda *_: happened.append("decoding"))
        return happened

    @pytest.fixture
    def listener(self, met):
        class Listener(GenerationListener):
            def stage_started(self, stage):
                met.append(str(stage))

            def step_done(self, step, num_steps, preview):
                met.append(step)

        return Listener()

    def test_decodes_before_the_last_step_is_told_and_tells_all_in_order(self, engine, met, listener):
        make(engine, request(num_inference_steps=2, num_images_per_prompt=2), listener)
        assert met == ["encode", "sample", 1, "decoding", 2, "decode", "decoding"]

    def test_draws_the_same_and_counts_the_same(self, engine, met, components):
        found, expected = (make(each, request(preview=True)) for each in (engine, Engine(components, 1 << 20)))
        assert found.images == expected.images
        assert found.nfe == expected.nfe == 4
        assert set(found.stage_ms) == set(STAGES)

    def test_a_cancel_at_the_last_step_ends_it(self, engine, met, recorder):
        cancel = threading.Event()
        recorder.at_step = lambda step: cancel.set() if step == 4 else None
        with pytest.raises(JobCancelledError):
            make(engine, request(num_images_per_prompt=2), recorder, cancel)
        assert met == ["decoding"]
        assert recorder.stages == STAGES[:2]

    def test_numbers_that_are_not_finite_are_the_transformers(self, engine, met, recorder):
        transformer_pass(engine).register_forward_hook(lambda *arguments: arguments[-1] * math.nan)
        with pytest.raises(GenerationError, match="transformer"):
            make(engine, request(), recorder)
        assert recorder.stages == STAGES[:2]


class TestOutOfMemory:
    """Row 23."""

    @pytest.mark.parametrize("stage", STAGES)
    def test_once_is_tried_again_with_a_smaller_plan(self, engine, fail_forward, stage, caplog):
        expected = make(engine, request()).images[0].pixels
        engine.forget_prompts()
        fail_forward(part(engine, stage), torch.OutOfMemoryError(FULL))
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            result = make(engine, request())
        assert result.memory_plan == "tiled"
        assert result.images[0].pixels == expected
        assert "tiled" in caplog.text

    @pytest.mark.parametrize("stage", STAGES)
    def test_twice_is_a_clear_error_and_the_next_request_works(self, engine, fail_forward, stage):
        fail_forward(part(engine, stage), torch.OutOfMemoryError(FULL), times=2)
        with pytest.raises(DeviceMemoryError) as caught:
            make(engine, request(num_images_per_prompt=2, width=96))
        assert "2 pictures of 96 x 64" in caught.value.message
        assert "tiled" in caught.value.message
        assert "smaller size" in caught.value.hint
        assert make(engine, request(num_images_per_prompt=2, width=96)).memory_plan == "tiled"

    def test_smaller_requests_keep_the_fast_plan(self, engine, fail_forward):
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request(width=128)).memory_plan == "tiled"
        assert make(engine, request(width=128)).memory_plan == "tiled"  # it would only fail first
        assert make(engine, request(width=64)).memory_plan == "resident"

    def test_the_fast_plan_comes_back_after_some_good_pictures(self, engine, fail_forward):
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        plans = [make(engine, request(num_inference_steps=1)).memory_plan for _ in range(9)]
        assert plans == ["tiled"] * 8 + ["resident"]

    def test_what_cannot_be_decoded_is_decoded_in_tiles_at_once(self, engine, fail_forward):
        engine._ladder._rungs = list(MemoryPlan)  # as on a GPU
        fail_forward(decoder_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request()).memory_plan == "tiled"

    def test_offloading_comes_before_tiles_where_it_helps(self, components, fail_forward):
        components.memory_plan = MemoryPlan.TEXT_ENCODER_OFFLOADED
        engine = Engine(components, 1 << 20)
        assert make(engine, request()).memory_plan == "text_encoder_offloaded"
        fail_forward(decoder_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request()).memory_plan == "tiled"

    def test_the_time_of_the_failed_attempt_stays_in_its_stages(self, engine, fail_forward, monkeypatch):
        clocks: list[MonotonicClock] = []

        def only_clock(device: torch.device) -> MonotonicClock:
            clocks.append(MonotonicClock())
            return clocks[-1]

        monkeypatch.setattr("zimage_ui.generator.engine.stage_clock", only_clock)
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        make(engine, request())
        (clock,) = clocks
        begun = [stage for stage, _ in clock._marks]
        assert begun == [Stage.ENCODE, Stage.SAMPLE, Stage.ENCODE, Stage.SAMPLE, Stage.DECODE, None]

    def test_memory_is_released_before_the_second_attempt(self, engine, fail_forward, monkeypatch):
        released = []
        monkeypatch.setattr("zimage_ui.generator.memory.release_memory", released.append)
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        make(engine, request())
        assert released == [engine.components.device]

    def test_nothing_of_the_failed_attempts_is_alive(self, engine, fail_forward):
        seen: list[weakref.ref[torch.Tensor]] = []
        decoder = decoder_pass(engine)
        handle = decoder.register_forward_pre_hook(lambda _, inputs: seen.append(weakref.ref(inputs[0])))
        fail_forward(decoder, torch.OutOfMemoryError(FULL), times=2)
        try:
            with pytest.raises(DeviceMemoryError) as caught:
                make(engine, request())
        finally:
            handle.remove()
        kept = caught.value  # as the board keeps it
        assert len(seen) == 2
        assert [latents() for latents in seen] == [None, None]
        assert kept.__context__ is None


def test_components_may_be_given_to_a_second_engine(components, stock):
    before = dict(vars(components))
    first, second = Engine(components, 1 << 20), Engine(components, 1 << 20)
    assert vars(components) == before
    pictures = [make(each, request()).images[0].pixels for each in (first, second)]
    assert pictures[0] == pictures[1]
    make(first, request(seed=8))
    assert vars(components) == before


class TestStreamed:
    """Layers of the transformer on the host, with a thread for a bus."""

    @pytest.fixture
    def engine(self, components, monkeypatch) -> Iterator[Engine]:
        components = replace(components, transformer=random_transformer(n_layers=6, cap_feat_dim=32).bfloat16())
        components.dtype, components.memory_plan, components.streamed_layers = torch.bfloat16, MemoryPlan.STREAMED, 4
        layers = len(components.transformer.layers)
        with ThreadedTransfer() as transfer:
            monkeypatch.setattr(
                "zimage_ui.generator.engine.FastTransformer", partial(FastTransformer, transfer=transfer)
            )
            monkeypatch.setattr(  # as on a GPU
                Components, "streamed_in", lambda parts, plan: plan.streamed_layers(layers, parts.streamed_layers)
            )
            engine = Engine(components, 1 << 20)
            engine._ladder._rungs = [MemoryPlan.STREAMED, MemoryPlan.SMALLEST]
            yield engine

    def streamed(self, engine: Engine) -> int:
        return engine._transformer.network.layers.streamed

    def test_begins_with_as_many_as_planned_and_draws_the_same(self, engine):
        assert self.streamed(engine) == 4
        result = make(engine, request())
        assert result.memory_plan == "streamed"
        engine._ladder._rungs = [MemoryPlan.TEXT_ENCODER_OFFLOADED]
        assert make(engine, request()).images[0].pixels == result.images[0].pixels
        assert self.streamed(engine) == 0

    def test_running_out_of_memory_streams_them_all_and_patience_brings_them_back(self, engine, fail_forward):
        expected = make(engine, request(num_inference_steps=1)).images[0].pixels
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        results = [(make(engine, request(num_inference_steps=1)), self.streamed(engine)) for _ in range(9)]
        assert [(result.memory_plan, streamed) for result, streamed in results] == [
            *[("smallest", 6)] * 8,
            ("streamed", 4),
        ]
        assert {bytes(result.images[0].pixels) for result, _ in results} == {bytes(expected)}


class TestLadder:
    def test_goes_down_as_far_as_it_takes(self, engine, fail_forward):
        engine._ladder._rungs = list(MemoryPlan)  # as on a GPU
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL), times=3)
        assert make(engine, request()).memory_plan == "smallest"

    def test_what_was_prepared_gives_its_memory_first(self, engine, fail_forward, monkeypatch):
        released = []

        def release() -> bool:
            released.append(engine.components.memory_plan)
            return len(released) == 1

        monkeypatch.setattr(engine._decoder, "release", release)
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request()).memory_plan == "resident"
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request()).memory_plan == "tiled"
        assert released == [MemoryPlan.RESIDENT] * 2

    def test_that_a_picture_found_no_memory_is_told_before_anything_is_given_up(
        self, engine, fail_forward, monkeypatch
    ):
        log = []
        monkeypatch.setattr(engine._decoder, "release", lambda: log.append("release"))
        engine.on_ran_out = lambda: log.append("ran out")
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        make(engine, request())
        assert log == ["ran out", "release"]

    def test_a_plan_that_cannot_do_is_not_tried(self, engine):
        engine._ladder._rungs = list(MemoryPlan)
        engine.components.budget = SimpleNamespace(
            may_do=lambda plan, streamed, size, pictures: plan.tiles_decode or size == (64, 64)
        )
        assert make(engine, request(width=128)).memory_plan == "tiled"
        assert make(engine, request()).memory_plan == "resident"

    def test_tiles_are_prepared_where_pictures_are_decoded_in_tiles(self, engine, monkeypatch):
        prepared = []

        def prepare(*size: int, record: bool) -> bool:
            prepared.append((*size, record))
            return True

        monkeypatch.setattr(engine._decoder, "prepare", prepare)
        for plan in (MemoryPlan.RESIDENT, MemoryPlan.SMALLEST):
            engine._ladder._rungs = [plan]
            engine.prepare(1536, 256, 32)
        assert prepared == [(32, 192, True), (32, 64, False)]


class TestOtherFailures:
    def test_a_lost_device_is_not_tried_again(self, engine, fail_forward):
        fail_forward(transformer_pass(engine), RuntimeError("CUDA error: an illegal memory access was encountered"))
        with pytest.raises(DeviceLostError):
            make(engine, request())

    @pytest.mark.parametrize("stage", STAGES)
    def test_any_other_error_is_ours_and_the_next_request_works(self, engine, fail_forward, stage):
        fail_forward(part(engine, stage), RuntimeError("shapes cannot be multiplied"))
        with pytest.raises(GenerationError, match="shapes cannot be multiplied"):
            make(engine, request())
        assert len(make(engine, request()).images) == 1


class TestPreparedShapes:
    """With a recorder that replays by running again, as CUDA graphs would."""

    SHAPE = PictureShape(64, 64, 32)

    @pytest.fixture
    def recorder(self) -> ReplayingRecorder:
        return ReplayingRecorder()

    @pytest.fixture
    def engine(self, components: Components, recorder: ReplayingRecorder, monkeypatch: pytest.MonkeyPatch) -> Engine:
        monkeypatch.setattr("zimage_ui.generator.fast.denoiser._compiled", lambda: EAGER)
        return Engine(components, 1 << 20, recorder=recorder)

    def test_a_picture_says_whether_its_shape_was_prepared_and_is_the_same(self, engine, as_array):
        cold = make(engine, request())
        assert engine.prepare(64, 64, 32)
        warm = make(engine, request())
        assert (cold.shape_warm, warm.shape_warm) == (False, True)
        difference = as_array(warm.images[0]).astype(int) - as_array(cold.images[0])
        assert np.abs(difference).max() <= 1

    def test_what_was_prepared_for_shapes_that_are_forgotten_goes(self, engine):
        shapes = [PictureShape(64, 64, 32), PictureShape(64, 64, 64), PictureShape(96, 64, 32)]
        assert all(engine.prepare(shape.width, shape.height, shape.caption_tokens) for shape in shapes)
        engine.keep_only(shapes[1:])
        assert [engine.is_prepared(shape) for shape in shapes] == [False, True, True]
        engine.keep_only(shapes[1:2])
        assert [engine.is_prepared(shape) for shape in shapes] == [False, True, False]
        assert make(engine, request(width=96)).shape_warm is False
        assert not engine._decoder.is_prepared(8, 12)

    def test_on_a_cpu_there_is_nothing_to_say(self, components):
        engine = Engine(components, 1 << 20)
        assert not engine.prepares
        assert not engine.prepare(64, 64, 32)
        assert make(engine, request()).shape_warm is None

    def test_whoever_wants_to_hears_of_every_shape_that_was_made(self, engine):
        made: list[tuple[PictureShape, ...]] = []
        engine.on_made = lambda *shapes: made.append(shapes)
        make(engine, request(width=96, num_images_per_prompt=2))
        make(engine, request(guidance_scale=3.0, negative_prompt="a blue dog " * 20))
        assert made == [(PictureShape(96, 64, 32, 2),), (PictureShape(64, 64, 96), PictureShape(64, 64, 32))]

    def test_after_a_job_for_which_the_text_encoder_left_it_is_prepared_anew(self, engine):
        assert engine.prepare(64, 64, 32)
        engine._settle(MemoryPlan.TEXT_ENCODER_OFFLOADED)
        engine._settle(MemoryPlan.RESIDENT)
        assert not engine.is_prepared(self.SHAPE)
        assert make(engine, request()).shape_warm is False
        assert engine.prepare(64, 64, 32)
        assert engine._text_encoder.is_prepared(32)

    def test_pieces_prepare_one_after_the_other_and_cost_nothing_again(self, engine, recorder):
        for pieces in (engine.preparations(self.SHAPE), engine.preparations(self.SHAPE)):
            for piece in pieces:
                piece()
        assert engine.is_prepared(self.SHAPE)
        assert recorder.recorded == 4  # encoding, refining the caption, a step, decoding

    def test_a_piece_that_measures_gives_way_and_says_so(self, engine, monkeypatch):
        def measurements(latents, somebody_waits):
            return (lambda: GAVE_WAY if somebody_waits() else None,)

        monkeypatch.setattr(engine._transformer, "measurements", measurements)
        assert [piece() for piece in engine.preparations(self.SHAPE, lambda: True)].count(GAVE_WAY) == 1
        assert [piece() for piece in engine.preparations(self.SHAPE)].count(GAVE_WAY) == 0

    def test_a_batch_is_a_shape_of_its_own(self, engine):
        engine.prepare(64, 64, 32)
        batch = PictureShape(64, 64, 32, 2)
        assert not engine.is_prepared(batch)
        for piece in engine.preparations(batch):
            piece()
        assert engine.is_prepared(batch)
        assert make(engine, request(num_images_per_prompt=2)).shape_warm

    def test_out_of_memory_leaves_every_shape_cold(self, engine, fail_forward):
        engine.prepare(64, 64, 32)
        fail_forward(decoder_pass(engine), torch.OutOfMemoryError(FULL))
        make(engine, request(width=96))
        assert not engine.is_prepared(self.SHAPE)
        assert not make(engine, request()).shape_warm

    def test_for_pictures_decoded_in_tiles_the_decoder_is_prepared_for_a_tile(self, engine, fail_forward):
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        assert make(engine, request()).memory_plan == "tiled"
        assert engine.prepare(576, 64, 32)
        assert engine._decoder.is_prepared(8, 64)
        assert not engine._decoder.is_prepared(8, 72)

    def test_a_rehearsal_leaves_the_prompt_cache_and_the_listeners_alone(self, engine):
        made: list[tuple[PictureShape, ...]] = []
        engine.on_made = lambda *shapes: made.append(shapes)
        engine.rehearse(PictureShape(96, 64, 64, 2))
        assert made == []
        assert (engine.cache_stats().misses, engine.cache_stats().entries) == (0, 0)

    def test_a_rehearsal_that_does_not_fit_is_our_error_and_no_smaller_plan(self, engine, fail_forward):
        fail_forward(transformer_pass(engine), torch.OutOfMemoryError(FULL))
        with pytest.raises(DeviceMemoryError):
            engine.rehearse(self.SHAPE)
        assert make(engine, request()).memory_plan == "resident"
