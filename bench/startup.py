"""From process start to /livez, the page and ready, over real HTTP: `python -m bench.startup [--runs 5]`.

Each run starts `python app.py` in a new process on a free port and asks without pause from the start. The first run
finds cold files; it is reported apart. Writes bench/results/startup.json.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.report import write_result

BARS_S = {"livez": 5.0, "page": 6.0, "ready": 20.0}
PATHS = {"livez": "/livez", "page": "/", "ready": "/readyz"}
DEADLINE_S = 120.0
ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int, path: str) -> bool:
    """Whether `path` answers 200 now, its whole body read."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status == 200
    except OSError:
        return False
    finally:
        connection.close()


def one_start(model: str, folder: Path, deadline_s: float = DEADLINE_S) -> dict[str, float]:
    """Seconds from process start to each of livez, page, ready; the server is stopped again."""
    port = free_port()
    environment = {
        **os.environ, "ZIMAGE_PORT": str(port), "ZIMAGE_MODEL": model,
        "ZIMAGE_OUTPUT_DIR": str(folder / "outputs"),
    }  # fmt: skip
    begun = time.perf_counter()
    server = subprocess.Popen([sys.executable, str(ROOT / "app.py")], env=environment, stdout=subprocess.DEVNULL)
    seen: dict[str, float] = {}
    try:
        for name, path in PATHS.items():
            while not answers(port, path):
                if time.perf_counter() - begun > deadline_s or server.poll() is not None:
                    raise SystemExit(f"{name} did not answer within {deadline_s:.0f} s (exit {server.poll()})")
                time.sleep(0.01)
            seen[name] = round(time.perf_counter() - begun, 3)
    finally:
        stopping = time.perf_counter()
        server.send_signal(signal.SIGTERM)
        server.wait(30)
        seen["stop"] = round(time.perf_counter() - stopping, 3)
    return seen


def main() -> None:
    """Start several times, print medians against the bars, store all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--model", default="auto")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        first = one_start(arguments.model, Path(folder))
        later = [one_start(arguments.model, Path(folder)) for _ in range(arguments.runs)]
    medians = {name: round(statistics.median(run[name] for run in later), 3) for name in (*PATHS, "stop")}
    worst = {name: max(run[name] for run in later) for name in (*PATHS, "stop")}
    figures: dict[str, Any] = {
        "model": arguments.model, "bars_s": BARS_S, "first_start_s": first, "median_s": medians, "worst_s": worst,
        "runs_s": later,
    }  # fmt: skip
    print(json.dumps(figures, indent=2))
    print(write_result("startup", figures))


if __name__ == "__main__":
    main()
