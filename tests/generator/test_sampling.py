"""Sampling: the stock pipeline's latents bit for bit, other solvers, cancel, and honest counting."""

import math
import threading
from typing import Any

import pytest
import torch

from tests.generator.stock_denoiser import StockDenoiser
from zimage_ui.errors import GenerationError, JobCancelledError
from zimage_ui.generator.encoding import tokenize, without_last_layer
from zimage_ui.generator.fast.text_encoder import encode_tokens
from zimage_ui.generator.sampling import (
    Schedule,
    initial_latents,
    make_schedule,
    sample,
)
from zimage_ui.request import SchedulerName

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
PROMPTS = ("a red cat on an old wooden house", "一只红色的猫在花园里，清晨的阳光")
SIZES = ((64, 64), (128, 80), (96, 192))


class Unwatched:
    def enqueued(self, step: int, clean: torch.Tensor) -> None: ...

    def finish(self) -> None: ...


@pytest.fixture(scope="module")
def embed(stock: Any):
    encoder = without_last_layer(stock.text_encoder)

    def of(prompt: str) -> torch.Tensor:
        with torch.inference_mode():
            return encode_tokens(encoder, tokenize(stock.tokenizer, prompt, 512).ids, CPU).clone()

    return of


def stock_latents(stock: Any, embeds: torch.Tensor, size: tuple[int, int], steps: int, images: int, **guidance: Any):
    generators = [torch.Generator("cpu").manual_seed(7 + index) for index in range(images)]
    return stock(
        prompt_embeds=[embeds],
        width=size[0],
        height=size[1],
        num_inference_steps=steps,
        num_images_per_prompt=images,
        generator=generators,
        output_type="latent",
        **{"guidance_scale": 0.0, **guidance},
    ).images


def our_latents(stock: Any, denoiser: StockDenoiser, size: tuple[int, int], steps: int, images: int) -> torch.Tensor:
    with torch.inference_mode():
        latents = initial_latents(range(7, 7 + images), 16, size[1] // 8, size[0] // 8, CPU)
        schedule = make_schedule(stock.scheduler, SchedulerName.EULER, steps, latents)
        return sample(denoiser, schedule, latents, Unwatched(), threading.Event()).settle()


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("steps", [4, 8])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("size", SIZES)
def test_latents_equal_the_stock_pipelines_bit_for_bit(stock, embed, size, prompt, steps, images):
    embeds = embed(prompt)
    expected = stock_latents(stock, embeds, size, steps, images)
    latents = our_latents(stock, StockDenoiser(stock.transformer, torch.float32, embeds), size, steps, images)
    assert torch.equal(latents, expected)
    assert latents.dtype == torch.float32


@pytest.mark.parametrize("images", [1, 2])
def test_guided_latents_equal_the_stock_pipelines_bit_for_bit(stock, embed, images):
    # the negative prompt is longer by more than one bucket of 32 tokens, so the batch needs its attention mask
    positive, negative = embed(PROMPTS[0]), embed("blurred, grey, flat, " * 20)
    expected = stock_latents(
        stock, positive, (64, 96), 4, images, guidance_scale=3.5, negative_prompt_embeds=[negative]
    )
    denoiser = StockDenoiser(stock.transformer, torch.float32, positive, negative, 3.5)
    assert torch.equal(our_latents(stock, denoiser, (64, 96), 4, images), expected)
    assert denoiser.forwards == 8  # two for each step: with the prompt, and with the negative one


def test_a_schedule_that_shifts_with_the_resolution_equals_the_stock_pipelines(stock, embed):
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline

    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.4, max_shift=1.3)
    shifting = ZImagePipeline.from_pipe(stock, scheduler=scheduler)
    shifting.set_progress_bar_config(disable=True)
    embeds = embed(PROMPTS[0])
    expected = stock_latents(shifting, embeds, (128, 80), 4, 1)
    denoiser = StockDenoiser(stock.transformer, torch.float32, embeds)
    assert torch.equal(our_latents(shifting, denoiser, (128, 80), 4, 1), expected)


def test_bfloat16_latents_equal_the_stock_pipelines_bit_for_bit(stock, embed, tiny_folder):
    from diffusers import ZImagePipeline

    half = ZImagePipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    embeds = embed(PROMPTS[0]).bfloat16()
    expected = stock_latents(half, embeds, (64, 64), 4, 2)
    denoiser = StockDenoiser(half.transformer, torch.bfloat16, embeds)
    assert torch.equal(our_latents(half, denoiser, (64, 64), 4, 2), expected)


def test_forwards_are_counted_where_the_transformer_is_called(stock, embed):
    calls: list[int] = []
    handle = stock.transformer.register_forward_hook(lambda *_: calls.append(1))
    try:
        denoiser = StockDenoiser(stock.transformer, torch.float32, embed(PROMPTS[0]))
        our_latents(stock, denoiser, (64, 64), 5, 3)
    finally:
        handle.remove()
    assert len(calls) == denoiser.forwards == 5


class TestNoise:
    def test_is_the_same_at_any_place_of_a_batch(self):
        together = initial_latents((40, 41, 42), 16, 8, 12, CPU)
        for index, seed in enumerate((40, 41, 42)):
            assert torch.equal(together[index : index + 1], initial_latents((seed,), 16, 8, 12, CPU))

    def test_takes_seeds_of_53_bits(self):
        assert not torch.equal(initial_latents((2**53 - 1,), 4, 8, 8, CPU), initial_latents((0,), 4, 8, 8, CPU))

    def test_leaves_the_global_generator_alone(self):
        before = torch.random.get_rng_state()
        initial_latents((1,), 16, 8, 8, CPU)
        assert torch.equal(torch.random.get_rng_state(), before)


