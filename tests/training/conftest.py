"""Small parts that learn on a CPU, and a clock that a test turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


class Clock:
    """Stands still until it is told that a second has passed."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def tick(self) -> None:
        self.now_s += 1


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_stage(tmp_path: Path, clock: Clock) -> Callable[[float], Any]:
    """A stage that lasts so many ticks of `clock`."""
    import torch

    from training.run import Stage

    return lambda budget_s: Stage("test", tmp_path, budget_s, torch.device("cpu"), clock)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread, for tiny tensors and equal results, and random numbers of the test's own."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def sizes() -> Any:
    from training.model import ModelSizes

    return ModelSizes(
        vae_channels=(8, 8, 16, 16), vae_norm_groups=4,
        text_width=32, text_feed_forward=48, text_heads=2, text_key_heads=1, text_head_width=16,
        width=48, layers=2, heads=2, axis_widths=(8, 8, 8),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training.tokenizer import build_tokenizer

    folder = tmp_path_factory.mktemp("made") / "tokenizer"
    build_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder: Path) -> Any:
    from training.farm import CaptionTokenizer

    return CaptionTokenizer(tokenizer_folder)


@pytest.fixture
def make_velocity(sizes: Any) -> Callable[[int], Any]:
    """Text encoder and transformer of 100 tokens, fresh; the seed decides their weights."""
    import torch

    from training.model import build_text_encoder, build_transformer
    from training.velocity import Velocity

    def make(seed: int) -> Velocity:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return Velocity(build_transformer(sizes), build_text_encoder(sizes, 100, 0))

    return make


@pytest.fixture
def pool() -> Any:
    """Eight latents of 64x64 pixels, two captions each, in batches of eight."""
    import numpy as np
    import torch

    from training.pool import Labels, LatentPool

    pool = LatentPool(torch.device("cpu"), 8, 8 * (16 + 32), [1, 2], {(64, 64): 1.0})
    rng = np.random.default_rng(0)
    latents = torch.randn(8, 16, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, 8, 8)
    ids = rng.integers(3, 100, (8, 4, 64)).astype(np.int16)
    pool.add(latents, Labels(ids, np.full((8, 4), 9, np.int16)))
    pool.refresh()
    return pool
