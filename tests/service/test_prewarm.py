"""The hook against a real HTTP server on loopback that plays a service's part line by line."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
STARTING = {"ready": False, "phase": "starting", "progress": 0.0, "detail": "", "error": ""}
LOADING = {"ready": False, "phase": "loading", "progress": 0.35, "detail": "transformer 3 of 7 files", "error": ""}
READY = {"ready": True, "phase": "ready", "progress": 1.0, "detail": "ready after 12.3 s", "error": ""}
FAILED = {
    "ready": False, "phase": "failed", "progress": 0.35, "detail": "", "error": "No such folder: /models. Set it.",
}  # fmt: skip


@pytest.fixture(scope="module")
def prewarm() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prewarm", ROOT / "prewarm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Service(ThreadingHTTPServer):
    """Answers `POST /api/warmup` with the first state, and each `GET /telemetry` with the next of `streams`."""

    daemon_threads = False
    block_on_close = True

    def __init__(
        self, first: Any = STARTING, streams: list[list[bytes]] | None = None, *, status: int = 200, port: int = 0
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.first, self.streams, self.status = first, streams or [], status
        self.calls: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        self.server.calls.append(f"POST {self.path}")
        status, self.server.status = self.server.status, 200  # trouble is over after one call
        self._answer(status, "application/json", [json.dumps(self.server.first).encode()])

    def do_GET(self) -> None:
        self.server.calls.append(f"GET {self.path}")
        self._answer(200, "text/event-stream", self.server.streams.pop(0) if self.server.streams else [])

    def _answer(self, status: int, media_type: str, parts: list[bytes]) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.end_headers()
        for part in parts:
            self.wfile.write(part)
            self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def event(name: str, view: dict[str, Any]) -> bytes:
    return f"id: 1\nevent: {name}\ndata: {json.dumps(view)}\n\n".encode()


@contextmanager
def serving(service: Service) -> Iterator[Service]:
    thread = threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield service
    finally:
        service.shutdown()
        thread.join(10)
        service.server_close()


class Pauses:
    """Stands in for the pause between two tries: counts them, and lets a test act in one."""

    def __init__(self, act: Callable[[int], None] = lambda number: None) -> None:
        self.count = 0
        self._act = act

    def wait(self, _seconds: float) -> None:
        self.count += 1
        self._act(self.count)


def test_a_ready_service_is_told_at_once(prewarm: ModuleType, capsys: pytest.CaptureFixture[str]):
    with serving(Service(READY)) as service:
        assert prewarm.main(["--url", service.url + "/"]) == 0
    assert "100 %  ready: ready after 12.3 s" in capsys.readouterr().out
    assert service.calls == ["POST /api/warmup"]


def test_the_way_to_ready_is_printed_line_by_line(prewarm: ModuleType, capsys: pytest.CaptureFixture[str]):
    stream = [
        b"retry: 2000\n\n",
        event("readiness", STARTING),
        event("telemetry", {"gpus": []}),
        b": still here\n\n",
        event("readiness", LOADING) + event("readiness", LOADING),
        event("readiness", READY),
    ]
    with serving(Service(STARTING, [stream])) as service:
        assert prewarm.main(["--url", service.url]) == 0
    lines = [line.split(" s  ", 1)[1].strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"waiting for {service.url}",
        "0 %  starting",
        "35 %  loading: transformer 3 of 7 files",
        "100 %  ready: ready after 12.3 s",
    ]


def test_a_failed_warm_up_is_told_with_the_servers_reason(prewarm: ModuleType, capsys: pytest.CaptureFixture[str]):
    with serving(Service(STARTING, [[event("readiness", FAILED)]])) as service:
        assert prewarm.main(["--url", service.url]) == 1
    assert capsys.readouterr().err == "prewarm: failed: No such folder: /models. Set it.\n"


def test_it_waits_for_the_port_to_be_opened(
    prewarm: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    nobody = Service()
    nobody.server_close()  # the port is known, and nobody listens there
    with ExitStack() as stack:

        def open_at_the_third(number: int) -> None:
            if number == 3:
                stack.enter_context(serving(Service(READY, port=nobody.server_port)))

        pauses = Pauses(open_at_the_third)
        monkeypatch.setattr(prewarm, "_pause", pauses)
        assert prewarm.main(["--url", nobody.url]) == 0
    assert pauses.count == 3
    out = capsys.readouterr().out
    assert out.count("no answer yet") == 1, "the same reason is printed once"
    assert "Connection refused" in out


@pytest.mark.parametrize(
    "url",
    [
        "127.0.0.1:7860",
        "localhost:7860",
        "http://",
        "ftp://127.0.0.1",
        "http://127.0.0.1:many",
        "http://x:70000",
        "7860",
    ],
)
def test_what_is_no_address_is_told_at_once(prewarm: ModuleType, capsys: pytest.CaptureFixture[str], url: str):
    assert prewarm.main(["--url", url]) == 78
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"prewarm: --url is {url!r}; it must look like http://127.0.0.1:7860.\n"


def test_nobody_answers_in_time(prewarm: ModuleType, capsys: pytest.CaptureFixture[str]):
    nobody = Service()
    nobody.server_close()
    assert prewarm.main(["--url", nobody.url, "--timeout", "0.05"]) == 2
    assert "was not ready within 0.05 s" in capsys.readouterr().err


def test_a_service_that_talks_on_without_becoming_ready_is_left_at_the_deadline(prewarm: ModuleType):
    endless = [event("telemetry", {"gpus": []})] * 100_000
    with serving(Service(LOADING, [endless])) as service:
        assert prewarm.main(["--url", service.url, "--timeout", "0.2"]) == 2


def test_a_stream_that_breaks_is_opened_again(prewarm: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prewarm, "_pause", Pauses())
    streams = [[event("readiness", LOADING)], [event("readiness", LOADING), event("readiness", READY)]]
    with serving(Service(STARTING, streams)) as service:
        assert prewarm.main(["--url", service.url]) == 0
    assert service.calls == ["POST /api/warmup", "GET /telemetry"] * 2


def test_a_server_in_trouble_is_asked_again(prewarm: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prewarm, "_pause", Pauses())
    with serving(Service(READY, status=503)) as service:
        assert prewarm.main(["--url", service.url]) == 0
    assert service.calls == ["POST /api/warmup"] * 2


@pytest.mark.parametrize("status", [403, 404])
def test_another_program_on_the_port_is_named(prewarm: ModuleType, capsys: pytest.CaptureFixture[str], status: int):
    with serving(Service(status=status)) as service:
        assert prewarm.main(["--url", service.url]) == 1
    assert f"answered {status}" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [[1, 2], "hello", {"status": "ok"}])
def test_an_answer_that_is_no_readiness_is_shown(
    prewarm: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, answer: object
):
    now_s = [0.0]  # a clock that goes on only in the pause, so that a slow machine gets its answer too
    monkeypatch.setattr(prewarm, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(prewarm, "_pause", Pauses(lambda _: now_s.append(now_s.pop() + 60)))
    with serving(Service(answer)) as service:
        assert prewarm.main(["--url", service.url, "--timeout", "60"]) == 2
    assert "which is no readiness" in capsys.readouterr().out


def run_script(**environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "prewarm.py", "--timeout", "20"],
        env={**os.environ, **environment}, capture_output=True, text=True, cwd="/",
    )  # fmt: skip


def test_as_a_script_it_finds_the_service_by_its_settings_and_ignores_proxies():
    with serving(Service(READY)) as service:
        run = run_script(ZIMAGE_PORT=str(service.server_port), http_proxy="http://127.0.0.1:9")
    assert (run.returncode, run.stderr) == (0, "")
    assert f"waiting for {service.url}" in run.stdout


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("ZIMAGE_PORT", "many", "port"), ("ZIMAGE_PORT", "0", "--url"), ("ZIMAGE_PROT", "1", "There is no setting")],
)
def test_settings_that_cannot_be_used_are_told(name: str, value: str, said: str):
    run = run_script(**{name: value})
    assert run.returncode == 78
    assert said in run.stderr
    assert "Traceback" not in run.stderr


def test_it_loads_nothing_heavy():
    code = "import sys, prewarm; prewarm.service_url(); print('\\n'.join(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch", "gradio", "fastapi", "numpy", "PIL"} & set(run.stdout.split())


def test_an_ipv6_address_is_written_as_a_url(prewarm: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ZIMAGE_HOST", "::1")
    monkeypatch.setenv("ZIMAGE_PORT", "7000")
    assert prewarm.service_url() == "http://[::1]:7000"
