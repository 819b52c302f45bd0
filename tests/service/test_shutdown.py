"""Faults 30 and 31: told to stop, the process keeps its pictures, answers its callers, ends with 0; twice, soon."""

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


def ask(program: Program, **fields: object) -> http.client.HTTPConnection:
    """Ask for pictures and do not wait for the answer."""
    connection = program.connect()
    body = json.dumps({"prompt": "a boat", **fields})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    return connection


def wait_for_phase(connection: http.client.HTTPConnection, phase: str) -> None:
    """Read the stream until a job is in this phase."""
    connection.request("GET", "/telemetry")
    for line in connection.getresponse():
        if line.startswith(b"data:") and json.loads(line.removeprefix(b"data:")).get("phase") == phase:
            return
    pytest.fail(f"the stream ended before a job was {phase}")


def test_pictures_that_are_being_saved_when_it_is_told_to_stop_are_kept(program: Program, tmp_path: Path):
    with ExitStack() as stack:
        for number in range(3):
            asked = ask(program, n=8, size="1024x1024", seed=100 * number, num_inference_steps=1)
            stack.enter_context(closing(asked))
        wait_for_phase(stack.enter_context(closing(program.connect())), "saving")
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


def answer(connection: http.client.HTTPConnection) -> tuple[int, str]:
    response = connection.getresponse()
    return response.status, json.load(response)["error"]["message"]


def wait_for_log(program: Program, text: str) -> str:
    """Read the log until `text` is in it; what was read."""
    assert program.process.stderr is not None
    read = ""
    while text not in read:
        line = program.process.stderr.readline()
        assert line, f"the log ended: {read}"
        read += line
    return read


def test_callers_are_answered_and_the_running_picture_is_kept(program: Program, tmp_path: Path):
    with ExitStack() as stack:
        running = stack.enter_context(closing(ask(program, num_inference_steps=60)))  # the fake takes 7 s for it
        wait_for_phase(stack.enter_context(closing(program.connect())), "running")
        waiting = stack.enter_context(closing(ask(program, num_inference_steps=60)))
        wait_for_phase(stack.enter_context(closing(program.connect())), "queued")
        program.process.send_signal(signal.SIGTERM)
        answers = [answer(running), answer(waiting)]
        _, log = program.process.communicate(timeout=DEADLINE_S)
    assert program.process.returncode == 0, log
    assert [status for status, _ in answers] == [503, 503]
    assert "still being finished" in answers[0][1]
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert len(list(OutputFolder(tmp_path / "outputs").pictures())) == 1


@pytest.mark.parametrize("when", ["at once", "after the port is closed"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_cancels_the_running_picture(program: Program, tmp_path: Path, when: str, number: signal.Signals):
    with ExitStack() as stack:
        running = stack.enter_context(closing(ask(program, num_inference_steps=100)))  # the fake takes 12 s for it
        wait_for_phase(stack.enter_context(closing(program.connect())), "running")
        program.process.send_signal(number)
        log = wait_for_log(program, "ask once more to cancel it")
        if when == "after the port is closed":
            assert answer(running)[0] == 503
        program.process.send_signal(number)
        log += wait_for_log(program, "the running picture is cancelled")
        log += program.process.communicate(timeout=DEADLINE_S)[1]
    assert program.process.returncode == 0, log
    assert "Traceback" not in log
    assert list(OutputFolder(tmp_path / "outputs").pictures()) == []


def test_a_picture_that_could_not_be_saved_in_the_end_is_told_by_the_exit_code(program: Program, tmp_path: Path):
    with closing(ask(program, num_inference_steps=1)) as connection:
        assert connection.getresponse().status == 200
    (day,) = (tmp_path / "outputs").glob("2*")
    day.rename(day.with_name("moved"))
    day.write_text("in the way")
    with closing(ask(program, num_inference_steps=1)) as connection:
        assert connection.getresponse().status == 507
    program.process.send_signal(signal.SIGTERM)
    _, log = program.process.communicate(timeout=DEADLINE_S)
    assert program.process.returncode == 70
    assert "stopped with pictures that could not be saved" in log
    assert "Traceback" not in log
