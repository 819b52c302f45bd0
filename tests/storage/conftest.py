"""What the tests of the storage room share: pictures, settings, orders that remember, a disk that fails on cue."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zimage_ui.errors import ZImageError
from zimage_ui.events import PictureRef
from zimage_ui.request import GeneratedImage, GenerationRequest, ImageFormat
from zimage_ui.storage import files
from zimage_ui.storage.files import OutputFolder, new_picture_id
from zimage_ui.storage.library import Library
from zimage_ui.storage.metadata import PictureMetadata
from zimage_ui.storage.saver import SaveOrder, Saver

WAIT_S = 20.0


def make_image(width: int = 64, height: int = 64, seed: int = 7) -> GeneratedImage:
    """Noise: whatever is lost or mixed up shows."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return GeneratedImage(index=0, seed=seed, width=width, height=height, pixels=pixels.tobytes())


def make_metadata(prompt: str = "a cat on a mat", picture_id: str = "", **fields: Any) -> PictureMetadata:
    request = {"width": 64, "height": 64, "seed": 7, **fields.pop("request", {})}
    known = {
        "created_at": datetime(2026, 11, 21, 12, 30, tzinfo=UTC),
        "index": 0,
        "nfe": 8,
        "model_name": "Z-Image-Turbo",
        "model_fingerprint": "0123456789abcdef",
        "model_trained": True,
        "dtype": "bfloat16",
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
        "timings_ms": {"queue": 0.5, "encode": 8.9, "sample": 541.25, "decode": 50.0},
        "prompt_tokens": 12,
        "truncated_tokens": 0,
    }
    return PictureMetadata(
        picture_id=picture_id or new_picture_id(),
        request=GenerationRequest(prompt=prompt, **request),
        **{**known, **fields},
    )


@dataclass
class Listener:
    """Makes orders and remembers what became of them."""

    ready: list[PictureRef] = field(default_factory=list)
    saved: list[PictureRef] = field(default_factory=list)
    failed: list[ZImageError] = field(default_factory=list)
    made_ready: threading.Event = field(default_factory=threading.Event)

    def order(self, image_format: ImageFormat = ImageFormat.PNG, prompt: str = "a cat", **fields: Any) -> SaveOrder:
        request = {"image_format": image_format, **fields.pop("request", {})}
        metadata = make_metadata(prompt, request=request, **fields)
        return SaveOrder(
            picture_id=metadata.picture_id,
            image=make_image(),
            metadata=metadata,
            image_format=image_format,
            on_ready=self._on_ready,
            on_saved=self.saved.append,
            on_failed=self.failed.append,
        )

    def _on_ready(self, picture: PictureRef) -> None:
        self.ready.append(picture)
        self.made_ready.set()


class FaultyOs:
    """The `os` module, whose n-th call of some functions fails with an error of choice."""

    def __init__(self, names: tuple[str, ...], nth: int, code: int = errno.EIO) -> None:
        self._names, self._left, self._code = names, nth, code
        self._lock = threading.Lock()

    @property
    def has_failed(self) -> bool:
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._names:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self._left -= 1
                fails = self._left == 0
            if fails:
                if name == "close":  # which closes even when it complains
                    real(*arguments)
                raise OSError(self._code, os.strerror(self._code))
            return real(*arguments, **options)

        return call


@pytest.fixture
def image_of() -> Callable[..., GeneratedImage]:
    return make_image


@pytest.fixture
def metadata_of() -> Callable[..., PictureMetadata]:
    return make_metadata


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def folder(tmp_path: Path) -> OutputFolder:
    folder = OutputFolder(tmp_path / "outputs")
    folder.prepare()
    return folder


@pytest.fixture
def library(folder: OutputFolder) -> Iterator[Library]:
    with closing(Library(folder)) as library:
        yield library


@pytest.fixture
def saver_with(folder: OutputFolder, library: Library) -> Iterator[Callable[..., Saver]]:
    """Makes started savers and closes them."""
    made: list[Saver] = []

    def make(**options: Any) -> Saver:
        saver = Saver(folder, library, **{"threads": 1, "retry_s": 3600.0, **options})
        made.append(saver)
        saver.start()
        return saver

    yield make
    for saver in made:
        saver.close(WAIT_S)


@pytest.fixture
def saver(saver_with: Callable[..., Saver]) -> Saver:
    return saver_with()


@pytest.fixture
def fail_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FaultyOs]:
    """`fail_disk(names, nth, code)` replaces the disk; `fail_disk()` mends it."""

    def fail(names: tuple[str, ...] = (), nth: int = 1, code: int = errno.EIO) -> FaultyOs:
        disk = FaultyOs(names, nth, code)
        monkeypatch.setattr(files, "os", disk)
        return disk

    return fail
