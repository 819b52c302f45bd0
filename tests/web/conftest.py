from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import uvicorn
from starlette.types import ASGIApp

START_S = 30.0


class LiveServer(uvicorn.Server):
    """uvicorn on a free port of 127.0.0.1, on a thread of its own."""

    def __init__(self, app: ASGIApp, before_shutdown: Callable[[], None] = lambda: None) -> None:
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_level="warning", lifespan="auto", timeout_graceful_shutdown=5
        )
        super().__init__(config)
        self._up = threading.Event()
        self._before_shutdown = before_shutdown
        self._thread = threading.Thread(target=self.run, name="live-server")

    async def startup(self, sockets: list[object] | None = None) -> None:
        await super().startup(sockets)  # type: ignore[arg-type]
        self._up.set()

    async def shutdown(self, sockets: list[object] | None = None) -> None:
        self._before_shutdown()
        await super().shutdown(sockets)  # type: ignore[arg-type]

    @property
    def port(self) -> int:
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._up.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.should_exit = True
        self._thread.join(START_S)
        assert not self._thread.is_alive()


Serve = Callable[..., AbstractContextManager[LiveServer]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Run an ASGI application over real HTTP."""
    return LiveServer
