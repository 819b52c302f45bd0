"""The embedding cache: least recently used, bounded in bytes, one computation for each key."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from zimage_ui.generator.embedding_cache import EmbeddingCache, EmbeddingKey, PromptEmbedding

pytestmark = pytest.mark.model

ENTRY_BYTES = 400
DEADLINE_S = 20


def key(prompt: str) -> EmbeddingKey:
    return EmbeddingKey(text_encoder="t", dtype=torch.float32, max_prompt_tokens=512, prompt=prompt)


def embedding(floats: int = ENTRY_BYTES // 4) -> PromptEmbedding:
    return PromptEmbedding(
        prompt_embeds=torch.zeros(floats, 1), prompt_tokens=floats, truncated_tokens=0, elapsed_ms=lambda: 5.0
    )


def must_not_compute() -> PromptEmbedding:
    raise AssertionError("computed what was cached")


def test_the_least_recently_used_leaves_first():
    cache = EmbeddingCache(3 * ENTRY_BYTES)
    for prompt in "abc":
        cache.get(key(prompt), embedding)
    cache.get(key("a"), must_not_compute)
    cache.get(key("d"), embedding)
    for prompt in "acd":
        assert cache.get(key(prompt), must_not_compute)[1]
    assert not cache.get(key("b"), embedding)[1]


def test_bytes_are_bounded_whatever_comes():
    cache = EmbeddingCache(3 * ENTRY_BYTES)
    for number in range(50):
        cache.get(key(str(number)), lambda number=number: embedding(1 + 17 * number % 160))
        assert cache.stats().size_bytes <= 3 * ENTRY_BYTES
    assert cache.stats().entries > 0


def test_what_is_larger_than_the_cache_is_computed_and_not_kept():
    cache = EmbeddingCache(ENTRY_BYTES)
    cache.get(key("small"), embedding)
    assert cache.get(key("large"), lambda: embedding(1000))[0].prompt_tokens == 1000
    assert cache.get(key("small"), must_not_compute)[1]
    assert cache.stats().entries == 1


def test_a_cache_of_no_bytes_keeps_nothing():
    cache = EmbeddingCache(0)
    cache.get(key("a"), embedding)
    assert not cache.get(key("a"), embedding)[1]
    assert cache.stats().size_bytes == 0


def test_hits_misses_and_saved_time_are_counted():
    cache = EmbeddingCache(10 * ENTRY_BYTES)
    cache.get(key("a"), embedding)
    for _ in range(3):
        cache.get(key("a"), must_not_compute)
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.saved_ms) == (3, 1, 15.0)
    cache.reset()
    assert cache.stats().hits == cache.stats().size_bytes == cache.stats().entries == 0
    assert not cache.get(key("a"), embedding)[1]


class SlowComputation:
    """Computes when told to, and says when it has begun."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.calls = 0
        self._error = error

    def __call__(self) -> PromptEmbedding:
        self.calls += 1
        self.begun.set()
        assert self.go_on.wait(DEADLINE_S)
        if self._error is not None:
            raise self._error
        return embedding()


def test_callers_that_come_meanwhile_share_one_computation():
    cache, slow = EmbeddingCache(10 * ENTRY_BYTES), SlowComputation()
    with ThreadPoolExecutor(8) as pool:
        leader = pool.submit(cache.get, key("a"), slow)
        assert slow.begun.wait(DEADLINE_S)
        followers = [pool.submit(cache.get, key("a"), must_not_compute) for _ in range(7)]
        slow.go_on.set()
        made, hit = leader.result(DEADLINE_S)
        assert not hit
        assert all(follower.result(DEADLINE_S) == (made, True) for follower in followers)
    assert slow.calls == 1
    assert (cache.stats().hits, cache.stats().misses) == (7, 1)


def test_another_key_does_not_wait():
    cache, slow = EmbeddingCache(10 * ENTRY_BYTES), SlowComputation()
    with ThreadPoolExecutor(1) as pool:
        leader = pool.submit(cache.get, key("a"), slow)
        assert slow.begun.wait(DEADLINE_S)
        assert not cache.get(key("b"), embedding)[1]
        slow.go_on.set()
        leader.result(DEADLINE_S)


def test_who_waited_for_a_failure_tries_for_itself():
    cache, slow = EmbeddingCache(10 * ENTRY_BYTES), SlowComputation(ValueError("mine alone"))
    with ThreadPoolExecutor(2) as pool:
        leader = pool.submit(cache.get, key("a"), slow)
        assert slow.begun.wait(DEADLINE_S)
        follower = pool.submit(cache.get, key("a"), embedding)
        slow.go_on.set()
        with pytest.raises(ValueError, match="mine alone"):
            leader.result(DEADLINE_S)
        assert not follower.result(DEADLINE_S)[1]
    assert cache.stats().misses == 2
    assert cache.get(key("a"), must_not_compute)[1]
