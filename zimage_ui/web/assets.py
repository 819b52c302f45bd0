"""`/assets/*`: our own style, scripts and Plotly, from memory, compressed once; nothing comes from another origin.

Gradio serves its own files under `/assets` too, so each of ours has a route of its own and the rest falls through.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response
from isal import igzip
from starlette.concurrency import run_in_threadpool

PLOTLY_NAME = "plotly.min.js"
# An address that names a version (`?v=...`) never changes its meaning; without one the browser asks each time.
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK = "no-cache"
# Our own, because Gradio rewrites the table of `mimetypes` when it is imported, and machines have their own too.
_MEDIA_TYPES = {
    "css": "text/css",
    "html": "text/html",
    "ico": "image/x-icon",
    "js": "text/javascript",
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "woff2": "font/woff2",
}
_COMPRESSIBLE = frozenset({"text/css", "text/javascript", "image/svg+xml", "application/json", "text/html"})


@dataclass(frozen=True)
class Asset:
    """One static file.

    Attributes:
        name: below `/assets/`.
        source: where it lies.
    """

    name: str
    source: Traversable

    @property
    def media_type(self) -> str:
        """The MIME type, by the name's ending."""
        return _MEDIA_TYPES.get(self.name.rpartition(".")[2].lower(), "application/octet-stream")

    @cached_property
    def data(self) -> bytes:
        """The file's bytes."""
        return self.source.read_bytes()

    @cached_property
    def compressed(self) -> bytes | None:
        """The same in gzip's format; None for files that are compressed as they are."""
        return igzip.compress(self.data) if self.media_type in _COMPRESSIBLE else None

    @cached_property
    def etag(self) -> str:
        """Changes with the content."""
        return f'"{hashlib.blake2b(self.data, digest_size=12).hexdigest()}"'


def own_assets() -> list[Asset]:
    """All files under `zimage_ui/ui/assets`, and the script of the installed Plotly."""
    plotly = files("plotly").joinpath("package_data", PLOTLY_NAME)
    return [*_below(files("zimage_ui.ui").joinpath("assets"), ""), Asset(PLOTLY_NAME, plotly)]


def assets_router(assets: list[Asset]) -> APIRouter:
    """One route for each asset, to be included at `/assets`."""
    router = APIRouter()
    for asset in assets:
        _add_route(router, asset)
    return router


def _add_route(router: APIRouter, asset: Asset) -> None:
    @router.api_route(f"/{asset.name}", methods=["GET", "HEAD"])
    async def serve(request: Request) -> Response:
        return await run_in_threadpool(_respond, asset, request)


def _respond(asset: Asset, request: Request) -> Response:
    gzip = asset.compressed is not None and "gzip" in request.headers.get("accept-encoding", "")
    headers = {
        "Cache-Control": _FOR_EVER if "v" in request.query_params else _ASK,
        "ETag": asset.etag,
        "Vary": "Accept-Encoding",
    }
    if asset.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if gzip:
        headers["Content-Encoding"] = "gzip"
    return Response(asset.compressed if gzip else asset.data, media_type=asset.media_type, headers=headers)


def _below(folder: Traversable, prefix: str) -> Iterator[Asset]:
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name) if folder.is_dir() else ():
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        elif not entry.name.startswith("."):
            yield Asset(prefix + entry.name, entry)
