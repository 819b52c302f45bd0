from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from zimage_ui.web.guard import MAX_BODY_BYTES, SECURITY_HEADERS, Guard, Refusal

if TYPE_CHECKING:
    from tests.web.conftest import LiveServer, Serve

MIB = 2**20


def make_app() -> FastAPI:
    """What is guarded: an echo that reads bodies in each of the ways that an application may."""
    app = FastAPI()

    @app.api_route("/echo", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
    async def echo(request: Request) -> dict[str, int]:
        return {"received": len(await request.body())}

    @app.post("/json")
    def parsed(body: dict[str, Any]) -> dict[str, int]:
        return {"keys": len(body)}

    @app.post("/stream")
    async def streamed(request: Request) -> dict[str, int]:
        return {"received": sum([len(chunk) async for chunk in request.stream()])}

    @app.get("/forgetful")
    async def forgetful() -> StreamingResponse:
        async def numbers() -> Any:
            for number in range(3):
                yield f"data: {number}\n\n"

        headers = {"Access-Control-Allow-Origin": "*", "X-Frame-Options": "DENY"}
        return StreamingResponse(numbers(), media_type="text/event-stream", headers=headers)

    return app


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[LiveServer]:
    with serve(Guard(make_app(), hosts=("studio.internal",), closed_paths=("/closed",))) as server:
        yield server


@pytest.fixture
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


def code_of(response: httpx.Response) -> str:
    code: str = response.json()["error"]["code"]
    return code


def test_programs_that_are_not_browsers_are_let_in(client: httpx.Client) -> None:
    assert client.get("/echo").json() == {"received": 0}
    assert client.post("/echo", content=b"12345").json() == {"received": 5}


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:{port}",
        "localhost:{port}",
        "LOCALHOST",
        "[::1]:{port}",
        "localhost:9999",
        "studio.internal",
    ],
)
def test_this_machines_own_names_are_let_in(client: httpx.Client, server: LiveServer, host: str) -> None:
    assert client.get("/echo", headers={"Host": host.format(port=server.port)}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example:{port}",
        "localhost@evil.example",
        "192.168.0.7:{port}",
        "0.0.0.0:{port}",
        "[::2]",
        "localhost:port",
        "localhost/../",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_rebound_host_name_is_refused(client: httpx.Client, server: LiveServer, method: str, host: str) -> None:
    response = client.request(method, "/echo", headers={"Host": host.format(port=server.port)})

    assert response.status_code == 403
    assert code_of(response) == "foreign_host"


def test_a_call_without_a_host_is_refused(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(b"GET /echo HTTP/1.0\r\n\r\n")
        assert b" 403 " in connection.recv(100)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
def test_the_pages_own_origin_is_let_in(client: httpx.Client, server: LiveServer, method: str, host: str) -> None:
    own = f"{host}:{server.port}"
    headers = {"Host": own, "Origin": f"http://{own}", "Sec-Fetch-Site": "same-origin"}

    assert client.request(method, "/echo", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "http://127.0.0.1.evil.example:{port}",
        "http://127.0.0.1:{port}.evil.example",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "http://localhost:{port}",
        "http://user@127.0.0.1:{port}",
        "http://127.0.0.1:{port}/path",
        "file://127.0.0.1:{port}",
        "chrome-extension://abcdef",
        "null",
        "",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_foreign_origins_are_refused_and_given_no_permission(
    client: httpx.Client, server: LiveServer, method: str, origin: str
) -> None:
    headers = {"Origin": origin.format(port=server.port), "Access-Control-Request-Method": "POST"}

    response = client.request(method, "/echo", headers=headers)

    assert response.status_code == 403
    assert code_of(response) == "foreign_origin"
    assert not any(name.lower().startswith("access-control") for name in response.headers)


def test_default_ports_may_be_left_out(client: httpx.Client) -> None:
    for host, origin in (
        ("localhost", "http://localhost:80"),
        ("localhost", "https://localhost:443"),
        ("localhost:80", "http://localhost"),
    ):
        assert client.post("/echo", headers={"Host": host, "Origin": origin}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_what_the_browser_calls_another_site_is_refused(client: httpx.Client, method: str, site: str) -> None:
    response = client.request(method, "/echo", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"})

    assert response.status_code == 403
    assert code_of(response) == "foreign_origin"


def test_a_link_from_elsewhere_may_be_followed_but_not_framed(client: httpx.Client) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}

    assert client.get("/echo", headers=link).status_code == 200
    assert client.post("/echo", headers=link).status_code == 403
    assert client.get("/echo", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403


@pytest.mark.parametrize("path", ["/echo", "/stream"])
def test_a_body_of_the_greatest_length_passes(client: httpx.Client, path: str) -> None:
    assert client.post(path, content=bytes(MAX_BODY_BYTES)).json() == {"received": MAX_BODY_BYTES}


def chunks(size_bytes: int) -> Iterator[bytes]:
    for _ in range(0, size_bytes, 65_536):
        yield bytes(65_536)


@pytest.mark.parametrize("path", ["/echo", "/json", "/stream", "/nowhere"])
def test_a_longer_body_is_refused_whether_it_says_its_length_or_not(client: httpx.Client, path: str) -> None:
    headers = {"Content-Type": "application/json"}
    said = client.post(path, content=bytes(2 * MIB), headers=headers)
    assert said.status_code == 413
    assert code_of(said) == "body_too_large"

    unsaid = client.post(path, content=chunks(2 * MIB), headers=headers)
    assert unsaid.status_code in ({404} if path == "/nowhere" else {413})
    if path != "/nowhere":
        assert code_of(unsaid) == "body_too_large"

    assert client.get("/echo").status_code == 200


FLOOD = """
import asyncio
import tracemalloc
from starlette.requests import Request
from starlette.responses import Response
from zimage_ui.web.guard import MAX_BODY_BYTES, Guard

CHUNK, SCOPE = 65_536, {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}


async def echo(scope, receive, send):
    await Response(str(len(await Request(scope, receive).body())))(scope, receive, send)


async def flood(size_bytes):
    passed, statuses = 0, []

    async def receive():
        nonlocal passed
        passed += CHUNK
        return {"type": "http.request", "body": bytes(CHUNK), "more_body": passed < size_bytes}

    async def send(message):
        statuses.append(message.get("status"))

    await Guard(echo)(SCOPE, receive, send)
    assert statuses[0] == 413 and passed <= MAX_BODY_BYTES + CHUNK, (statuses, passed)


asyncio.run(flood(2 * MAX_BODY_BYTES))
tracemalloc.start()
for _ in range(4):
    asyncio.run(flood(50 * MAX_BODY_BYTES))
kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
print(kept_bytes, peak_bytes)
"""


def test_long_bodies_leave_no_trace_in_memory() -> None:
    """Counted by the allocator, in a process of its own, where nothing else is at work."""
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    kept_bytes, peak_bytes = map(int, done.stdout.split())
    assert kept_bytes < MIB
    assert peak_bytes < 4 * MIB


def test_a_server_drops_what_comes_after_the_limit(client: httpx.Client) -> None:
    for headers in ({}, {"Content-Length": str(50 * MIB)}):
        assert client.post("/echo", content=chunks(50 * MIB), headers=headers).status_code == 413
        assert client.get("/echo").json() == {"received": 0}


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "99999999999999999999999"])
def test_a_nonsensical_length_is_refused(server: LiveServer, length: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
        connection.sendall(head.encode("utf-8"))
        assert connection.recv(100).split()[1] in {b"400", b"413"}


def test_closed_paths_do_not_exist(client: httpx.Client) -> None:
    for path in ("/closed", "/closed/below"):
        response = client.get(path)
        assert response.status_code == 404
        assert code_of(response) == "not_found"
    assert client.get("/clos").json() == {"detail": "Not Found"}


def test_every_answer_carries_the_headers_that_keep_the_browser_home(client: httpx.Client) -> None:
    for response in (client.get("/echo"), client.get("/nowhere"), client.get("/echo", headers={"Origin": "null"})):
        for name, value in SECURITY_HEADERS.items():
            assert response.headers[name] == value


def test_permissions_of_the_application_are_taken_back_and_its_stricter_headers_kept(client: httpx.Client) -> None:
    response = client.get("/forgetful")

    assert response.text == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert "access-control-allow-origin" not in response.headers
    assert response.headers["x-frame-options"] == "DENY"


def test_the_policy_names_no_other_origin() -> None:
    policy = SECURITY_HEADERS["Content-Security-Policy"]

    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_a_refused_head_has_no_body(client: httpx.Client) -> None:
    response = client.head("/echo", headers={"Origin": "null"})

    assert response.status_code == 403
    assert response.content == b""


async def call(app: Any, scope: Scope, *received: Message) -> list[Message]:
    """One exchange without a network."""
    sent: list[Message] = []
    waiting = list(received)

    async def receive() -> Message:
        return waiting.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def websocket_scope(**headers: str) -> Scope:
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    return {"type": "websocket", "path": "/socket", "headers": raw}


async def accept(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"Host": "localhost:7860"}, "websocket.accept"),
        ({"Host": "localhost:7860", "Origin": "http://localhost:7860"}, "websocket.accept"),
        ({"Host": "localhost:7860", "Origin": "http://evil.example"}, "websocket.close"),
        ({"Host": "localhost:7860", "Origin": "null"}, "websocket.close"),
        ({"Host": "evil.example"}, "websocket.close"),
    ],
)
def test_websockets_are_guarded_too(headers: dict[str, str], answer: str) -> None:
    (first,) = asyncio.run(call(Guard(accept), websocket_scope(**headers)))

    assert first["type"] == answer


def test_other_scopes_pass() -> None:
    async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": scope["type"]})

    assert asyncio.run(call(Guard(lifespan), {"type": "lifespan"})) == [{"type": "lifespan"}]


def test_chunks_pass_one_by_one() -> None:
    """No answer is held back: what the application sends is on its way before the next is made."""
    seen_in_between: list[int] = []
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            seen_in_between.append(len(sent))

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"localhost")]}
    asyncio.run(Guard(app)(scope, receive, send))

    assert seen_in_between == [2, 3, 4]


def test_an_application_that_answers_before_it_reads_too_much_fails_openly() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    too_much = {"type": "http.request", "body": bytes(11), "more_body": False}

    with pytest.raises(Exception, match="too large"):
        asyncio.run(call(Guard(app, max_body_bytes=10), scope, too_much))


def test_the_answer_to_a_cut_body_is_413_whatever_the_application_says() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except Refusal:
            await send({"type": "http.response.start", "status": 400, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"host", b"localhost")]}
    too_much = {"type": "http.request", "body": bytes(11), "more_body": False}

    sent = asyncio.run(call(Guard(app, max_body_bytes=10), scope, too_much))

    assert [message.get("status") for message in sent] == [413, None]
    assert json.loads(sent[1]["body"])["error"]["type"] == "invalid_request_error"
