"""What stands beside every figure: the machine, the versions, the command and the day it was printed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
_PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "gradio",
    "fastapi",
    "uvicorn",
    "pillow",
    "numpy",
    "isal",
    "playwright",
)


def circumstances(*packages: str) -> dict[str, Any]:
    """Machine, versions, command and date; `packages` replaces the default list of what to name."""
    versions = {"python": platform.python_version()}
    for package in packages or _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", f"bench.{Path(sys.argv[0]).stem}", *sys.argv[1:]]),
        "machine": {
            "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
            "cpu": _cpu_name(),
            "cpu_count": os.cpu_count(),
            "load_1m": round(os.getloadavg()[0], 2),
            "gpu": _gpu(),
        },
        "versions": versions,
    }


def write_result(name: str, figures: dict[str, Any], *packages: str) -> Path:
    """Write `bench/results/<name>.json`: the circumstances, then the figures."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({**circumstances(*packages), **figures}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return path


class PartedResult:
    """A result that is measured part by part, over several calls; each part remembers the call that measured it.

    Measuring a part again replaces it; a call of which no part is left is forgotten.

    Attributes:
        content: what is stored: "calls" by their names, and "parts".
    """

    def __init__(self, path: Path, circumstances_of_call: dict[str, Any]) -> None:
        """Go on from what `path` holds, if anything.

        Raises:
            ValueError: it holds something else.
        """
        self.path = path
        self.content: dict[str, Any] = {"calls": {}, "parts": {}}
        if path.exists():
            self.content |= json.loads(path.read_text("utf-8"))
        self._call: str = circumstances_of_call["date"]
        self._circumstances = circumstances_of_call

    def put(self, place: Sequence[str], figures: dict[str, Any]) -> None:
        """Store `figures` as the part at `place` (names from outer to inner) and write everything."""
        parts = self.content["parts"]
        for name in place[:-1]:
            parts = parts.setdefault(name, {})
        parts[place[-1]] = {"call": self._call, **figures}
        calls = {**self.content["calls"], self._call: self._circumstances}
        used = set(_calls_in(self.content["parts"]))
        self.content["calls"] = {call: calls[call] for call in sorted(calls) if call in used}
        self.write()

    def write(self) -> None:
        """Write everything, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(self.content, indent=2, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(self.path)


def _calls_in(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "call" in part:
            yield part["call"]
        for inner in part.values():
            yield from _calls_in(inner)


def commit() -> str | None:
    """The commit that is checked out, with "+" if the package's files differ from it; None outside of a repository."""
    try:
        head, changes = (
            subprocess.run(["git", *command], capture_output=True, text=True, check=True, timeout=20, cwd=ROOT).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "zimage_ui"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head.strip()[:12] + ("+" if changes.strip() else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _gpu() -> str | None:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
