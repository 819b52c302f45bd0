"""The guard and the policy, as a real browser meets them: the page works, and other pages get nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.web.conftest import LiveServer, Serve, Studio

pytestmark = pytest.mark.browser

# Each is a page somewhere else that tries to reach the studio at TARGET; it writes what it got into the title.
ATTACKS = {
    "post": "await fetch(`${target}/v1/images/generations`, {method: 'POST', mode: 'no-cors', body})",
    "post_json": "await fetch(`${target}/v1/images/generations`, {method: 'POST', headers: json, body})",
    "beacon": "navigator.sendBeacon(`${target}/v1/images/generations`, body)",
    "read": "await (await fetch(`${target}/api/pictures`)).text()",
    "listen": "await loaded(new EventSource(`${target}/telemetry`), 'readiness')",
    "image": "const image = new Image(); image.src = `${target}/assets/favicon.svg`; await loaded(image, 'load')",
    "script": """
        const script = document.createElement('script');
        script.src = `${target}/assets/plotly.min.js`;
        document.body.append(script);
        await loaded(script, 'load')""",
}
BLIND = {"beacon"}  # sent without waiting for an answer: the sender does not even learn that it was refused
ATTACKING_PAGE = """<!doctype html><body><script type="module">
    const target = "TARGET", json = {"Content-Type": "application/json"}, body = '{"prompt": "x"}';
    const loaded = (source, name) => new Promise((resolve, reject) => {
        source.addEventListener(name, resolve);
        source.addEventListener("error", reject);
    });
    try { ATTACK; document.title = "done" } catch { document.title = "failed" }
</script>"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, "Chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def elsewhere(target: str) -> FastAPI:
    app = FastAPI()

    @app.get("/open")
    async def open_to_all() -> Response:
        return Response("reached", headers={"Access-Control-Allow-Origin": "*"})

    @app.get("/attack/{attack}")
    async def page(attack: str) -> HTMLResponse:
        return HTMLResponse(ATTACKING_PAGE.replace("ATTACK", ATTACKS[attack]).replace("TARGET", target))

    return app


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_page_from_elsewhere_gets_nothing_and_starts_nothing(
    browser: Browser, shared: Studio, serve: Serve, attack: str, host: str
) -> None:
    other: LiveServer
    before = shared.board.recent(5)
    with serve(elsewhere(shared.server.url)) as other:
        page = browser.new_page()
        statuses: list[int] = []
        page.on("response", lambda answer: statuses.append(answer.status) if _is_to(shared, answer.url) else None)
        page.goto(f"http://{host}:{other.port}/attack/{attack}")
        page.wait_for_function("document.title !== ''")
        title = page.title()
        page.close()

    assert title == ("done" if attack in BLIND else "failed")
    assert all(status == 403 for status in statuses)
    assert shared.board.active() == ()
    assert shared.board.recent(5) == before


def _is_to(shared: Studio, url: str) -> bool:
    return url.startswith(shared.server.url)


def test_the_pages_own_scripts_may_do_all_of_it_but_leave(browser: Browser, shared: Studio, serve: Serve) -> None:
    with serve(elsewhere(shared.server.url)) as other:
        page = browser.new_page()
        page.goto(f"{shared.server.url}/livez")
        answer: dict[str, Any] = page.evaluate(
            """async (elsewhere) => {
                const body = JSON.stringify({prompt: "a fox", response_format: "url"});
                const headers = {"Content-Type": "application/json"};
                const made = await (await fetch("/v1/images/generations", {method: "POST", headers, body})).json();
                const image = new Image();
                image.src = made.data[0].url;
                await image.decode();
                const stream = new EventSource("/telemetry");
                const heard = await new Promise((done) => stream.addEventListener("telemetry", done));
                stream.close();
                const left = await fetch(elsewhere).then((answer) => answer.text(), () => "blocked");
                return {width: image.naturalWidth, gpus: JSON.parse(heard.data).gpus.length, left};
            }""",
            f"{other.url}/open",
        )
        page.close()

    assert answer == {"width": 384, "gpus": 1, "left": "blocked"}
