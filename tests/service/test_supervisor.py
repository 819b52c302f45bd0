"""A real supervisord runs the very configuration that is shipped, until ready, failed, and stopped."""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from configparser import RawConfigParser
from pathlib import Path
from typing import Any

import pytest

from zimage_ui import runtime
from zimage_ui.jobs.service import CANCEL_GRACE_S, MIN_SAVER_DRAIN_S

ROOT = Path(__file__).parent.parent.parent
BIN = Path(sys.prefix) / "bin"
DEADLINE_S = 120.0

pytestmark = pytest.mark.timeout(4 * DEADLINE_S)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Supervisor:
    """supervisord in the foreground, in a folder laid out like a checkout; its log lines are the events to wait for."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.port = folder, free_port()
        shutil.copytree(ROOT / "supervisor", folder / "supervisor")
        shutil.copy(ROOT / "prewarm.py", folder)
        (folder / ".venv").symlink_to(sys.prefix)
        self.conf = folder / "supervisor" / "supervisord.conf"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ZIMAGE_")}
        self._process = subprocess.Popen(
            [BIN / "supervisord", "-n", "-c", self.conf],
            env={**clean, "ZIMAGE_PORT": str(self.port), **environment},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
        )  # fmt: skip
        self.log: list[str] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first log line from here on that matches."""
        deadline_s = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline_s:
            try:
                self.log.append(self._lines.get(timeout=max(0.0, deadline_s - time.monotonic())))
            except queue.Empty:
                break
            if found := re.search(pattern, self.log[-1]):
                return found
            if "gave up" in self.log[-1]:
                break
        pytest.fail(f"no {pattern!r} within {DEADLINE_S:g} s:\n{''.join(self.log)}\n{self.program_log('zimage-ui')}")

    def control(self, *arguments: str) -> str:
        command = [BIN / "supervisorctl", "-c", self.conf, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S).stdout

    def program_log(self, name: str) -> str:
        path = self.folder / "supervisor" / "run" / f"{name}.log"
        return path.read_text() if path.is_file() else ""

    def get(self, path: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def shut_down(self) -> int:
        """Stop supervisord, and with it all programs; its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
        status = self._process.wait(DEADLINE_S)
        self._reader.join(10)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return status


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: the name of a Unix socket has room for about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="zu-", dir="/tmp") as name:
        yield Path(name)


def supervise(folder: Path, **environment: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(folder, **environment)
    try:
        yield supervisor
    finally:
        supervisor.shut_down()


@pytest.fixture
def supervisor(folder: Path) -> Iterator[Supervisor]:
    yield from supervise(folder, ZIMAGE_MODEL="fake")


@pytest.fixture
def broken(folder: Path) -> Iterator[Supervisor]:
    yield from supervise(folder, ZIMAGE_MODEL=str(folder / "no-such-model"))


@pytest.fixture
def with_model(folder: Path) -> Iterator[Supervisor]:
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    yield from supervise(folder, ZIMAGE_MODEL=str(build_untrained_model(folder / "model", TINY)))


def make_a_picture(port: int) -> dict[str, Any]:
    body = json.dumps({"prompt": "a boat", "size": "256x256", "seed": 7}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/images/generations", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        made: dict[str, Any] = json.loads(answer.read())
        return made


def wait_until_ready(supervisor: Supervisor) -> None:
    assert supervisor.wait_for(r"exited: zimage-ui-prewarm \(exit status (\d+)")[1] == "0"
    assert "100 %  ready: ready after" in supervisor.program_log("prewarm")
    assert supervisor.get("/livez") == (200, {"live": True})
    status, readiness = supervisor.get("/readyz")
    assert (status, readiness["ready"], readiness["progress"]) == (200, True, 1.0)


def stop(supervisor: Supervisor) -> str:
    """Stop the program and see that nothing of its process group is left; how it ended."""
    pid = int(supervisor.control("pid", "zimage-ui"))
    supervisor.control("stop", "zimage-ui")
    ended = supervisor.wait_for(r"stopped: zimage-ui \((.*)\)")[1]
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    return ended


@pytest.mark.service
def test_it_runs_until_ready_and_stops_cleanly(supervisor: Supervisor):
    wait_until_ready(supervisor)
    # Starting it is called for as long as a warm-up may take: a failure in that time is a failed start.
    assert re.search(r"zimage-ui\s+STARTING", supervisor.control("status"))
    assert stop(supervisor) == "exit status 0"
    assert supervisor.shut_down() == 0


@pytest.mark.service
@pytest.mark.model
def test_so_does_a_real_model_after_it_made_a_picture(with_model: Supervisor):
    wait_until_ready(with_model)
    assert make_a_picture(with_model.port)["seed"] == 7
    assert len(list((with_model.folder / "outputs").glob("*/*.png"))) == 1
    assert stop(with_model) == "exit status 0"
    assert with_model.shut_down() == 0


@pytest.mark.service
@pytest.mark.model
def test_a_model_that_cannot_be_loaded_ends_in_a_clear_log_and_fatal(broken: Supervisor):
    """Faults 41 and 42: the hook says why, the service is asked and answers, then leaves, twice at most."""
    assert broken.wait_for(r"exited: zimage-ui-prewarm \(exit status (\d+)")[1] == "1"
    assert "no-such-model" in broken.program_log("prewarm")
    assert broken.get("/livez") == (200, {"live": True})
    status, readiness = broken.get("/readyz")
    assert (status, readiness["phase"]) == (503, "failed")
    assert "no-such-model" in readiness["error"]

    assert broken.wait_for(r"exited: zimage-ui \(exit status (\d+)")[1] == str(runtime.EXIT_SOFTWARE)
    broken.wait_for(r"gave up: zimage-ui entered FATAL state")
    assert re.search(r"zimage-ui\s+FATAL", broken.control("status"))
    assert "no-such-model" in broken.program_log("zimage-ui")
    assert "Traceback" not in broken.program_log("zimage-ui")


def programs() -> RawConfigParser:
    parser = RawConfigParser(inline_comment_prefixes=(" ;",))
    parser.read(ROOT / "supervisor" / "zimage-ui.conf")
    return parser


def unit() -> RawConfigParser:
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(ROOT / "supervisor" / "zimage-ui.service")
    return parser


def test_the_time_to_stop_covers_all_that_a_stop_may_take():
    stop_s = runtime.GRACE_S + runtime.DRAIN_S + CANCEL_GRACE_S + MIN_SAVER_DRAIN_S + runtime.DRAIN_S
    assert programs().getint("program:zimage-ui", "stopwaitsecs") > stop_s
    assert unit().getint("Service", "TimeoutStopSec") > stop_s


def test_a_start_lasts_longer_than_the_hook_waits():
    hook_s = int(programs().get("program:zimage-ui-prewarm", "command").split()[-1])
    assert programs().getint("program:zimage-ui", "startsecs") >= hook_s
    assert unit().getint("Service", "TimeoutStartSec") > int(unit().get("Service", "ExecStartPost").split()[-1])


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path):
    text = (ROOT / "supervisor" / "zimage-ui.service").read_text()
    installed = text.replace("/opt/zimage-ui/.venv", sys.prefix).replace("/opt/zimage-ui", str(ROOT))
    copy = tmp_path / "zimage-ui.service"
    copy.write_text(installed)
    run = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout + run.stderr) == (0, "")