class Gaussian:
    """The exact velocity of data from a normal distribution (mean 2, deviation 0.5): its flow has a closed solution."""

    mean, deviation = 2.0, 0.5

    def __init__(self) -> None:
        self.forwards = 0
        self.timesteps: list[float] = []

    def predict(self, latents: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
        self.forwards += 1
        self.timesteps.append(float(timestep))
        sigma = float(timestep) / 1000
        variance = (1 - sigma) ** 2 * self.deviation**2 + sigma**2
        centred = latents - (1 - sigma) * self.mean
        clean = self.mean + (1 - sigma) * self.deviation**2 / variance * centred
        noise = sigma / variance * centred
        return noise - clean

    def solution(self, noise: torch.Tensor) -> torch.Tensor:
        return self.mean + self.deviation * noise


def solve(stock: Any, name: SchedulerName, steps: int, denoiser: Any) -> tuple[torch.Tensor, Schedule]:
    noise = initial_latents((3,), 16, 16, 16, CPU)
    schedule = make_schedule(stock.scheduler, name, steps, noise)
    return sample(denoiser, schedule, noise, Unwatched(), threading.Event()).settle(), schedule


def error_of(stock: Any, name: SchedulerName, steps: int) -> float:
    flow = Gaussian()
    latents, _ = solve(stock, name, steps, flow)
    return float((latents - flow.solution(initial_latents((3,), 16, 16, 16, CPU))).square().mean().sqrt())


class TestSolvers:
    @pytest.mark.parametrize("name", list(SchedulerName))
    def test_call_the_model_once_for_each_step_at_the_exact_noise_level(self, stock, name):
        flow = Gaussian()
        _, schedule = solve(stock, name, 8, flow)
        assert flow.forwards == 8
        assert flow.timesteps == pytest.approx((schedule.sigmas[:-1] * 1000).tolist(), abs=1e-3)
        assert float(schedule.sigmas[-1]) == 0.0

    @pytest.mark.parametrize("name", [SchedulerName.UNIPC, SchedulerName.DPMPP_2M])
    def test_share_the_noise_table_of_the_model(self, stock, name):
        latents = torch.zeros(1, 16, 16, 16)
        euler = make_schedule(stock.scheduler, SchedulerName.EULER, 8, latents)
        other = make_schedule(stock.scheduler, name, 8, latents)
        assert torch.allclose(euler.sigmas, other.sigmas, atol=2e-3)

    @pytest.mark.parametrize("time_shift_type", ["exponential", "linear"])
    @pytest.mark.parametrize("name", [SchedulerName.UNIPC, SchedulerName.DPMPP_2M])
    def test_share_a_table_that_shifts_with_the_resolution(self, name, time_shift_type):
        from diffusers import FlowMatchEulerDiscreteScheduler

        shifting = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=time_shift_type)
        latents = torch.zeros(1, 16, 64, 64)
        euler = make_schedule(shifting, SchedulerName.EULER, 8, latents)
        assert torch.allclose(euler.sigmas, make_schedule(shifting, name, 8, latents).sigmas, atol=2e-3)

    @pytest.mark.parametrize("name", [SchedulerName.UNIPC, SchedulerName.DPMPP_2M])
    def test_of_second_order_come_closer_to_the_true_flow_than_euler(self, stock, name):
        assert error_of(stock, name, 8) < error_of(stock, SchedulerName.EULER, 8)
        assert error_of(stock, name, 16) < error_of(stock, SchedulerName.EULER, 16) / 2

    @pytest.mark.parametrize("name", list(SchedulerName))
    def test_keep_nothing_from_one_request_to_the_next(self, stock, name):
        first, _ = solve(stock, name, 4, Gaussian())
        solve(stock, name, 7, Gaussian())
        again, _ = solve(stock, name, 4, Gaussian())
        assert torch.equal(first, again)

    @pytest.mark.parametrize("name", list(SchedulerName))
    @pytest.mark.parametrize("steps", [1, 2, 3, 30])
    def test_take_any_number_of_steps(self, stock, name, steps):
        flow = Gaussian()
        latents, _ = solve(stock, name, steps, flow)
        assert flow.forwards == steps
        assert bool(torch.isfinite(latents).all())

    def test_estimate_the_clean_latents_along_the_velocity(self, stock):
        _, schedule = solve(stock, SchedulerName.EULER, 4, Gaussian())
        latents, velocity = torch.full((1, 2, 2, 2), 3.0), torch.full((1, 2, 2, 2), 2.0)
        estimate = schedule.clean_estimate(1, velocity, latents)
        assert torch.allclose(estimate, torch.full_like(latents, 3.0 - 2.0 * float(schedule.sigmas[1])))


class CancelsAfter:
    def __init__(self, step: int, cancel: threading.Event) -> None:
        self._step, self._cancel = step, cancel

    def enqueued(self, step: int, clean: torch.Tensor) -> None:
        if step == self._step:
            self._cancel.set()

    def finish(self) -> None: ...


@pytest.mark.parametrize("last", [0, 2, 7])
def test_cancel_takes_effect_before_the_next_step(stock, last):
    flow, cancel = Gaussian(), threading.Event()
    noise = initial_latents((3,), 16, 8, 8, CPU)
    schedule = make_schedule(stock.scheduler, SchedulerName.EULER, 8, noise)
    with pytest.raises(JobCancelledError):
        sample(flow, schedule, noise, CancelsAfter(last, cancel), cancel).settle()
    assert flow.forwards == last + 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_numbers_that_are_not_finite_make_an_error_not_a_black_picture(stock, poison):
    class Overflows(Gaussian):
        def predict(self, latents: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
            return super().predict(latents, timestep, step) + (poison if step == 1 else 0)

    with pytest.raises(GenerationError, match="not finite"):
        solve(stock, SchedulerName.EULER, 3, Overflows())
