"""The whole application with a page mounted: what Gradio's own routes let through, and what not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.request import GenerationRequest
from zimage_ui.ui.page import build_page

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

MIB = 2**20


@pytest.fixture(scope="module")
def mounted(run_studio: StudioMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A studio with the page as it is shipped."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with run_studio(tmp_path_factory.mktemp("mounted"), page=build_page) as studio:
        studio.wait_until_ready()
        yield studio


def test_the_page_is_served_beside_our_own_routes(mounted: Studio) -> None:
    page = mounted.client.get("/")
    assert page.status_code == 200
    assert "gradio_config" in page.text
    assert "plotly.min.js" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert mounted.client.get("/livez").json() == {"live": True}
    assert mounted.client.get("/assets/plotly.min.js").status_code == 200


def test_the_pages_own_assets_stay_reachable_under_the_same_folder(mounted: Studio) -> None:
    import re

    (script, *_) = re.findall(r'src="[./]*(/?assets/[^"]+\.js)"', mounted.client.get("/").text)
    response = mounted.client.get("/" + script.lstrip("/"))

    assert response.status_code == 200
    assert "javascript" in response.headers["content-type"]


def test_the_page_asks_for_no_documentation_links_or_recordings(mounted: Studio) -> None:
    config = mounted.client.get("/config").json()

    assert config["footer_links"] == []
    assert not config.get("run_history")
    assert config["analytics_enabled"] is False
    for path in ("/docs", "/redoc", "/openapi.json", "/monitoring", "/monitoring/summary"):
        assert mounted.client.get(path).status_code == 404, path


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/queue/join",
        "/gradio_api/queue/data?session_hash=x",
        "/gradio_api/call/ask",
        "/gradio_api/call/v2/ask",
        "/gradio_api/openapi.json",
        "/gradio_api/api/predict",
        "/gradio_api/api/ask",
    ],
)
def test_gradios_queue_and_its_other_ways_in_are_closed(mounted: Studio, path: str) -> None:
    body = {"data": [], "fn_index": 0, "session_hash": "x"}

    for response in (mounted.client.post(path, json=body), mounted.client.get(path)):
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "not_found"


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/run/predict", "/v1/images/generations"])
@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}])
def test_the_pages_routes_are_guarded_like_ours(mounted: Studio, path: str, headers: dict[str, str]) -> None:
    before = mounted.board.recent(500)

    response = mounted.client.post(path, json={"data": ["x"], "fn_index": 0, "session_hash": "y"}, headers=headers)

    assert response.status_code == 403
    assert not any(name.startswith("access-control") for name in response.headers)
    assert (mounted.board.recent(500), mounted.board.active()) == (before, ())


def test_a_preflight_from_elsewhere_gets_no_permission(mounted: Studio) -> None:
    headers = {"Origin": "http://127.0.0.1:1", "Access-Control-Request-Method": "POST"}

    response = mounted.client.options("/gradio_api/queue/join", headers=headers)

    assert response.status_code == 403
    assert not any(name.startswith("access-control") for name in response.headers)


def test_a_body_too_long_for_the_page_is_refused(mounted: Studio) -> None:
    body = {"data": ["x" * 2 * MIB], "fn_index": 0, "session_hash": "z"}

    assert mounted.client.post("/gradio_api/run/predict", json=body).status_code == 413


def test_uploads_are_refused_and_leave_nothing_on_disk(mounted: Studio) -> None:
    folder = Path(os.environ.get("GRADIO_TEMP_DIR", "/tmp/gradio"))
    before = sorted(folder.rglob("*")) if folder.exists() else []

    def upload(size_bytes: int) -> int:
        files = {"files": ("x.png", bytes(size_bytes), "image/png")}
        return httpx.post(f"{mounted.server.url}/gradio_api/upload", files=files, timeout=30).status_code

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(upload, [2 * MIB] * 10)) == {413}
    assert upload(100) == 404
    assert (sorted(folder.rglob("*")) if folder.exists() else []) == before


def outside_files(mounted: Studio) -> list[str]:
    output = mounted.services.settings.output_dir
    return [
        "/etc/passwd",
        str(output / ".zimage" / "library.sqlite3"),
        str(Path(__file__).parents[2] / "pyproject.toml"),
        str(Path(__file__).parents[2] / ".env"),
        "../../../../etc/passwd",
        "http://127.0.0.1:1/x",
        "http://169.254.169.254/latest/meta-data",
    ]


def test_files_of_the_machine_are_not_served(mounted: Studio) -> None:
    for path in outside_files(mounted):
        for address in (f"/gradio_api/file={path}", f"/gradio_api/file/{path}", f"/file={path}"):
            response = mounted.client.get(address)
            assert response.status_code in {400, 403, 404}, address
            assert "root:" not in response.text


def test_other_machines_are_not_called(mounted: Studio) -> None:
    for url in ("http://127.0.0.1:1/", "https://example.com/", "https://x.hf.space/"):
        assert mounted.client.get(f"/gradio_api/proxy={url}").status_code == 404


def test_our_prefixes_are_ours_alone(mounted: Studio) -> None:
    for path in ("/v1/nothing", "/api/nothing", "/pictures/nothing"):
        assert mounted.client.get(path).json()["error"]["type"] == "invalid_request_error"


def test_open_pages_do_not_hold_up_the_shutdown(tmp_path: Path, run_studio: StudioMaker) -> None:
    import time

    with run_studio(tmp_path, page=build_page) as studio, httpx.Client(timeout=30) as client:
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
