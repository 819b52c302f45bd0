"""Errors on the wire: one JSON shape (OpenAI's) for every path, and which status each error of our tree has.

::

    {"error": {"message": "...", "type": "invalid_request_error", "param": "size", "code": "invalid_request"}}
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from zimage_ui.errors import (
    InvalidRequestError,
    JobCancelledError,
    NotReadyError,
    PictureNotFoundError,
    QueueFullError,
    StorageError,
    ZImageError,
)

_log = logging.getLogger(__name__)

RETRY_AFTER_S = 5
# The first match counts: children before parents.
_STATUS: tuple[tuple[type[ZImageError], int], ...] = (
    (InvalidRequestError, 400),
    (PictureNotFoundError, 404),
    (JobCancelledError, 409),
    (QueueFullError, 503),
    (NotReadyError, 503),
    (StorageError, 507),
)


class SafeJSONResponse(JSONResponse):
    """JSON in ASCII: foreign error texts may hold half characters (from file names), which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        """Encode `content`; not-a-number is an error, as JSON has no such number."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


class InvalidCallError(InvalidRequestError):
    """An HTTP call that is wrong as such: its media type, its path, its body.

    Attributes:
        status: the HTTP status that says so.
    """

    def __init__(self, message: str, hint: str = "", *, status: int, code: str) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code


def status_of(error: ZImageError) -> int:
    """The HTTP status for an error of our tree; 500 for what is nobody's fault but ours."""
    if isinstance(error, InvalidCallError):
        return error.status
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def error_body(message: str, *, status: int, code: str, param: str = "") -> dict[str, Any]:
    """OpenAI's error shape."""
    return {
        "error": {
            "message": message,
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": param or None,
            "code": code,
        }
    }


def error_bytes(message: str, *, status: int, code: str) -> bytes:
    """OpenAI's error shape, encoded."""
    return json.dumps(error_body(message, status=status, code=code)).encode()


def error_headers(error: ZImageError) -> dict[str, str]:
    """When it makes sense to try again, and (in the OpenAI clients' own words) when it does not."""
    if isinstance(error, QueueFullError):
        return {"Retry-After": str(error.retry_after_s)}
    if isinstance(error, NotReadyError):
        return {"Retry-After": str(RETRY_AFTER_S)}
    # The clients repeat a call after 409 and 5xx on their own: an expensive way to the same end.
    return {"x-should-retry": "false"}


def error_response(error: ZImageError, more: Mapping[str, Any] | None = None) -> SafeJSONResponse:
    """An error of our tree as an HTTP response; `more` fields go into the error object."""
    status = status_of(error)
    param = error.param if isinstance(error, InvalidRequestError) else ""
    body = error_body(str(error), status=status, code=error.code, param=param)
    body["error"] |= more or {}
    return SafeJSONResponse(body, status, headers=error_headers(error))


def install_error_handlers(app: FastAPI) -> None:
    """Every error that leaves a handler of `app` becomes JSON of one shape; no traceback reaches a client."""

    @app.exception_handler(ZImageError)
    async def ours(request: Request, error: ZImageError) -> SafeJSONResponse:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def wrong_query(request: Request, error: RequestValidationError) -> SafeJSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        body = error_body(f"{name}: {first['msg']}.", status=400, code="invalid_request", param=name)
        return SafeJSONResponse(body, 400)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> SafeJSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        body = error_body(str(error.detail), status=error.status_code, code=code)
        return SafeJSONResponse(body, error.status_code, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> SafeJSONResponse:
        error_id = secrets.token_hex(4)
        _log.error("Error %s at %s %s", error_id, request.method, request.url.path, exc_info=error)
        message = f"Something went wrong that should not have (error {error_id}). The log says more."
        return SafeJSONResponse(error_body(message, status=500, code="internal_error"), 500)
