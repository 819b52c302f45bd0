"""Fault 30: told to stop with pictures being saved, the process keeps every one of them and ends with 0."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from zimage_ui.storage.encoders import read_metadata
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 90

pytestmark = pytest.mark.service


@dataclass
class Program:
    process: subprocess.Popen[str]
    port: int

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
    process = subprocess.Popen(
        [sys.executable, ROOT / "app.py"],
        env={**clean, "ZIMAGE_MODEL": "fake", "ZIMAGE_PORT": "0", "ZIMAGE_SAVER_THREADS": "1"},
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        address = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        if address is not None:
            yield Program(process, int(address[1]))
        if process.poll() is None:
            process.kill()


def ask(program: Program, seed: int) -> http.client.HTTPConnection:
    """Ask for eight large pictures and do not wait for the answer."""
    connection = program.connect()
    body = json.dumps({"prompt": "a boat", "n": 8, "size": "1024x1024", "seed": seed, "num_inference_steps": 1})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    return connection


def wait_for_saving(connection: http.client.HTTPConnection) -> None:
    """Read the stream until a job is being saved."""
    connection.request("GET", "/telemetry")
    for line in connection.getresponse():
        if line.startswith(b"data:") and json.loads(line.removeprefix(b"data:")).get("phase") == "saving":
            return
    pytest.fail("the stream ended before a job was saved")


def test_pictures_that_are_being_saved_when_it_is_told_to_stop_are_kept(program: Program, tmp_path: Path):
    with ExitStack() as stack:
        for number in range(3):
            stack.enter_context(closing(ask(program, seed=100 * number)))
        wait_for_saving(stack.enter_context(closing(program.connect())))
        program.process.send_signal(signal.SIGTERM)
        _, log = program.process.communicate(timeout=DEADLINE_S)
    assert program.process.returncode == 0, log
    assert "Traceback" not in log

    folder = OutputFolder(tmp_path / "outputs")
    files = set(folder.pictures())
    assert len(files) >= 8
    assert all(read_metadata(folder.root / path) is not None for path in files)
    assert list(folder.root.rglob("*.tmp")) == []
    with closing(Library(folder)) as library:
        assert {row.path for row in library.newest(100)} == files
