"""One safetensors file: its header, read and checked, and what is wrong with it when it cannot be.

Only safetensors are read: a pickle (.bin, .ckpt, .pt) can run any program hidden in it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from zimage_ui.errors import ModelDamagedError

FETCH_AGAIN = "Fetch the model again, or copy the folder anew."


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies in its file.

    Attributes:
        dtype: safetensors' name of it ("F32", "BF16").
        shape: as stored.
        begin, end: first byte, and the first byte after it, from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How long it is in its file."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A safetensors file whose header has been read; its tensors in the order in which they lie there."""

    path: Path
    size_bytes: int
    tensors: dict[str, StoredTensor]


def open_weight_file(path: Path) -> WeightFile:
    """Read the header of `path`.

    Raises:
        ModelDamagedError: the file is missing, cut short, or no safetensors file.
    """
    try:
        with safe_open(path, framework="np"):
            pass  # safetensors itself checks the header, and that the file is exactly as long as it says
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise ModelDamagedError(f"{path} is missing.", FETCH_AGAIN) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelDamagedError(f"{path} cannot be read: {error}.", _cure(path)) from error
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {
        key: StoredTensor(entry["dtype"], tuple(entry["shape"]), *(start + offset for offset in entry["data_offsets"]))
        for key, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    }
    return WeightFile(path, size_bytes, tensors)


def _cure(path: Path) -> str:
    try:
        with path.open("rb") as file:
            is_pointer = file.read(32).startswith(b"version https://git-lfs")
    except OSError:
        return "Check the permissions of the file and the state of the disk."
    if is_pointer:
        return "The file is only a pointer that git-lfs left in its place: run `git lfs pull` there."
    return f"It may have been cut short while it was copied or downloaded. {FETCH_AGAIN}"
