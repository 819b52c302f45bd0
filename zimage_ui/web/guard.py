"""The guard before everything: who may call from where, and how much they may send.

A plain ASGI layer (so that streams are not held up) around the whole application, the mounted page included:

- the `Host` must be one of this machine's own names: a foreign page that points its own name at 127.0.0.1 (DNS
  rebinding) is turned away;
- an `Origin` must be the very origin that is served, and what the browser itself calls a cross-site request must be a
  plain navigation: no other page can press our buttons or read our stream;
- a body may have one megabyte, whether it says its length or not; it is counted as it passes, never collected;
- answers carry headers that keep the browser from loading anything from elsewhere, and never CORS permissions.

Programs that are not browsers send none of the browser's headers and are let in.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zimage_ui.web.errors import error_bytes

_log = logging.getLogger(__name__)

MAX_BODY_BYTES = 2**20
LOCAL_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

_DEFAULT_PORTS = {"http": 80, "https": 443}
# The page's own scripts are inline and Gradio compiles templates: 'unsafe-inline' and 'unsafe-eval' are its terms.
_CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "media-src 'self' data: blob:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self'",
    )
)
SECURITY_HEADERS = {
    "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
}


class Refusal(Exception):
    """A call that is turned away.

    Attributes:
        status: HTTP status.
        message: why, for people.
        code: why, for programs.
    """

    def __init__(self, status: int, message: str, code: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


class Guard:
    """ASGI middleware; see the module.

    Args:
        app: what is guarded.
        hosts: names, beside this machine's own, that a `Host` header may give (without a port).
        closed_paths: beginnings of paths that are answered with 404.
        max_body_bytes: the longest body.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str] = (),
        closed_paths: tuple[str, ...] = (),
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._hosts = LOCAL_HOSTS | {host.lower() for host in hosts}
        self._closed_paths = closed_paths
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a call in, or answer it here."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send, self._max_body_bytes)
        try:
            self._check(scope)
        except Refusal as refusal:
            _log.warning("Refused %s %r: %s", scope.get("method", "websocket"), scope["path"], refusal.message)
            await exchange.refuse(scope, refusal)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        await exchange.run(self._app, scope)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(headers)
        _check_site(scope, headers)
        self._check_length(headers)
        if scope["path"].startswith(self._closed_paths):
            raise Refusal(404, "There is nothing at this address.", "not_found")

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if _host_and_port(host)[0] not in self._hosts:
            raise Refusal(403, f"The host name {host[:100]!r} is not one of this service's own.", "foreign_host")

    def _check_origin(self, headers: Headers) -> None:
        """A browser sends `Origin` with everything but plain navigation and same-origin GETs; others send none."""
        origin = headers.get("origin")
        if origin is None:
            return
        scheme, _, address = origin.partition("://")
        port = _DEFAULT_PORTS.get(scheme)
        if port is None or _host_and_port(address, port) != _host_and_port(headers.get("host", ""), port):
            raise Refusal(403, f"Calls from the origin {origin[:100]!r} are not allowed.", "foreign_origin")

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._max_body_bytes:
            raise _too_large(self._max_body_bytes)


class _Exchange:
    """One HTTP call under guard: counts what comes in, and adds headers to what goes out."""

    def __init__(self, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._receive_raw = receive
        self._send_raw = send
        self._max_body_bytes = max_body_bytes
        self._received_bytes = 0
        self._refusal: Refusal | None = None
        self._answered = False

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Let `app` answer; if the body proves too long on the way, the answer is 413, whatever `app` makes of it."""
        try:
            await app(scope, self._receive, self._send)
        except Refusal:
            if self._answered:
                raise
        finally:
            if self._refusal is not None and not self._answered:
                await self.refuse(scope, self._refusal)
            self._refusal = None  # its traceback holds this object and, through the frames, what came of the body

    async def refuse(self, scope: Scope, refusal: Refusal) -> None:
        """Answer with the refusal; what is still coming in is read and dropped by the server."""
        if scope["type"] == "websocket":
            await self._send_raw({"type": "websocket.close", "code": 1008, "reason": refusal.message})
            return
        body = error_bytes(refusal.message, status=refusal.status, code=refusal.code)
        headers = MutableHeaders({"content-type": "application/json", "content-length": str(len(body))})
        headers.update(SECURITY_HEADERS)
        await self._send_raw({"type": "http.response.start", "status": refusal.status, "headers": headers.raw})
        await self._send_raw({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _receive(self) -> Message:
        message = await self._receive_raw()
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > self._max_body_bytes:
                self._refusal = _too_large(self._max_body_bytes)
                raise self._refusal
        return message

    async def _send(self, message: Message) -> None:
        if self._refusal is not None and not self._answered:
            return  # what the application makes of the cut body is of no interest
        if message["type"] == "http.response.start":
            self._answered = True
            message = {**message, "headers": _answer_headers(message)}
        await self._send_raw(message)


def _answer_headers(message: Message) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in message.get("headers", []) if not name.startswith(b"access-control-")]
    headers = MutableHeaders(raw=kept)
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    return headers.raw


def _too_large(max_body_bytes: int) -> Refusal:
    return Refusal(413, f"The body is too large; at most {max_body_bytes:,} bytes are taken.", "body_too_large")


def _check_site(scope: Scope, headers: Headers) -> None:
    """Fetch metadata (W3C): a cross-site request may only be a person following a link here."""
    site = headers.get("sec-fetch-site", "none")
    if site in {"same-origin", "none"}:
        return
    link = scope.get("method") in {"GET", "HEAD"} and headers.get("sec-fetch-mode") == "navigate"
    if not link or headers.get("sec-fetch-dest") in {"object", "embed", "iframe", "frame"}:
        raise Refusal(403, "Calls from other sites are not allowed.", "foreign_origin")


def _host_and_port(address: str, default_port: int = 80) -> tuple[str, int | None]:
    """Name and port of a `Host` header or the part of an origin after its scheme; ("", None) when it is malformed."""
    try:
        parts = urlsplit(f"//{address}")
        port = parts.port
    except ValueError:
        return "", None
    if parts.path or parts.query or parts.fragment or parts.username is not None or not parts.hostname:
        return "", None
    return parts.hostname, default_port if port is None else port
