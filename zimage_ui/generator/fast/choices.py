"""Which of several kernels computes something, chosen once: the same seed gives the same bits after a restart, too.

Two kernels round differently. Where they are nearly as fast, measuring anew would choose now this one, now that one.
So a choice is kept for the process and, beside the compiled code, for the next; and the usual kernel stays where no
other is clearly faster.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch

from zimage_ui import __version__
from zimage_ui.generator.fast import cublaslt

_log = logging.getLogger(__name__)

_Name = TypeVar("_Name", bound=str)

FILE_NAME = "kernels.json"
# In turns under load, one and the same kernel came out up to 0.5 % beside itself.
_CLEARLY_FASTER = 0.99
_LONGEST_NAMES = 80
# What some kernels belong to, or are compiled by.
_PACKAGES = ("flash-attn-4", "quack-kernels", "nvidia-cutlass-dsl")


class Choices:
    """Choices made so far, by what was asked, of whom, on which machine; used by the thread that owns the device."""

    def __init__(self) -> None:
        """Nothing is chosen yet, and nothing is kept for the next process."""
        self._made: dict[str, str] = {}
        self._file: Path | None = None

    def keep_in(self, folder: Path) -> None:
        """Go on with what earlier processes chose, and keep what is chosen for later ones; in a file in `folder`."""
        self._file = folder / FILE_NAME
        self._made = {**_read(self._file), **self._made}

    def choose(
        self,
        question: str,
        candidates: Sequence[_Name],
        measure: Callable[[], Mapping[_Name, float]],
        device: torch.device,
    ) -> _Name | None:
        """One of `candidates`: as it was chosen before, or by measuring now.

        Args:
            question: what is to be computed, with all sizes and dtypes.
            candidates: that there are here, the usual one first.
            measure: the milliseconds of each that works, in the same order.
            device: that computes.

        Returns:
            The choice. None, which is not remembered, when nothing works or the device's memory is full.
        """
        key = f"{_machine(device)}: {question}: {_told(candidates)}"
        made = next((candidate for candidate in candidates if candidate == self._made.get(key)), None)
        if made is not None:
            return made
        try:
            times_ms = measure()
        except torch.OutOfMemoryError as error:
            _log.warning("%s: not measured: %s", question, str(error))
            return None
        if not times_ms:
            return None
        chosen = clearly_fastest(times_ms)
        self._made[key] = str(chosen)
        figures = ", ".join(f"{candidate} {taken:.3f} ms" for candidate, taken in times_ms.items())
        _log.info("%s: %s (%s)", question, chosen, figures)
        self._write()
        return chosen

    def _write(self) -> None:
        """Write the file, whole or not at all; what another process chose meanwhile stays in it."""
        if self._file is None:
            return
        beside = self._file.with_name(f"{self._file.name}.{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            made = {**_read(self._file), **self._made}
            beside.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", "utf-8")
            beside.replace(self._file)
        except OSError as error:
            _log.warning("the choice of kernels is not kept for the next start: %s", error)


@cache
def kernel_choices() -> Choices:
    """Those of this process."""
    return Choices()


def clearly_fastest(times_ms: Mapping[_Name, float]) -> _Name:
    """The first that no other beats by 1 %."""
    best_ms = min(times_ms.values())
    return next(candidate for candidate, taken in times_ms.items() if best_ms > _CLEARLY_FASTER * taken)


def _told(candidates: Sequence[str]) -> str:
    """Their names, or what stands for so many that the file would grow by them."""
    names = ", ".join(candidates)
    if len(names) <= _LONGEST_NAMES:
        return names
    return f"one of {len(candidates)}, {hashlib.sha256(names.encode()).hexdigest()[:12]}"


def _read(path: Path) -> dict[str, str]:
    """What was chosen; nothing where the file is missing, or is none of ours."""
    try:
        content: Any = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _log.warning("kernels are chosen anew, %s cannot be read: %s", path, error)
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: chosen for key, chosen in content.items() if isinstance(chosen, str)}


@cache
def _machine(device: torch.device) -> str:
    """Whatever the time of a kernel depends on, and its bits."""
    if device.type != "cuda":
        return f"{device.type}, torch {torch.__version__}, zimage-ui {__version__}"
    packages = [f"{package} {found}" for package in _PACKAGES if (found := _version(package))]
    return ", ".join(
        [
            torch.cuda.get_device_name(device),
            f"torch {torch.__version__}",
            f"CUDA {torch.version.cuda}",
            f"cuBLASLt {cublaslt.version()}",
            f"cuDNN {torch.backends.cudnn.version()}",
            f"zimage-ui {__version__}",
            *packages,
        ]
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
