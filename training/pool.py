"""What the model learns from, on the training device: pictures for the autoencoder, latents for the transformer."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.farm import MAX_TOKENS, SAID_IN, Chunk, Size
from training.model import LATENT_CHANNELS, VAE_FACTOR
from training.pixels import to_floats
from training.velocity import SEQUENCE_MULTIPLE, Captions


@dataclass(frozen=True, slots=True)
class Labels:
    """The captions of a chunk, as in `Chunk`."""

    ids: NDArray[np.int16]
    lengths: NDArray[np.int16]


class PicturePool:
    """Chunks of pictures as bytes on `device`, up to `capacity` chunks; new ones replace the oldest."""

    def __init__(self, device: torch.device, capacity: int) -> None:
        self.chunks: list[tuple[Tensor, Labels]] = []
        self._device = device
        self._capacity = capacity
        self._added = 0

    def add(self, chunk: Chunk) -> None:
        """Take a chunk."""
        entry = torch.from_numpy(chunk.pictures).to(self._device), Labels(chunk.ids, chunk.lengths)
        if len(self.chunks) < self._capacity:
            self.chunks.append(entry)
        else:
            self.chunks[self._added % self._capacity] = entry
        self._added += 1

    def crops(self, rng: random.Random, chunks: int, side: int) -> Tensor:
        """Squares of `side` pixels from the pictures of some chunks, (pictures, 3, side, side) in -1..1."""
        return torch.cat([self._crop(rng, side) for _ in range(chunks)])

    def _crop(self, rng: random.Random, side: int) -> Tensor:
        pictures = rng.choice(self.chunks)[0][:: rng.choice((1, 2))][:32]
        _, height, width, _ = pictures.shape
        side_y, side_x = min(side, height), min(side, width)
        top, left = rng.randint(0, height - side_y), rng.randint(0, width - side_x)
        return to_floats(pictures[:, top : top + side_y, left : left + side_x])

    def whole(self, rng: random.Random, size: Size, pictures: int) -> Tensor:
        """Whole pictures of `size` (width, height), (pictures, 3, height, width) in -1..1."""
        width, height = size
        fitting = [entry for entry, _ in self.chunks if entry.shape[1:3] == (height, width)]
        return to_floats(torch.cat([rng.choice(fitting)[: pictures // 2] for _ in range(2)]))


@dataclass(slots=True)
class _Shelf:
    """All latents of one size; `pairs` are (picture, caption) by the caption's bucket."""

    latents: Tensor
    ids: Tensor
    lengths: Tensor
    stored: int = 0
    pairs: dict[int, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Clean latents, (batch, 16, height, width) in fp32, and what is on them."""

    latents: Tensor
    captions: Captions


class LatentPool:
    """Latents with their captions on `device`, drawn in batches of one size and one bucket.

    Args:
        device: where.
        capacity: pictures of the most frequent size that are kept; others by their shares. The oldest go first.
        tokens: a batch has about so many tokens, so that every step takes about the same time.
        empty: ids of the empty prompt, which replaces one caption in ten (guidance needs it later).
        shares: how often a batch has which size, (width, height) in pixels.
    """

    _EMPTY_SHARE = 0.1
    _LONGER_SHARE = 0.04  # of batches: padded by one bucket more, so that long prompts meet no unknown positions

    def __init__(
        self, device: torch.device, capacity: int, tokens: int, empty: list[int], shares: dict[Size, float]
    ) -> None:
        self._shelves: dict[Size, _Shelf] = {}
        self._device = device
        self._capacity = capacity
        self._tokens = tokens
        self._empty = empty
        self._shares = shares

    def add(self, latents: Tensor, labels: Labels) -> None:
        """Take the latents of a chunk, (pictures, 16, height, width), with its captions."""
        size = latents.shape[3] * VAE_FACTOR, latents.shape[2] * VAE_FACTOR
        shelf = self._shelves.get(size) or self._new_shelf(size, len(latents))
        places = (shelf.stored + torch.arange(len(latents))) % len(shelf.latents)
        shelf.latents[places] = latents.to(shelf.latents.dtype)
        shelf.ids[places] = torch.from_numpy(labels.ids).to(self._device)
        shelf.lengths[places] = torch.from_numpy(labels.lengths).to(self._device)
        shelf.stored += len(latents)

    def _new_shelf(self, size: Size, chunk: int) -> _Shelf:
        """A shelf for its share of the capacity, in whole chunks, of which it holds one at least."""
        width, height = size
        rows = int(self._capacity * self._shares[size] / max(self._shares.values())) // chunk * chunk or chunk
        shape = (rows, LATENT_CHANNELS, height // VAE_FACTOR, width // VAE_FACTOR)
        captions = (rows, len(SAID_IN))
        self._shelves[size] = _Shelf(
            torch.empty(shape, dtype=torch.bfloat16, device=self._device),
            torch.empty((*captions, MAX_TOKENS), dtype=torch.int16, device=self._device),
            torch.empty(captions, dtype=torch.int16, device=self._device),
        )
        return self._shelves[size]

    def refresh(self) -> None:
        """Let batches see what was added since the last time (waits for the device once)."""
        for shelf in self._shelves.values():
            lengths = shelf.lengths[: min(shelf.stored, len(shelf.lengths))]
            buckets = (lengths + SEQUENCE_MULTIPLE - 1) // SEQUENCE_MULTIPLE
            shelf.pairs = {
                int(bucket) * SEQUENCE_MULTIPLE: (buckets == bucket).nonzero() for bucket in buckets.unique().tolist()
            }

    @property
    def pictures(self) -> int:
        """How many were added in all."""
        return sum(shelf.stored for shelf in self._shelves.values())

    def draw(self, rng: random.Random, size: Size | None = None) -> Batch:
        """A random batch; of `size`, or of sizes by their shares."""
        if size is None:
            sizes = [size for size, shelf in self._shelves.items() if shelf.pairs]
            size = rng.choices(sizes, [self._shares[size] for size in sizes])[0]
        shelf = self._shelves[size]
        pairs_of = shelf.pairs or {}
        bucket = rng.choices(list(pairs_of), [len(pairs) for pairs in pairs_of.values()])[0]
        image_tokens = shelf.latents.shape[2] * shelf.latents.shape[3] // 4
        batch = max(2, self._tokens // (image_tokens + bucket) // 8 * 8)
        pairs = pairs_of[bucket]
        picked = pairs[torch.randint(len(pairs), (batch,), device=self._device)]
        padded = bucket + (SEQUENCE_MULTIPLE if rng.random() < self._LONGER_SHARE else 0)
        return Batch(shelf.latents[picked[:, 0]].float(), self._captions(shelf, picked, padded))

    def _captions(self, shelf: _Shelf, picked: Tensor, bucket: int) -> Captions:
        ids = shelf.ids[picked[:, 0], picked[:, 1]].long()
        ids = torch.nn.functional.pad(ids, (0, max(0, bucket - ids.shape[1])))[:, :bucket]
        lengths = shelf.lengths[picked[:, 0], picked[:, 1]].long()
        empty = self.empty_captions(1, bucket)
        dropped = torch.rand(len(ids), device=self._device) < self._EMPTY_SHARE
        return Captions(torch.where(dropped[:, None], empty.ids, ids), torch.where(dropped, empty.lengths, lengths))

    def empty_captions(self, batch: int, bucket: int) -> Captions:
        """The empty prompt, `batch` times."""
        ids = torch.zeros((batch, bucket), dtype=torch.long, device=self._device)
        ids[:, : len(self._empty)] = torch.tensor(self._empty, device=self._device)
        return Captions(ids, torch.full((batch,), len(self._empty), device=self._device))
