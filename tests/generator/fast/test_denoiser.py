"""The fast denoiser against the stock transformer; shapes prepared, not prepared, and failed to be prepared."""

import logging
import threading
from dataclasses import replace

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer
from tests.generator.stock_denoiser import StockDenoiser
from zimage_ui.generator.fast import denoiser, parts, step
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.giving_way import GAVE_WAY, give_way
from zimage_ui.generator.fast.product_kernels import ProductKernels
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import EAGER, TRITON
from zimage_ui.generator.sampling import make_schedule, sample
from zimage_ui.request import SchedulerName

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
TIMESTEPS = (1000.0, 913.5, 12.25)
# (latent height, latent width, prompt tokens, pictures); 10 x 14 and 6 x 10 give tokens that have to be padded
SHAPES = [(16, 16, 14, 1), (10, 14, 40, 1), (6, 10, 32, 3), (24, 8, 1, 2)]


def shape_of(latents, prompt_embeds):
    pictures, _, height, width = latents.shape
    return DenoiserShape(height, width, caption_length(prompt_embeds), pictures)


def both(model, fast, latents, prompts, guidance_scale=0.0, timesteps=TIMESTEPS):
    """The velocities of all steps, by our denoiser and by the stock transformer."""
    ours = fast.denoiser(shape_of(latents, prompts[0]), timesteps, *prompts, guidance_scale=guidance_scale)
    stock = StockDenoiser(model, latents.dtype, *prompts, guidance_scale=guidance_scale)
    with torch.inference_mode():
        velocities = [
            torch.stack([denoiser.predict(latents, torch.tensor(timestep), step) for step, timestep in steps])
            for denoiser, steps in ((ours, list(enumerate(timesteps))), (stock, list(enumerate(timesteps))))
        ]
    assert ours.forwards == stock.forwards
    return velocities


@pytest.fixture(scope="module")
def fast(transformer):
    return FastTransformer(transformer, CPU, torch.float32)


class TestAgainstStock:
    @pytest.mark.parametrize(("height", "width", "tokens", "pictures"), SHAPES)
    def test_a_random_transformer(self, transformer, fast, noise, distance, height, width, tokens, pictures):
        ours, stock = both(transformer, fast, noise(pictures, 16, height, width), [noise(tokens, 24, seed=1)])
        assert ours.dtype == torch.float32
        assert distance(ours, stock) < 1e-5
        assert (ours - stock).abs().max() < 1e-5 * stock.abs().max()

    @pytest.mark.parametrize(("height", "width", "tokens", "pictures"), SHAPES)
    def test_the_bundled_model(self, bundled_transformer, noise, distance, height, width, tokens, pictures):
        fast = FastTransformer(bundled_transformer, CPU, torch.float32)
        ours, stock = both(bundled_transformer, fast, noise(pictures, 16, height, width), [noise(tokens, 192, seed=1)])
        assert distance(ours, stock) < 1e-5

    @pytest.mark.parametrize("pictures", [1, 2])
    @pytest.mark.parametrize("tokens", [(14, 20), (14, 70), (40, 3)], ids=["one bucket", "longer", "shorter"])
    def test_guidance(self, transformer, fast, noise, distance, tokens, pictures):
        prompts = [noise(count, 24, seed=count) for count in tokens]
        ours, stock = both(transformer, fast, noise(pictures, 16, 10, 14), prompts, guidance_scale=3.5)
        assert distance(ours, stock) < 1e-5

    def test_a_negative_prompt_counts_only_with_guidance(self, transformer, fast, noise, distance):
        ours, stock = both(transformer, fast, noise(1, 16, 8, 8), [noise(14, 24), noise(20, 24)])
        assert distance(ours, stock) < 1e-5

    def test_in_bf16_it_is_no_farther_from_fp32_than_the_stock_transformer(self, noise, distance):
        half = random_transformer().bfloat16()
        transformer = random_transformer().bfloat16().float()  # the same weights: what is compared is the computing
        fast = FastTransformer(half, CPU, torch.bfloat16)
        latents, prompt = noise(1, 16, 16, 16), noise(14, 24, seed=1).bfloat16()
        ours = fast.denoiser(shape_of(latents, prompt), TIMESTEPS, prompt)
        stock, exact = (
            StockDenoiser(half, torch.bfloat16, prompt),
            StockDenoiser(transformer, torch.float32, prompt.float()),
        )
        errors = {"ours": 0.0, "stock": 0.0}
        with torch.inference_mode():
            for step, timestep in enumerate(map(torch.tensor, TIMESTEPS)):
                expected = exact.predict(latents, timestep, step)
                errors["ours"] += distance(ours.predict(latents, timestep, step), expected)
                errors["stock"] += distance(stock.predict(latents, timestep, step), expected)
        assert errors["ours"] <= errors["stock"]

    def test_the_stock_transformer_is_what_it_was(self, noise):
        model, untouched = random_transformer(), random_transformer()
        FastTransformer(model, CPU, torch.float32)
        latents, time, prompt = [noise(16, 1, 8, 8)], torch.tensor([0.4]), [noise(9, 24)]
        assert torch.equal(
            model(latents, time, prompt, return_dict=False)[0][0],
            untouched(latents, time, prompt, return_dict=False)[0][0],
        )
        assert set(model.state_dict()) == set(untouched.state_dict())


