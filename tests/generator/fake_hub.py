"""A hub on loopback: what huggingface_hub asks of the real one, over real HTTP, with faults on cue.

As on the real hub, weights are redirected to another host (here: `localhost` instead of `127.0.0.1`), and their ETag is
their SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
REPO_ID = "someone/small-z-image-turbo"


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class FakeHub:
    """Attributes:
    files: what the repository holds.
    asked: every request so far.
    refusal: (status, X-Error-Code) that the API answers with instead.
    cut_after: the first answer with weights ends after so many bytes.
    hold_after: answers with weights wait for `release` after so many bytes, telling `holding`.
    forged: weights to send instead of the true ones, by name.
    ignores_ranges: a server that always sends whole files.
    """

    files: dict[str, bytes]
    asked: list[Asked] = field(default_factory=list)
    refusal: tuple[int, str] | None = None
    cut_after: int | None = None
    hold_after: int | None = None
    holding: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    forged: dict[str, bytes] = field(default_factory=dict)
    ignores_ranges: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        server = ThreadingHTTPServer(("127.0.0.1", self.port), type("Handler", (_Handler,), {"hub": self}))
        self.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, name="fake hub", kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield self
        finally:
            self.release.set()
            server.shutdown()
            server.server_close()
            thread.join()

    def fetched(self, suffix: str) -> list[Asked]:
        """Who asked for the bytes of files that end so."""
        return [
            asked
            for asked in self.asked
            if asked.method == "GET" and asked.path.endswith(suffix) and "/cdn/" in asked.path
        ]


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
        api, resolve = f"/api/models/{REPO_ID}", f"/{REPO_ID}/resolve/"
        if self.hub.refusal and not path.startswith("/cdn/"):
            status, code = self.hub.refusal
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "no"} if code else {})
        elif path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            self._send_json({"id": REPO_ID, "sha": COMMIT, "siblings": self._siblings()})
        elif path.startswith(f"{api}/revision/"):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"{api}/tree/{COMMIT}":
            self._send_json([{"type": "file", "path": name, **self._entry(name)} for name in self.hub.files])
        elif path.startswith(resolve):
            self._send_file(path.removeprefix(resolve).partition("/")[2])
        elif path.startswith("/cdn/"):
            self._send_weights(path.removeprefix("/cdn/"))
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _siblings(self) -> list[dict[str, object]]:
        return [{"rfilename": name, "size": len(content)} for name, content in self.hub.files.items()]

    def _entry(self, name: str) -> dict[str, object]:
        content = self.hub.files[name]
        entry: dict[str, object] = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if name.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def _send_file(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        elif name.endswith(".safetensors"):
            self._send(
                302,
                b"",
                {
                    "Location": f"http://localhost:{self.hub.port}/cdn/{name}",
                    "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
                    "X-Linked-Size": str(len(content)),
                    "X-Repo-Commit": COMMIT,
                },
            )
        else:
            self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def _send_weights(self, name: str) -> None:
        hub, content = self.hub, self.hub.forged.get(name) or self.hub.files[name]
        wanted = self.headers.get("Range")
        begin = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and not hub.ignores_ranges else 0
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(content) - begin))
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        stop = len(content)
        if hub.cut_after is not None and hub.cut_after < stop:
            stop, hub.cut_after = hub.cut_after, None
            self.close_connection = True
        pause = hub.hold_after if hub.hold_after is not None and hub.hold_after < stop else stop
        try:
            self.wfile.write(content[begin:pause])
            if pause < stop:
                hub.holding.set()
                hub.release.wait()
                self.wfile.write(content[pause:stop])
        except OSError:
            self.close_connection = True  # the client is gone

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
