"""The batched forward is the stock one, and what is built around it."""

import copy
from itertools import pairwise

import pytest
import torch

from training.model import SHIFT, build_text_encoder, build_transformer, scheduler
from training.velocity import Captions, Velocity, sample, sampler_sigmas
from zimage_ui.generator.sampling import make_schedule
from zimage_ui.request import SchedulerName

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


def captions_of(bucket, *lengths):
    ids = torch.randint(3, 100, (len(lengths), bucket))
    beyond = torch.arange(bucket) >= torch.tensor(lengths)[:, None]
    return Captions(ids.masked_fill(beyond, 0), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("height", "width"),
    [(32, 32), (24, 40), (40, 24), (10, 14)],  # 256x256, 320x192, 192x320: whole; 112x80: 35 tokens, padded to 64
)
@pytest.mark.parametrize(("bucket", "lengths"), [(32, (32, 7, 1)), (64, (33, 64, 50))])
def test_it_equals_the_stock_forward_picture_by_picture(sizes, height, width, bucket, lengths):
    transformer, encoder = build_transformer(sizes), build_text_encoder(sizes, 100, 0)
    stock, stock_encoder = copy.deepcopy(transformer), copy.deepcopy(encoder).eval()
    velocity = Velocity(transformer, encoder)
    latents = torch.randn(len(lengths), 16, height, width)
    sigma = torch.rand(len(lengths))
    captions = captions_of(bucket, *lengths)
    with torch.no_grad():
        states = [
            stock_encoder(ids[None, :length], output_hidden_states=True).hidden_states[-2][0]
            for ids, length in zip(captions.ids, lengths, strict=True)
        ]
        expected = stock(list(latents[:, :, None]), 1 - sigma, states, return_dict=False)[0]
        found = velocity(latents, sigma, captions)
    assert found.std() > 0.1
    torch.testing.assert_close(found, -torch.stack(list(expected))[:, :, 0], rtol=1e-4, atol=1e-5)


def test_known_embeddings_spare_the_text_encoder(make_velocity):
    velocity = make_velocity(0)
    latents, sigma, captions = torch.randn(2, 16, 8, 8), torch.rand(2), captions_of(32, 5, 9)
    with torch.no_grad():
        expected = velocity(latents, sigma, captions)
        states = velocity.encode(captions)
        other_ids = Captions(torch.zeros_like(captions.ids), captions.lengths)
        assert torch.equal(velocity(latents, sigma, other_ids, states), expected)


def test_what_stands_at_the_padding_does_not_matter(make_velocity):
    velocity = make_velocity(0)
    latents, sigma, captions = torch.randn(2, 16, 8, 8), torch.rand(2), captions_of(32, 5, 9)
    scribbled = captions.ids.clone()
    scribbled[0, 5:], scribbled[1, 9:] = 42, 43
    with torch.no_grad():
        expected = velocity(latents, sigma, captions)
        assert torch.equal(velocity(latents, sigma, Captions(scribbled, captions.lengths)), expected)


def test_every_parameter_learns(make_velocity):
    velocity = make_velocity(0)
    assert len(velocity.named_parameters) == len(velocity.parameters)
    # 16 image tokens and captions below their bucket: both pad tokens are used.
    velocity(torch.randn(3, 16, 8, 8), torch.rand(3), captions_of(32, 5, 9, 31)).square().mean().backward()
    unmoved = [
        name
        for name, parameter in velocity.named_parameters.items()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert unmoved == []


def test_pad_tokens_learn_only_where_something_is_padded(make_velocity):
    velocity = make_velocity(0)
    velocity(torch.randn(1, 16, 16, 16), torch.rand(1), captions_of(32, 32)).square().mean().backward()
    unmoved = {
        name
        for name, parameter in velocity.named_parameters.items()
        if parameter.grad is None or not parameter.grad.any()
    }
    assert unmoved == {"transformer.x_pad_token", "transformer.cap_pad_token"}


def test_the_text_encoders_last_layer_is_not_trained(sizes):
    encoder = build_text_encoder(sizes, 100, 0)
    trained = set(map(id, Velocity(build_transformer(sizes), encoder).parameters))
    idle = {name for name, parameter in encoder.named_parameters() if id(parameter) not in trained}
    assert idle
    assert all(name.startswith("layers.2.") or name == "norm.weight" for name in idle)


def test_a_frozen_copy_stays_while_the_original_learns(make_velocity):
    velocity = make_velocity(0)
    latents, sigma, captions = torch.randn(2, 16, 8, 8), torch.rand(2), captions_of(32, 5, 9)
    twin = velocity.frozen_copy()
    expected = velocity(latents, sigma, captions).detach()
    with torch.no_grad():
        for parameter in velocity.parameters:
            parameter.mul_(1.5)
    assert all(parameter.requires_grad for parameter in velocity.parameters)
    found = twin(latents, sigma, captions)
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert not torch.equal(velocity(latents, sigma, captions), expected)


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_the_sigmas_are_the_products(steps):
    schedule = make_schedule(scheduler(), SchedulerName.EULER, steps, torch.zeros(1, 16, 32, 32))
    torch.testing.assert_close(sampler_sigmas(steps, SHIFT), schedule.sigmas.float().cpu(), rtol=1e-6, atol=1e-6)


def test_sampling_follows_a_straight_way_to_its_end():
    clean, noise = torch.randn(3, 16, 4, 4), torch.randn(3, 16, 4, 4)
    visited = []

    def velocity(latents, sigma):
        visited.append(sigma)
        return noise - clean

    found = sample(velocity, noise, sampler_sigmas(4, SHIFT))
    torch.testing.assert_close(found, clean)
    assert all(sigma.shape == (3,) for sigma in visited)
    assert all((later < earlier).all() for earlier, later in pairwise(visited))


def test_sampling_solves_a_curved_way_the_better_the_more_steps():
    """The velocity -x leads from 1 at sigma 1 to e at sigma 0."""
    errors = [
        abs(sample(lambda x, _: -x, torch.ones(1, 1, 1, 1), torch.linspace(1, 0, steps + 1)).item() - torch.e)
        for steps in (10, 20, 40)
    ]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