@pytest.mark.parametrize("scheduler", list(SchedulerName))
def test_finished_latents_are_the_stock_transformers(transformer, fast, noise, distance, scheduler):
    from diffusers import FlowMatchEulerDiscreteScheduler

    class Unwatched:
        def enqueued(self, step, clean): ...

        def finish(self): ...

    latents, prompt = noise(2, 16, 10, 14), noise(40, 24, seed=1)
    finished = []
    with torch.inference_mode():
        for kind in ("ours", "stock"):
            schedule = make_schedule(FlowMatchEulerDiscreteScheduler(shift=3.0), scheduler, 8, latents)
            assert schedule.host_timesteps == tuple(schedule.timesteps.tolist())
            if kind == "ours":
                denoiser = fast.denoiser(shape_of(latents, prompt), schedule.host_timesteps, prompt)
            else:
                denoiser = StockDenoiser(transformer, torch.float32, prompt)
            finished.append(sample(denoiser, schedule, latents, Unwatched(), threading.Event()).settle())
    assert distance(*finished) < 1e-5


class TestPreparation:
    """With a recorder that replays by running again."""

    @pytest.fixture
    def recorder(self):
        return ReplayingRecorder()

    @pytest.fixture
    def fast(self, transformer, recorder):
        return FastTransformer(transformer, CPU, torch.float32, recorder, ways=[lambda: EAGER])

    SHAPE = DenoiserShape(8, 8, 32)

    def test_a_cpu_prepares_nothing(self, transformer):
        fast = FastTransformer(transformer, CPU, torch.float32)
        assert not fast.prepare(self.SHAPE)
        assert not fast.is_prepared(self.SHAPE)

    def test_a_prepared_shape_gives_the_same_and_is_recorded_once(self, transformer, fast, recorder, noise, distance):
        assert fast.prepare(self.SHAPE)
        assert fast.prepare(self.SHAPE)
        assert fast.is_prepared(self.SHAPE)
        for seed in (1, 2):
            ours, stock = both(transformer, fast, noise(1, 16, 8, 8, seed=seed), [noise(9 * seed, 24, seed=seed)])
            assert distance(ours, stock) < 1e-5
        assert recorder.recorded == 2  # the pass and its caption

    @pytest.mark.parametrize("tokens", [(14, 20), (14, 70)])
    def test_guidance_uses_what_is_prepared(self, transformer, fast, noise, distance, tokens, monkeypatch):
        fast.prepare(self.SHAPE)
        fast.prepare(DenoiserShape(8, 8, 96))
        monkeypatch.setattr(fast.network, "velocity", None)
        prompts = [noise(count, 24, seed=count) for count in tokens]
        ours, stock = both(transformer, fast, noise(1, 16, 8, 8), prompts, guidance_scale=2.0)
        assert distance(ours, stock) < 1e-5

    def test_steps_of_one_request_do_not_disturb_each_other(self, fast, noise):
        fast.prepare(self.SHAPE)
        latents, prompt = noise(1, 16, 8, 8), noise(9, 24)
        denoiser = fast.denoiser(self.SHAPE, TIMESTEPS, prompt)
        with torch.inference_mode():
            first = denoiser.predict(latents, torch.tensor(TIMESTEPS[0]), 0)
            kept = first.clone()
            second = denoiser.predict(latents, torch.tensor(TIMESTEPS[1]), 1)
        assert torch.equal(first, kept)
        assert not torch.equal(first, second)

    def test_another_shape_runs_at_once(self, transformer, fast, recorder, noise, distance):
        fast.prepare(self.SHAPE)
        ours, stock = both(transformer, fast, noise(1, 16, 8, 10), [noise(9, 24)])
        assert distance(ours, stock) < 1e-5
        assert recorder.recorded == 2  # the pass and its caption

    def test_what_was_not_used_for_longest_is_dropped(self, fast, monkeypatch):
        shapes = [DenoiserShape(4, 4 + 2 * place, 32) for place in range(25)]
        for shape in shapes:
            fast.prepare(shape)
        assert [fast.is_prepared(shape) for shape in shapes] == [False] + [True] * 24

    def test_released_shapes_run_and_can_be_prepared_again(self, transformer, fast, noise, distance):
        fast.prepare(self.SHAPE)
        fast.release()
        assert not fast.is_prepared(self.SHAPE)
        ours, stock = both(transformer, fast, noise(1, 16, 8, 8), [noise(9, 24)])
        assert distance(ours, stock) < 1e-5
        assert fast.prepare(self.SHAPE)

    def test_a_failed_compilation_is_logged_and_the_next_way_is_taken(self, transformer, recorder, caplog):
        def broken():
            raise RuntimeError("no compiler here")

        fast = FastTransformer(transformer, CPU, torch.float32, recorder, ways=[broken, lambda: EAGER])
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert fast.prepare(self.SHAPE)
        assert "no compiler here" in caplog.text
        assert recorder.recorded == 2  # the pass and its caption

    @pytest.fixture
    def asked(self, monkeypatch):
        """The products whose kernels were asked for, and for how many tokens."""
        calls = []

        def fastest_product(alike, tokens):
            calls.append((tuple(alike[0].weight.shape), len(alike), tokens))

        monkeypatch.setattr(denoiser, "fastest_product", fastest_product)
        return calls

    @pytest.fixture
    def ours(self, recorder, monkeypatch):
        """With ways that begin with kernels of our own, which torch's operations stand in for."""
        monkeypatch.setattr(denoiser, "has_triton_parts", lambda *_: True)
        monkeypatch.setattr(denoiser, "_compiled", lambda: EAGER)
        return FastTransformer(random_transformer().bfloat16(), CPU, torch.bfloat16, recorder)

    def test_kernels_are_measured_product_by_product_and_not_where_all_is_done(self, ours, recorder, asked):
        for piece in ours.measurements(self.SHAPE):
            piece()
        assert [shape for shape, _, _ in asked[:4]] == [(288, 96), (96, 96), (512, 96), (96, 256)]
        image = 16 + 16
        assert {(count, tokens) for _, count, tokens in asked} == {(2, image + 32), (2, image)}
        assert len(set(asked)) == 8
        assert recorder.recorded == 0
        asked.clear()
        ours._passes.prepare(self.SHAPE, lambda way, recorder: torch.neg, "a stand-in")
        for piece in ours.measurements(self.SHAPE):
            piece()
        assert asked == []

    def test_the_image_alone_and_with_its_caption_are_multiplied_by_kernels_of_their_own(self, ours, monkeypatch):
        def fastest_products(blocks, tokens):
            return ProductKernels(down=f"for {tokens}")

        monkeypatch.setattr(denoiser, "fastest_products", fastest_products)
        monkeypatch.setattr(step, "parts_by", lambda *, triton: parts)
        of_two = replace(self.SHAPE, pictures=2)
        for shape, whole, image in ((self.SHAPE, 64, 32), (of_two, 128, 64)):
            plan = ours._plan(shape, TRITON)
            assert (plan.products.down, plan.image_products.down) == (f"for {whole}", f"for {image}")
        assert ours._plan(self.SHAPE, EAGER).image_products == ProductKernels()

    def test_where_a_compiler_multiplies_there_is_nothing_to_measure(self, fast, asked):
        for piece in fast.measurements(self.SHAPE):
            piece()
        assert asked == []

    def test_once_our_own_kernels_have_failed_nothing_is_measured_for_them(self, ours, asked, monkeypatch):
        def broken():
            raise RuntimeError("no compiler here")

        monkeypatch.setattr(denoiser, "_with_triton", broken)
        ours = FastTransformer(random_transformer().bfloat16(), CPU, torch.bfloat16, ReplayingRecorder())
        assert ours.prepare(self.SHAPE)
        asked.clear()
        for piece in ours.measurements(DenoiserShape(10, 14, 32)):
            piece()
        assert asked == []

    def test_a_measurement_that_fails_is_logged_and_nothing_else(self, ours, monkeypatch, caplog):
        def broken(*_):
            raise AttributeError("module 'cutlass' has no attribute 'cute'")

        monkeypatch.setattr(denoiser, "fastest_product", broken)
        for piece in ours.measurements(self.SHAPE):
            piece()
        assert caplog.text.count("are not measured: AttributeError: module 'cutlass' has no attribute 'cute'") == 8

    def test_a_measurement_gives_way_to_whoever_waits_and_says_so(self, ours, monkeypatch, caplog):
        waiting, measured = threading.Event(), []

        def fastest_product(alike, tokens):
            give_way()
            measured.append(tokens)

        monkeypatch.setattr(denoiser, "fastest_product", fastest_product)
        product = ours.measurements(self.SHAPE, waiting.is_set)[1]
        waiting.set()
        assert product() is GAVE_WAY
        assert product() is GAVE_WAY
        give_way()  # nobody is asked outside of it
        waiting.clear()
        assert product() is None
        assert len(measured) == 1
        assert caplog.text == ""

    def test_what_is_prepared_without_being_asked_to_give_way_does_not(self, ours, monkeypatch):
        measured = []
        monkeypatch.setattr(denoiser, "fastest_product", lambda *_: give_way() or measured.append(1))
        assert [piece() for piece in ours.measurements(self.SHAPE)].count(GAVE_WAY) == 0
        assert len(measured) == 8

    def test_it_gives_way_three_times_and_is_then_measured_all_the_same(self, ours, monkeypatch):
        """Each job has all pieces made anew."""
        measured = []
        monkeypatch.setattr(denoiser, "fastest_product", lambda alike, tokens: give_way() or measured.append(tokens))
        answers = [ours.measurements(self.SHAPE, lambda: True)[1]() for _ in range(4)]
        assert answers == [GAVE_WAY] * 3 + [None]
        assert len(measured) == 1
        assert ours.measurements(self.SHAPE, lambda: True)[2]() is GAVE_WAY  # another piece has its own patience

    def test_where_every_way_fails_the_picture_is_made_all_the_same(self, transformer, noise, distance, caplog):
        class Broken:
            def record(self, work):
                raise RuntimeError("operation not permitted when stream is capturing")

        fast = FastTransformer(transformer, CPU, torch.float32, Broken(), ways=[lambda: EAGER, lambda: EAGER])
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not fast.prepare(self.SHAPE)
        assert caplog.text.count("not permitted") >= 2
        ours, stock = both(transformer, fast, noise(1, 16, 8, 8), [noise(9, 24)])
        assert distance(ours, stock) < 1e-5


def test_a_schedule_and_a_shape_are_prepared_once(transformer, noise, monkeypatch):
    fast = FastTransformer(transformer, CPU, torch.float32)
    made = []
    original = transformer.rope_embedder

    def counted(positions):
        made.append(len(positions))
        return original(positions)

    fast._embedder = counted
    for seed in range(3):
        fast.denoiser(DenoiserShape(8, 8, 32, pictures=1 + seed), TIMESTEPS, noise(9, 24, seed=seed))
    assert made == [32, 64]
