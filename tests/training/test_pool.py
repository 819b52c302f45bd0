import random

import numpy as np
import pytest
import torch

from training.farm import Chunk
from training.pixels import to_floats
from training.pool import Labels, LatentPool, PicturePool

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")
SQUARE, WIDE = (64, 64), (96, 64)
EMPTY = [1, 2]


def chunk_of(value, width=64, height=64, pictures=4):
    """Pictures of one grey, with a caption of its number."""
    return Chunk(
        np.full((pictures, height, width, 3), value, np.uint8),
        np.full((pictures, 4, 64), value, np.int16),
        np.full((pictures, 4), 5, np.int16),
    )


def add(pool, number, size=SQUARE, length=9, pictures=8):
    """Latents that hold `number`, said by captions that hold it, too."""
    ids = np.full((pictures, 4, 64), number, np.int16)
    latents = torch.full((pictures, 16, size[1] // 8, size[0] // 8), float(number))
    pool.add(latents, Labels(ids, np.full((pictures, 4), length, np.int16)))


def latent_pool(capacity=64, tokens=1_000, shares=None):
    return LatentPool(CPU, capacity, tokens, EMPTY, shares or {SQUARE: 0.5, WIDE: 0.5})


def draws(pool, count, size=None):
    rng = random.Random(0)
    return [pool.draw(rng, size) for _ in range(count)]


class TestPictures:
    def test_bytes_become_floats_from_minus_one_to_one(self):
        pictures = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(2, 5, 4, 3)
        floats = to_floats(pictures)
        assert floats.shape == (2, 3, 5, 4)
        assert floats[1, :, 2, 2].tolist() == pytest.approx([-1, -0.6, 1])

    def test_new_chunks_replace_the_oldest(self):
        pool = PicturePool(CPU, 3)
        for value in range(5):
            pool.add(chunk_of(value))
        assert sorted(int(pictures[0, 0, 0, 0]) for pictures, _ in pool.chunks) == [2, 3, 4]
        assert all(int(pictures[0, 0, 0, 0]) == labels.ids[0, 0, 0] for pictures, labels in pool.chunks)

    def test_crops_are_square_or_what_the_picture_allows(self):
        pool = PicturePool(CPU, 3)
        pool.add(chunk_of(9, width=64, height=40, pictures=40))
        assert pool.crops(random.Random(0), 3, 32).shape[1:] == (3, 32, 32)
        assert pool.crops(random.Random(0), 3, 48).shape[1:] == (3, 40, 48)
        assert {len(pool.crops(random.Random(seed), 1, 32)) for seed in range(8)} == {20, 32}

    def test_crops_come_from_everywhere(self):
        pool = PicturePool(CPU, 1)
        chunk = chunk_of(0, pictures=2)
        chunk.pictures[:] = np.arange(64, dtype=np.uint8)[:, None, None]
        pool.add(chunk)
        rng = random.Random(0)
        tops = {round((float(pool.crops(rng, 1, 60)[0, 0, 0, 0]) + 1) * 127.5) for _ in range(100)}
        assert tops == {0, 1, 2, 3, 4}

    def test_whole_pictures_are_of_one_size(self):
        pool = PicturePool(CPU, 9)
        pool.add(chunk_of(1, width=96))
        pool.add(chunk_of(2))
        pictures = pool.whole(random.Random(0), SQUARE, 6)
        assert pictures.shape == (6, 3, 64, 64)
        assert (pictures == 2 / 127.5 - 1).all()


class TestLatents:
    def test_a_batch_has_one_size_and_one_bucket(self):
        pool = latent_pool()
        for size, length in ((SQUARE, 9), (SQUARE, 32), (SQUARE, 33), (WIDE, 9), (WIDE, 64)):
            add(pool, 7, size, length)
        pool.refresh()
        seen = set()
        for batch in draws(pool, 200):
            assert batch.latents.dtype == torch.float32
            assert batch.captions.ids.shape[0] == batch.captions.lengths.shape[0] == len(batch.latents)
            bucket = batch.captions.ids.shape[1]
            told = batch.captions.lengths[batch.captions.ids[:, 0] == 7]
            assert (told <= bucket).all()
            seen.add((tuple(batch.latents.shape[2:]), bucket))
        assert seen == {((8, width), bucket) for width in (8, 12) for bucket in (32, 64, 96)}

    def test_captions_are_those_of_the_latents(self):
        pool = latent_pool(capacity=64)
        for number in range(3, 11):
            add(pool, number, length=number)
        pool.refresh()
        numbers = set()
        for batch in draws(pool, 20):
            told = batch.captions.ids[:, 0] != EMPTY[0]
            values = batch.latents[told, 0, 0, 0].long()
            assert torch.equal(batch.captions.ids[told, 0], values)
            assert torch.equal(batch.captions.lengths[told], values)
            numbers.update(values.tolist())
        assert numbers == set(range(3, 11))

    def test_new_latents_replace_the_oldest(self):
        pool = latent_pool(capacity=16)
        for number in range(3, 8):
            add(pool, number)
        pool.refresh()
        assert {int(value) for batch in draws(pool, 30) for value in batch.latents[:, 0, 0, 0]} == {6, 7}
        assert pool.pictures == 5 * 8

    def test_a_seldom_size_has_its_share_of_the_room(self):
        pool = latent_pool(capacity=32, shares={SQUARE: 0.8, WIDE: 0.4})
        for number in range(3, 9):
            add(pool, number, SQUARE)
            add(pool, number, WIDE)
        pool.refresh()
        for size, kept in ((SQUARE, {5, 6, 7, 8}), (WIDE, {7, 8})):
            assert {int(value) for batch in draws(pool, 40, size) for value in batch.latents[:, 0, 0, 0]} == kept

    def test_a_shelf_takes_one_chunk_at_least(self):
        pool = latent_pool(capacity=1)
        add(pool, 3)
        add(pool, 4)
        pool.refresh()
        assert {int(value) for batch in draws(pool, 20) for value in batch.latents[:, 0, 0, 0]} == {4}

    def test_what_was_added_is_drawn_after_a_refresh(self):
        pool = latent_pool(capacity=64)
        add(pool, 3)
        pool.refresh()
        add(pool, 4)
        assert {int(value) for batch in draws(pool, 20) for value in batch.latents[:, 0, 0, 0]} == {3}
        pool.refresh()
        assert {int(value) for batch in draws(pool, 20) for value in batch.latents[:, 0, 0, 0]} == {3, 4}

    def test_one_caption_in_ten_is_empty(self):
        pool = latent_pool(tokens=8 * 48 * 10)
        add(pool, 7)
        pool.refresh()
        ids, lengths = [], []
        for batch in draws(pool, 100, SQUARE):
            ids.append(batch.captions.ids[:, :32])
            lengths.append(batch.captions.lengths)
        empty = torch.cat(ids)[:, 0] == EMPTY[0]
        assert len(empty) == 8_000
        assert 0.085 < empty.float().mean() < 0.115  # 4.5 standard deviations
        assert (torch.cat(lengths)[empty] == len(EMPTY)).all()
        assert (torch.cat(lengths)[~empty] == 9).all()
        assert torch.cat(ids)[empty].unique(dim=0).tolist() == [EMPTY + [0] * 30]

    def test_now_and_then_a_batch_is_padded_by_one_bucket_more(self):
        pool = latent_pool()
        add(pool, 7)
        pool.refresh()
        buckets = [batch.captions.ids.shape[1] for batch in draws(pool, 1_000)]
        assert set(buckets) == {32, 64}
        assert 20 <= buckets.count(64) <= 65  # 40 expected

    def test_a_batch_keeps_to_its_tokens(self):
        pool = latent_pool(tokens=2_000)
        for size in (SQUARE, WIDE):
            for length in (9, 60):
                add(pool, 7, size, length)
        pool.refresh()
        for batch in draws(pool, 60):
            pictures, _, height, width = batch.latents.shape
            bucket = 32 if batch.captions.lengths.max() <= 32 else 64
            tokens = pictures * (height * width // 4 + bucket)
            assert pictures % 8 == 0
            assert 1_000 < tokens <= 2_000

    def test_a_batch_has_two_pictures_at_least(self):
        pool = latent_pool(tokens=1)
        add(pool, 7)
        pool.refresh()
        assert len(pool.draw(random.Random(0)).latents) == 2

    def test_sizes_are_drawn_by_their_shares(self):
        pool = latent_pool(shares={SQUARE: 0.75, WIDE: 0.25})
        add(pool, 7, SQUARE)
        add(pool, 7, WIDE)
        pool.refresh()
        wide = sum(batch.latents.shape[3] == 12 for batch in draws(pool, 400))
        assert 70 <= wide <= 130  # 100 expected

    def test_the_empty_prompt_in_any_bucket(self):
        captions = latent_pool().empty_captions(3, 64)
        assert captions.ids.tolist() == [EMPTY + [0] * 62] * 3
        assert captions.lengths.tolist() == [2, 2, 2]
