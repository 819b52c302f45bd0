import json
import math
from itertools import repeat

import numpy as np
import pytest
import torch

from training.autoencoder import (
    PictureBatches,
    psnr_db,
    reconstructed,
    to_latents,
    to_pictures,
    train_autoencoder,
)
from training.farm import Assortment, make_chunk
from training.model import build_vae
from training.pixels import to_floats
from training.pool import PicturePool

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

BATCHES = PictureBatches(crop_px=16, crop_chunks=1, whole_size=(32, 32), whole=8)


@pytest.fixture(scope="module")
def pictures(tokenizer):
    pool = PicturePool(torch.device("cpu"), 2)
    for number in range(2):
        pool.add(make_chunk(number, tokenizer, Assortment({(32, 32): 1.0}, pictures=8)))
    return pool


def ticks(clock):
    for _ in repeat(None):
        clock.tick()
        yield None


def log_of(stage):
    return [json.loads(line) for line in (stage.folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_it_learns_to_keep_pictures(sizes, pictures, make_stage, clock):
    vae = build_vae(sizes)
    batch = to_floats(torch.cat([entry for entry, _ in pictures.chunks]))
    before = psnr_db(reconstructed(vae, batch), batch)
    stage = make_stage(200)
    train_autoencoder(vae, pictures, ticks(clock), stage, BATCHES)
    assert psnr_db(reconstructed(vae, batch), batch) > before + 1.5
    first, last = log_of(stage)
    assert first["step"] == 0
    assert last["steps"] == 199
    assert last["psnr_db"] == pytest.approx(psnr_db(reconstructed(vae, batch), batch), abs=3)


def test_it_ends_frozen_with_latents_of_unit_spread(sizes, pictures, make_stage, clock):
    vae = build_vae(sizes)
    train_autoencoder(vae, pictures, ticks(clock), make_stage(5), BATCHES)
    latents = to_latents(vae, torch.cat([entry for entry, _ in pictures.chunks]))
    assert abs(latents.mean()) < 0.2  # it is measured on random draws of these pictures
    assert latents.std() == pytest.approx(1, abs=0.1)
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_crops_come_first_and_whole_pictures_last(sizes, make_stage, clock):
    asked = []

    class Pool:
        def crops(self, rng, chunks, side):
            asked.append((chunks, side))
            return torch.zeros(2, 3, 16, 16)

        def whole(self, rng, size, pictures):
            asked.append((size, pictures))
            return torch.rand(2, 3, 32, 32) * 2 - 1

    train_autoencoder(build_vae(sizes), Pool(), ticks(clock), make_stage(11), BATCHES)
    # Ten steps, at 1/11 .. 10/11 of the time; whole ones come after 0.7, and then 64 are measured eight times.
    assert asked == [(1, 16)] * 7 + [((32, 32), 8)] * 3 + [((32, 32), 64)] * 8


def test_without_time_it_is_only_measured(sizes, pictures, make_stage, clock):
    vae = build_vae(sizes)
    before = [parameter.clone() for parameter in vae.parameters()]
    stage = make_stage(0)
    train_autoencoder(vae, pictures, ticks(clock), stage, BATCHES)
    assert all(map(torch.equal, before, vae.parameters()))
    assert log_of(stage)[-1]["steps"] == 0


def test_latents_and_pictures_round_trip_with_scale_and_shift(sizes):
    vae = build_vae(sizes).eval()
    bytes_ = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 16, 24, 3), np.uint8))
    plain = to_latents(vae.register_to_config(shift_factor=0.0, scaling_factor=1.0) or vae, bytes_)
    assert plain.shape == (40, 16, 2, 3)
    assert plain.dtype == torch.float32
    expected = to_pictures(vae, plain)
    vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    scaled = to_latents(vae, bytes_)
    torch.testing.assert_close(scaled, (plain - 0.5) * 2)
    pictures = to_pictures(vae, scaled)
    assert pictures.shape == bytes_.shape
    assert pictures.dtype == torch.uint8
    assert (pictures.int() - expected.int()).abs().max() <= 1


def test_values_beyond_the_range_are_cut(sizes):
    vae = build_vae(sizes).eval()
    vae.register_to_config(shift_factor=0.0, scaling_factor=1.0)
    with torch.no_grad():
        vae.decoder.conv_out.weight.zero_()
        vae.decoder.conv_out.bias.copy_(torch.tensor([-7.0, 0.0, 7.0]))
    assert to_pictures(vae, torch.zeros(1, 16, 1, 1))[0, 0, 0].tolist() == [0, 128, 255]


def test_psnr():
    pictures = torch.zeros(2, 3, 4, 4)
    assert psnr_db(pictures, pictures) == math.inf
    assert psnr_db(pictures - 1, pictures + 1) == pytest.approx(0)
    assert psnr_db(pictures, pictures + 0.2) == pytest.approx(20, abs=1e-4)
    one_each = torch.stack((torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)))
    assert psnr_db(pictures, one_each) == pytest.approx(30, abs=1e-4)
