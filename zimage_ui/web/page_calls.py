"""The one route of Gradio's that the page's buttons use, made strict: `POST /gradio_api/run/predict`.

Gradio turns a wrong call into a traceback in its log and object addresses in its answer. So a call is read here first,
as any call of ours is: it must name a handler of the page and bring as many values as that handler takes (what the
values may be, the handler says itself). Only the fields that the page sends go on; what goes wrong beyond is told
without its inside. Handlers cannot be called by name.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zimage_ui.errors import InvalidRequestError
from zimage_ui.web.errors import InvalidCallError, error_bytes, error_response

_log = logging.getLogger(__name__)

RUN_PREFIX = "/gradio_api/run/"
_RUN_PATH = f"{RUN_PREFIX}predict"


class PageCall(BaseModel):
    """What the page sends when a button is pressed, as far as it matters.

    The session that it names too stays here: Gradio would keep the last values of each of 10,000 sessions.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    data: list[Any]
    fn_index: int


class PageCalls:
    """ASGI middleware; see the module.

    Args:
        app: what answers the calls, the page mounted in it.
        inputs: how many values each handler of the page takes, by Gradio's index of it.
    """

    def __init__(self, app: ASGIApp, *, inputs: Mapping[int, int]) -> None:
        self._app = app
        self._inputs = inputs

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let everything pass but calls of the page's handlers; of those, the right ones."""
        if scope["type"] != "http" or not scope["path"].startswith(RUN_PREFIX):
            await self._app(scope, receive, send)
            return
        try:
            body = await self._checked(Request(scope, receive))
        except InvalidRequestError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(_with_length(scope, len(body)), _replay(body, receive), _without_inside(send))

    async def _checked(self, request: Request) -> bytes:
        """The body, with nothing in it but a `PageCall`.

        Raises:
            InvalidRequestError: it is none.
        """
        if request.method != "POST" or request.url.path != _RUN_PATH:
            raise InvalidCallError("There is nothing at this address.", status=404, code="not_found")
        try:
            call = PageCall.model_validate(json.loads(await request.body()))
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            param = ".".join(str(part) for part in first["loc"])
            raise InvalidRequestError(f"{param or 'The body'}: {first['msg']}.", param=param) from None
        except (ValueError, RecursionError):
            raise InvalidCallError("The body cannot be read as JSON.", status=400, code="invalid_json") from None
        if call.fn_index not in self._inputs:
            raise InvalidCallError("The page has no such handler.", "Reload the page.", status=404, code="not_found")
        if len(call.data) != self._inputs[call.fn_index]:
            raise InvalidRequestError(
                f"data holds {len(call.data)} values; this handler takes {self._inputs[call.fn_index]}.",
                "Reload the page.",
                param="data",
            )
        if any(isinstance(value, list | dict) for value in call.data):
            raise InvalidRequestError(
                "A value is a list or an object; the form has only texts and numbers.", param="data"
            )
        return json.dumps(call.model_dump()).encode()


def _with_length(scope: Scope, length_bytes: int) -> Scope:
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["content-length"] = str(length_bytes)
    headers["content-type"] = "application/json"
    del headers["transfer-encoding"]
    return {**scope, "headers": headers.raw}


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body as one message, and after it whatever the connection says."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


def _without_inside(send: Send) -> Send:
    """Answers of 500 and more, replaced by one that tells nothing; what went wrong is in the log."""
    replaced = False

    async def send_on(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] >= 500:
            replaced = True
            error_id = secrets.token_hex(4)
            _log.error("Error %s at %s; its cause is printed above.", error_id, _RUN_PATH)
            text = f"Something went wrong that should not have (error {error_id}). The log says more."
            body = error_bytes(text, status=500, code="internal_error")
            headers = MutableHeaders({"content-type": "application/json", "content-length": str(len(body))})
            await send({"type": "http.response.start", "status": 500, "headers": headers.raw})
            await send({"type": "http.response.body", "body": body})
        elif not replaced:
            await send(message)

    return send_on
