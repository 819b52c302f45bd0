"""The application: every route of the house, the page mounted beneath them, and the guard before all.

Gradio serves the page at `/` and takes every address that is not ours, so our routes come first; whole prefixes are
ours (`/v1`, `/api`, `/pictures`), so that a wrong address or method there is answered in our shape.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Protocol

from fastapi import APIRouter, FastAPI

from zimage_ui import __version__
from zimage_ui.web.assets import assets_router, own_assets
from zimage_ui.web.errors import install_error_handlers
from zimage_ui.web.guard import MAX_BODY_BYTES, Guard
from zimage_ui.web.health import health_router, jobs_router
from zimage_ui.web.images_api import images_router
from zimage_ui.web.metrics import Metrics, metrics_router
from zimage_ui.web.page_calls import PageCalls
from zimage_ui.web.pictures import library_router, pictures_router
from zimage_ui.web.services import Services
from zimage_ui.web.stream import TelemetryStreams, stream_router

__all__ = ["MountablePage", "Services", "create_app", "end_streams"]

# Gradio's routes that the page does not use: uploads would fill the disk, the proxy would call other machines, and its
# queue holds bodies without bound (the page's handlers go the direct way; the jobs room has the only queue).
_CLOSED_PATHS = (
    "/gradio_api/api/",
    "/gradio_api/call/",
    "/gradio_api/openapi.json",
    "/gradio_api/queue/",
    "/gradio_api/upload",
    "/gradio_api/proxy=",
    "/gradio_api/process_recording",
    "/gradio_api/vibe-",
    "/gradio_api/undo-vibe-",
    "/monitoring",
)


class MountablePage(Protocol):
    """A Gradio page with all that belongs to its mount; see `gradio.mount_gradio_app`."""

    @property
    def blocks(self) -> Any:
        """The page itself, a `gradio.Blocks`."""

    @property
    def theme(self) -> Any:
        """A Gradio theme."""

    @property
    def css(self) -> str | None:
        """Style sheets."""

    @property
    def head(self) -> str | None:
        """HTML for the page's head."""

    @property
    def js(self) -> str | None:
        """A script that runs when the page is loaded."""


def create_app(services: Services, page: MountablePage | None) -> FastAPI:
    """The ASGI application over `services`; without a page it is an API alone.

    Its streams begin with its lifespan; a server that shuts down calls `end_streams` first, or waits for the pages.
    With a page, not to be called from within an event loop.
    """
    streams = TelemetryStreams(services)
    metrics = Metrics(services, viewers=lambda: streams.viewers)
    streams.add_listener(metrics.observe)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with streams.running():
            yield

    # Their pages of documentation load scripts from elsewhere.
    app = FastAPI(
        title="zimage-ui", version=__version__, docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan
    )
    app.state.streams = streams
    install_error_handlers(app)
    app.include_router(health_router(services))
    app.include_router(metrics_router(metrics))
    app.include_router(stream_router(streams))
    app.include_router(assets_router(own_assets()), prefix="/assets")
    api = APIRouter()
    api.include_router(jobs_router(services))
    api.include_router(library_router(services))
    app.mount("/api", api)
    app.mount("/pictures", pictures_router(services))
    app.mount("/v1", images_router(services))
    if page is not None:
        asyncio.run(_mount_page(app, page))
        handlers = page.blocks.fns.items()
        app.add_middleware(PageCalls, inputs={index: len(each.inputs) for index, each in handlers if each.fn})
    app.add_middleware(Guard, hosts=(services.settings.host,), closed_paths=_CLOSED_PATHS)
    return app


def end_streams(app: FastAPI) -> None:
    """End every open stream of `app` now; for the server's shutdown, from any thread or a signal handler."""
    streams: TelemetryStreams = app.state.streams
    streams.close()


async def _mount_page(app: FastAPI, page: MountablePage) -> None:
    """Mount the page; a coroutine because Gradio, outside of an event loop, makes one and never closes it."""
    import gradio

    gradio.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        app_kwargs={"openapi_url": None},
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=MAX_BODY_BYTES,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme,
        css=page.css,
        js=page.js,
        head=page.head,
    )
