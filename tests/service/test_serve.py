"""The whole program as a process: started, asked, stopped."""

import http.client
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
DEADLINE_S = 90

pytestmark = pytest.mark.service


class Program:
    """`python app.py` in a folder of its own, on a free port; its printed address is the event to wait for."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
        defaults = {"ZIMAGE_MODEL": "fake", "ZIMAGE_PORT": "0"}
        self.started_at_s = time.monotonic()
        self._log = folder / "stderr.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "app.py"), *arguments],
                env={**clean, **defaults, **environment},
                cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for_address(self) -> None:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.fullmatch(r"zimage-ui is at http://127\.0\.0\.1:(\d+)\n", line)
        assert found, f"{line!r}\n{self.log}"
        self.port = int(found[1])

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def generate(self, asked: dict) -> dict:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            body = json.dumps({"response_format": "url", **asked})
            connection.request("POST", "/v1/images/generations", body, {"content-type": "application/json"})
            return json.load(connection.getresponse())
        finally:
            connection.close()

    def readiness(self) -> Iterator[dict]:
        """Each readiness that the stream tells, until it ends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", "/telemetry")
            answer, event = connection.getresponse(), b""
            for line in answer:
                if line.startswith(b"event:"):
                    event = line.removeprefix(b"event:").strip()
                elif line.startswith(b"data:") and event == b"readiness":
                    yield json.loads(line.removeprefix(b"data:"))
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        for readiness in self.readiness():
            assert readiness["phase"] != "failed", readiness
            if readiness["ready"]:
                return

    def stop(self, sent: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(sent)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def starter(*arguments: str, **environment: str) -> Program:
        folder = tmp_path / str(len(programs))
        folder.mkdir()
        programs.append(Program(folder, *arguments, **environment))
        return programs[-1]

    yield starter
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
            program.process.wait()
        assert program.process.stdout is not None
        program.process.stdout.close()


@pytest.fixture
def start_again(start: Callable[..., Program]) -> Callable[..., Program]:
    """Starts it a second time: the promised times are of files in the page cache, as `bench.startup` measures them."""

    def starter(**environment: str) -> Program:
        first = start(**environment)
        first.wait_for_address()
        first.wait_until_ready()
        first.stop()
        return start(**environment)

    return starter


def test_the_port_answers_within_5_s_and_the_page_within_6(start_again):
    program = start_again()
    program.wait_for_address()
    assert program.get("/livez") == (200, b'{"live":true}')
    assert time.monotonic() - program.started_at_s <= 5
    status, page = program.get("/")
    assert status == 200
    assert b"/assets/studio.js" in page
    assert time.monotonic() - program.started_at_s <= 6


def test_it_says_ready_when_it_is_and_stops_cleanly_with_a_page_open(start):
    program = start()
    program.wait_for_address()
    stream = program.readiness()
    for readiness in stream:
        if readiness["ready"]:
            break
    assert program.get("/readyz")[0] == 200
    assert program.stop() == 0
    assert list(stream) == []
    assert "Traceback" not in program.log


@pytest.mark.model
def test_the_bundled_model_is_ready_within_20_s_and_accounts_for_its_time(start_again):
    program = start_again(ZIMAGE_MODEL="auto", CUDA_VISIBLE_DEVICES="")
    program.wait_for_address()
    program.wait_until_ready()
    assert time.monotonic() - program.started_at_s <= 20
    answers = [program.generate({"prompt": "a red boat", "seed": seed}) for seed in range(5)]
    assert [(answer["seed"], answer["nfe"], answer["untrained"]) for answer in answers] == [
        (seed, 8, False) for seed in range(5)
    ]
    assert {answer["model"] for answer in answers} == {"Z-Image mini"}
    assert "untrained" not in program.log
    assert [answer["embedding_cache_hit"] for answer in answers] == [False, True, True, True, True]
    shares = [answer["timings_ms"]["other"] / answer["timings_ms"]["total"] for answer in answers]
    assert statistics.median(shares) < 0.01
    assert program.stop() == 0


@pytest.mark.model
def test_a_model_that_cannot_be_loaded_is_told_by_readyz_and_then_by_the_exit_code(start):
    program = start(ZIMAGE_MODEL="./no/such/folder")
    program.wait_for_address()
    last = {}
    for last in program.readiness():
        if last["phase"] == "failed":
            break
    assert "no/such/folder" in last["error"]
    assert program.get("/livez")[0] == 200
    assert program.get("/readyz")[0] == 503
    assert program.process.wait(DEADLINE_S) == 70
    assert "no/such/folder" in program.log


def test_a_taken_port_is_told_and_no_other_is_tried(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        program = start("--port", str(port))
        assert program.process.wait(DEADLINE_S) == 78
    assert f"127.0.0.1:{port} cannot be listened on" in program.log
    assert "Traceback" not in program.log


START_BESIDE_ANOTHER = """
import sys
from zimage_ui import cli, runtime

really_bind, others = runtime.bind, []

def bind(host, port):
    mine = really_bind(host, port)
    others.append(really_bind(*mine.getsockname()))
    others[0].listen()
    return mine

runtime.bind = bind
sys.exit(cli.main(["serve", "--model", "fake", "--port", "0"]))
"""


def test_of_two_that_start_at_once_the_second_is_told_too(tmp_path):
    """Both may bind the port; who listens first has it."""
    run = subprocess.run(
        [sys.executable, "-c", START_BESIDE_ANOTHER], capture_output=True, text=True, cwd=tmp_path, timeout=DEADLINE_S
    )
    assert run.returncode == 78, run.stderr
    assert "cannot be listened on: Address already in use" in run.stderr
    assert "Traceback" not in run.stderr


def test_an_output_folder_that_cannot_be_used_is_told(start):
    program = start(ZIMAGE_OUTPUT_DIR="/proc/nowhere")
    assert program.process.wait(DEADLINE_S) == 78
    assert "/proc/nowhere" in program.log
    assert "Traceback" not in program.log


def test_an_interrupt_stops_it_too(start):
    program = start()
    program.wait_for_address()
    assert program.stop(signal.SIGINT) == 0
