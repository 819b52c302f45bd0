"""Prompt embeddings that were computed before: least recently used, bounded in bytes, one computation for each key."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from zimage_ui.generator.base import CacheStats


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingKey:
    """Everything that an embedding depends on.

    Attributes:
        text_encoder: fingerprint of the text encoder and its tokenizer.
        dtype: that the encoder computes in.
        max_prompt_tokens: where longer prompts are cut.
        prompt: NFC-normalised.
    """

    text_encoder: str
    dtype: torch.dtype
    max_prompt_tokens: int
    prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEmbedding:
    """A prompt as the transformer reads it.

    Attributes:
        prompt_embeds: (prompt_tokens, features).
        prompt_tokens: tokens that went in.
        truncated_tokens: tokens beyond the maximum that did not.
        elapsed_ms: asks what computing it took; may wait for the device.
        ahead_ms: asks how much of that was done before its turn came.
    """

    prompt_embeds: torch.Tensor
    prompt_tokens: int
    truncated_tokens: int
    elapsed_ms: Callable[[], float]
    ahead_ms: Callable[[], float] = float


class EmbeddingCache:
    """Keeps embeddings in host memory; safe to use from several threads.

    Host memory because device memory is the scarcer by far, and the copy back (a third of a megabyte for a usual
    prompt) takes microseconds where the text encoder takes milliseconds.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[EmbeddingKey, PromptEmbedding] = OrderedDict()
        self._flights: dict[EmbeddingKey, Future[PromptEmbedding | None]] = {}
        self._hits = self._misses = self._size_bytes = 0
        self._saved_ms = 0.0

    def __contains__(self, key: EmbeddingKey) -> bool:
        """Whether the embedding of `key` is there; asking counts as nothing."""
        with self._lock:
            return key in self._entries

    def get(self, key: EmbeddingKey, compute: Callable[[], PromptEmbedding]) -> tuple[PromptEmbedding, bool]:
        """The embedding of `key`, and whether it was there.

        `compute` makes it once, also for callers that come meanwhile. A caller that waited for a computation that
        failed tries its own: the failure may have been the other's alone.

        Raises:
            Exception: whatever `compute` raises.
        """
        while True:
            with self._lock:
                embedding = self._entries.get(key)
                flight = self._flights.get(key)
                if embedding is not None:
                    self._entries.move_to_end(key)
                elif flight is None:
                    self._misses += 1
                    flight = self._flights[key] = Future()
                    break
            if embedding is None and flight is not None:
                embedding = flight.result()
            if embedding is not None:
                self._count_hit(embedding)
                return embedding, True
        return self._compute(key, compute, flight), False

    def stats(self) -> CacheStats:
        """The counts so far."""
        with self._lock:
            return CacheStats(
                hits=self._hits,
                misses=self._misses,
                entries=len(self._entries),
                size_bytes=self._size_bytes,
                capacity_bytes=self._capacity_bytes,
                saved_ms=self._saved_ms,
            )

    def reset(self) -> None:
        """Forget all entries and counts."""
        with self._lock:
            self._entries.clear()
            self._hits = self._misses = self._size_bytes = 0
            self._saved_ms = 0.0

    def _compute(
        self, key: EmbeddingKey, compute: Callable[[], PromptEmbedding], flight: Future[PromptEmbedding | None]
    ) -> PromptEmbedding:
        embedding: PromptEmbedding | None = None
        try:
            embedding = compute()
            return embedding
        finally:
            with self._lock:
                if embedding is not None:
                    self._keep(key, embedding)
                del self._flights[key]
            flight.set_result(embedding)  # None tells those who wait to try for themselves

    def _keep(self, key: EmbeddingKey, embedding: PromptEmbedding) -> None:
        size_bytes = embedding.prompt_embeds.nbytes
        if size_bytes > self._capacity_bytes:
            return
        while self._size_bytes + size_bytes > self._capacity_bytes:
            _, oldest = self._entries.popitem(last=False)
            self._size_bytes -= oldest.prompt_embeds.nbytes
        self._entries[key] = embedding
        self._size_bytes += size_bytes

    def _count_hit(self, embedding: PromptEmbedding) -> None:
        saved_ms = embedding.elapsed_ms()  # outside the lock: it may wait for the device
        with self._lock:
            self._hits += 1
            self._saved_ms += saved_ms
