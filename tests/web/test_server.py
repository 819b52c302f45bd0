"""The whole application with a page mounted: what Gradio's own routes let through, and what not."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.request import GenerationRequest

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

MIB = 2**20


@dataclass(frozen=True)
class SmallPage:
    """A page with one queued event, one unqueued one, and a picture, as the real one has them."""

    blocks: Any
    theme: Any = None
    css: str | None = "body { color: black }"
    head: str | None = '<script src="/assets/plotly.min.js"></script>'
    js: str | None = None


def small_page(calls: list[str]) -> SmallPage:
    return asyncio.run(build_small_page(calls))


async def build_small_page(calls: list[str]) -> SmallPage:
    """A coroutine because Gradio, outside of an event loop, makes one and never closes it."""
    import gradio as gr

    def generate(prompt: str) -> str:
        calls.append(prompt)
        return f"made {prompt}"

    def show(picture: Any) -> str:
        calls.append(str(picture))
        return "shown"

    with gr.Blocks(analytics_enabled=False) as blocks:
        prompt, answer = gr.Textbox(), gr.Textbox()
        picture = gr.Image(type="filepath")
        gr.Button().click(generate, prompt, answer, api_name="generate")
        gr.Button().click(show, picture, answer, api_name="show")
    blocks.queue(api_open=False)
    return SmallPage(blocks)


@dataclass
class Mounted:
    """A studio with the small page, and what its handlers were called with."""

    studio: Studio
    calls: list[str]

    @property
    def client(self) -> httpx.Client:
        return self.studio.client


@pytest.fixture(scope="module")
def mounted(run_studio: StudioMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    calls: list[str] = []
    with run_studio(tmp_path_factory.mktemp("mounted"), page=small_page(calls)) as studio:
        studio.wait_until_ready()
        yield Mounted(studio, calls)


def function_of(mounted: Mounted, api_name: str) -> int:
    config = mounted.client.get("/config").json()
    return next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == api_name)


def join(mounted: Mounted, api_name: str, data: list[Any], session: str = "abc") -> dict[str, Any]:
    """Go the way of the page: join the queue, and follow it to the end."""
    body = {"data": data, "fn_index": function_of(mounted, api_name), "session_hash": session}
    joined = mounted.client.post("/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with mounted.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as response:
        for line in response.iter_lines():
            message = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                output: dict[str, Any] = message
                return output
    raise AssertionError("the queue closed without an answer")


def test_the_page_is_served_beside_our_own_routes(mounted: Mounted) -> None:
    page = mounted.client.get("/")
    assert page.status_code == 200
    assert "gradio_config" in page.text
    assert "plotly.min.js" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert mounted.client.get("/livez").json() == {"live": True}
    assert mounted.client.get("/assets/plotly.min.js").status_code == 200


def test_the_pages_own_assets_stay_reachable_under_the_same_folder(mounted: Mounted) -> None:
    import re

    (script, *_) = re.findall(r'src="[./]*(/?assets/[^"]+\.js)"', mounted.client.get("/").text)
    response = mounted.client.get("/" + script.lstrip("/"))

    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]


def test_the_page_asks_for_no_documentation_links_or_recordings(mounted: Mounted) -> None:
    config = mounted.client.get("/config").json()

    assert config["footer_links"] == []
    assert not config.get("run_history")
    assert config["analytics_enabled"] is False
    for path in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary"):
        assert mounted.client.get(path).status_code == 404, path


def test_the_queue_of_the_page_works(mounted: Mounted) -> None:
    assert join(mounted, "generate", ["a fox"])["output"]["data"] == ["made a fox"]


@pytest.mark.parametrize("path", ["/gradio_api/run/generate", "/gradio_api/run/predict", "/gradio_api/api/generate"])
def test_the_queue_cannot_be_gone_around(mounted: Mounted, path: str) -> None:
    before = list(mounted.calls)
    body = {"data": ["around"], "fn_index": function_of(mounted, "generate"), "session_hash": "x"}

    assert mounted.client.post(path, json=body).status_code == 404
    assert mounted.calls == before


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/call/generate", "/gradio_api/run/generate"])
@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_the_pages_routes_are_guarded_like_ours(mounted: Mounted, path: str, headers: dict[str, str]) -> None:
    before = list(mounted.calls)

    response = mounted.client.post(path, json={"data": ["x"], "fn_index": 0, "session_hash": "y"}, headers=headers)

    assert response.status_code == 403
    assert not any(name.startswith("access-control") for name in response.headers)
    assert mounted.calls == before


def test_a_preflight_from_elsewhere_gets_no_permission(mounted: Mounted) -> None:
    headers = {"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "POST"}

    response = mounted.client.options("/gradio_api/queue/join", headers=headers)

    assert response.status_code == 403
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_body_too_long_for_the_queue_is_refused(mounted: Mounted) -> None:
    body = {"data": ["x" * 2 * MIB], "fn_index": 0, "session_hash": "z"}

    assert mounted.client.post("/gradio_api/queue/join", json=body).status_code == 413


def test_uploads_are_refused_and_leave_nothing_on_disk(mounted: Mounted) -> None:
    folder = Path(os.environ.get("GRADIO_TEMP_DIR", "/tmp/gradio"))
    before = sorted(folder.rglob("*")) if folder.exists() else []

    def upload(size_bytes: int) -> int:
        files = {"files": ("x.png", bytes(size_bytes), "image/png")}
        return httpx.post(f"{mounted.studio.server.url}/gradio_api/upload", files=files, timeout=30).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(upload, [2 * MIB] * 10)) == {413}
    assert upload(100) == 404
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before


def outside_files(mounted: Mounted) -> list[str]:
    output = mounted.studio.services.settings.output_dir
    return [
        "/etc/passwd",
        str(output / ".zimage" / "library.sqlite3"),
        str(Path(__file__).parents[2] / "pyproject.toml"),
        str(Path(__file__).parents[2] / ".env"),
        "../../../../etc/passwd",
        "http://127.0.0.1:1/x",
        "http://169.254.169.254/latest/meta-data",
    ]


def test_files_of_the_machine_are_not_served(mounted: Mounted) -> None:
    for path in outside_files(mounted):
        for address in (f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/file={path}"):
            response = mounted.client.get(address)
            assert response.status_code in {400, 403, 404}, address
            assert "root:" not in response.text


def test_files_of_the_machine_are_not_taken_as_pictures(mounted: Mounted) -> None:
    before = list(mounted.calls)
    for path in outside_files(mounted):
        data = {"path": path, "meta": {"_type": "gradio.FileData"}}
        outcome = join(mounted, "show", [data], session=f"files{abs(hash(path))}")
        assert outcome["success"] is False, path
    assert mounted.calls == before


def test_other_machines_are_not_called(mounted: Mounted) -> None:
    for url in ("http://127.0.0.1:1/", "https://example.com/", "https://x.hf.space/"):
        assert mounted.client.get(f"/gradio_api/proxy={url}").status_code == 404


def test_our_prefixes_are_ours_alone(mounted: Mounted) -> None:
    for path in ("/v1/nothing", "/api/nothing", "/pictures/nothing"):
        assert mounted.client.get(path).json()["error"]["type"] == "invalid_request_error"


def test_open_pages_do_not_hold_up_the_shutdown(tmp_path: Path, run_studio: StudioMaker) -> None:
    import time

    with run_studio(tmp_path, page=small_page([])) as studio, httpx.Client(timeout=30) as client:
        heard = threading.Event()

        def listen() -> None:
            with client.stream("GET", f"{studio.server.url}/telemetry") as response:
                for _ in response.iter_lines():
                    heard.set()

        listener = threading.Thread(target=listen)
        listener.start()
        assert heard.wait(10)
        begun_s = time.monotonic()
        studio.server.stop()
        assert time.monotonic() - begun_s < 3
        listener.join(10)
        assert not listener.is_alive()


def test_an_api_alone_has_no_page(studio: Studio) -> None:
    response = studio.client.get("/")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_unexpected_errors_are_logged_and_told_by_number(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(type(studio.services.library), "newest", broken)

    response = studio.client.get("/api/pictures")

    assert response.status_code == 500
    message = response.json()["error"]["message"]
    assert "secret" not in response.text
    number = message.split("(error ")[1].split(")")[0]
    assert any(number in record.getMessage() for record in caplog.records)


def test_errors_of_the_tree_are_answered_wherever_they_come_from(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator) as studio:
        studio.wait_until_ready()
        job = studio.services.jobs.submit(GenerationRequest(prompt="a fox", width=64, height=64))
        assert studio.client.post(f"/api/jobs/{job.job_id}/cancel").json()["cancelled"]


def test_the_room_loads_neither_gradio_nor_torch() -> None:
    code = (
        "import sys, zimage_ui.web.server; heavy = {'gradio', 'torch', 'diffusers', 'plotly', 'pynvml'};"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""
