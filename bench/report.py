"""What stands beside every figure: the machine, the versions, the command and the day it was printed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

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
