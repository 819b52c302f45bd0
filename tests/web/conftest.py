from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from zimage_ui.generator.base import WarmupPhase
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.jobs.board import Board
from zimage_ui.jobs.service import JobService
from zimage_ui.settings import Settings
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver
from zimage_ui.telemetry.fake import FakeProbe
from zimage_ui.telemetry.sampler import Sampler
from zimage_ui.web.server import MountablePage, Services, create_app, end_streams

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

    def stop(self) -> None:
        self.should_exit = True
        self._thread.join(START_S)
        assert not self._thread.is_alive()

    def __exit__(self, *_: object) -> None:
        self.stop()


Serve = Callable[..., AbstractContextManager[LiveServer]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """Run an ASGI application over real HTTP."""
    return LiveServer


@dataclass
class Studio:
    """A whole service over fakes: everything real but the model, the sensors and the page."""

    services: Services
    generator: FakeGenerator
    probe: FakeProbe
    server: LiveServer
    client: httpx.Client

    @property
    def board(self) -> Board:
        return self.services.jobs.board

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: self.board.readiness.phase is WarmupPhase.READY)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait until something is true of the board, on its own word."""
        news = threading.Event()
        with self.board.subscribe(news.set) as changes:
            while not holds():
                assert news.wait(START_S)
                news.clear()
                changes.changed()


@contextmanager
def running_studio(
    folder: Path,
    *,
    generator: FakeGenerator | None = None,
    probe: FakeProbe | None = None,
    page: Callable[[JobService, Settings], MountablePage] | None = None,
    interval_s: float = 0.05,
    started: bool = True,
    **settings: Any,
) -> Iterator[Studio]:
    generator, probe = generator or FakeGenerator(), probe or FakeProbe()
    options = Settings(output_dir=folder / "outputs", telemetry_interval_s=max(0.1, interval_s), **settings)
    output = OutputFolder(options.output_dir)
    output.prepare()
    library = Library(output)
    saver = Saver(output, library, threads=1, max_pending=8)
    jobs = JobService(generator, saver, queue_size=options.queue_size)
    sampler = Sampler(probe, interval_s)
    services = Services(
        jobs=jobs,
        saver=saver,
        library=library,
        sampler=sampler,
        settings=options,
        generator_stats=generator.cache_stats,
        started_at_s=time.monotonic(),
    )
    app = create_app(services, page(jobs, options) if page is not None else None)
    with ExitStack() as stack:
        stack.callback(library.close)
        sampler.start()
        stack.callback(sampler.close)
        saver.start()
        stack.callback(saver.close, 10)
        stack.callback(jobs.close, 10)
        server = stack.enter_context(LiveServer(app, lambda: end_streams(app)))
        client = stack.enter_context(httpx.Client(base_url=server.url, timeout=START_S))
        if generator.gate is not None:
            stack.callback(generator.gate.set)
        if started:
            jobs.start()
        yield Studio(services, generator, probe, server, client)


StudioMaker = Callable[..., AbstractContextManager[Studio]]


@pytest.fixture(scope="session")
def run_studio() -> StudioMaker:
    """Run a whole service in a folder, as a context manager."""
    return running_studio


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    """A service that is ready, for all tests of a module that leave it as it is or only add pictures."""
    with running_studio(tmp_path_factory.mktemp("shared")) as studio:
        studio.wait_until_ready()
        yield studio


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    """A service that is ready."""
    with running_studio(tmp_path) as studio:
        studio.wait_until_ready()
        yield studio
