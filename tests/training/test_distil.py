import random

import pytest
import torch

from training.distil import distil, distillation_loss, taught
from training.model import SHIFT
from training.velocity import Captions, sampler_sigmas

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


class LinearTeacher:
    """Its velocity is `slope` times the latents plus the caption's embedding, which is its first id."""

    def __init__(self, slope: float) -> None:
        self.slope = slope
        self.sigmas: list[torch.Tensor] = []

    def encode(self, captions):
        return captions.ids[:, :1, None].float()

    def __call__(self, latents, sigma, captions, states=None):
        self.sigmas.append(sigma)
        told = self.encode(captions) if states is None else states
        return self.slope * latents + told[..., None]


@pytest.fixture
def captions():
    return Captions(torch.tensor([[3, 9], [5, 9]]), torch.tensor([2, 2]))


@pytest.fixture
def empty():
    return Captions(torch.tensor([[1, 0]]), torch.tensor([1]))


SPAN = torch.tensor([1.0, 0.8]), torch.tensor([0.8, 0.4])
NOISY = torch.linspace(-1, 1, 2 * 16 * 4).reshape(2, 16, 2, 2)


def test_without_guidance_a_constant_teachers_own_velocity_is_taught(captions, empty):
    target = taught(LinearTeacher(0.0), captions, empty, NOISY, SPAN, 0.0)
    torch.testing.assert_close(target, torch.tensor([3.0, 5.0])[:, None, None, None].expand_as(NOISY))


def test_guidance_leads_away_from_the_empty_prompt(captions, empty):
    target = taught(LinearTeacher(0.0), captions, empty, NOISY, SPAN, 0.5)
    # 3 + (3 - 1) / 2 and 5 + (5 - 1) / 2
    torch.testing.assert_close(target, torch.tensor([4.0, 7.0])[:, None, None, None].expand_as(NOISY))


def test_the_teacher_takes_four_small_steps_for_one(captions, empty):
    nothing = Captions(torch.zeros_like(captions.ids), captions.lengths)
    teacher = LinearTeacher(-1.0)
    target = taught(teacher, nothing, empty, NOISY, SPAN, 0.0)
    length = (SPAN[1] - SPAN[0])[:, None, None, None]
    torch.testing.assert_close(NOISY + length * target, NOISY * (1 - length / 4) ** 4)
    expected = torch.stack([torch.lerp(*SPAN, share) for share in (0, 0.25, 0.5, 0.75)])
    torch.testing.assert_close(torch.stack(teacher.sigmas), expected)


def test_guided_and_plain_pictures_are_not_mixed_up(make_velocity, pool):
    """Guidance by one forward of both equals two forwards."""
    teacher = make_velocity(1).frozen_copy()
    batch = pool.draw(random.Random(0))
    noisy, size = torch.randn_like(batch.latents), len(batch.latents)
    bucket = batch.captions.ids.shape[1]
    span = torch.full((size,), 1.0), torch.full((size,), 0.9)

    class TwoForwards:
        encode = staticmethod(teacher.encode)

        def __call__(self, latents, sigma, captions, states=None):
            told = teacher(latents, sigma, captions)
            return told + 2.0 * (told - teacher(latents, sigma, pool.empty_captions(size, bucket)))

    empty = pool.empty_captions(1, bucket)
    found = taught(teacher, batch.captions, empty, noisy, span, 2.0)
    expected = taught(TwoForwards(), batch.captions, empty, noisy, span, 0.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_the_student_is_asked_at_the_samplers_sigmas(pool):
    asked = []

    def student(noisy, sigma, captions):
        asked.append(sigma)
        return noisy

    for _ in range(50):
        batch = pool.draw(random.Random(0))
        empty = pool.empty_captions(1, batch.captions.ids.shape[1])
        distillation_loss(student, LinearTeacher(0.0), batch, empty, 0.0)
    torch.testing.assert_close(torch.cat(asked).unique().flip(0), sampler_sigmas(8, SHIFT)[:-1])


def test_the_student_comes_close_to_the_teacher(make_velocity, pool, make_stage, clock):
    student, teacher = make_velocity(0), make_velocity(1).frozen_copy()

    def distance():
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            batches = [pool.draw(random.Random(seed)) for seed in range(10)]
            empties = [pool.empty_captions(1, batch.captions.ids.shape[1]) for batch in batches]
            return sum(
                distillation_loss(student, teacher, batch, empty, 1.0).item()
                for batch, empty in zip(batches, empties, strict=True)
            )

    before = distance()
    teachers = [parameter.clone() for parameter in teacher.parameters]
    distil(student, teacher, pool, make_stage(40), guidance=1.0, more=clock.tick)
    assert distance() < 0.88 * before
    assert all(map(torch.equal, teachers, teacher.parameters))
    assert all(parameter.grad is None for parameter in teacher.parameters)


def test_without_time_the_student_stays(make_velocity, pool, make_stage, clock):
    student, teacher = make_velocity(0), make_velocity(1).frozen_copy()
    before = [parameter.detach().clone() for parameter in student.parameters]
    distil(student, teacher, pool, make_stage(0), guidance=1.0, more=clock.tick)
    assert all(map(torch.equal, before, student.parameters))
