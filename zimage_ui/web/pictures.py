"""`GET /pictures/{id}` serves the bytes of a picture's file; `GET /api/pictures` lists the newest ones."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from zimage_ui.errors import PictureNotFoundError
from zimage_ui.web import views
from zimage_ui.web.services import Services

MAX_LISTED = 200
# Server-made ids (ULID, Crockford's alphabet); whatever else comes in never reaches a path or the database.
PICTURE_ID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")
# A picture never changes; only this browser may keep it.
_FOR_EVER = "private, max-age=31536000, immutable"


def pictures_router(services: Services) -> APIRouter:
    """`/{picture_id}`, to be mounted at `/pictures`."""
    router = APIRouter()

    @router.api_route("/{picture_id}", methods=["GET", "HEAD"])
    async def picture(picture_id: str, request: Request, download: bool = False) -> Response:
        if not PICTURE_ID.fullmatch(picture_id):
            raise PictureNotFoundError(f"{picture_id[:40]!r} is not the id of a picture.")
        data, image_format = await run_in_threadpool(services.saver.read, picture_id)
        etag = f'"{picture_id}"'
        disposition = "attachment" if download else "inline"
        headers = {
            "Cache-Control": _FOR_EVER,
            "Content-Disposition": f'{disposition}; filename="{picture_id}.{image_format.suffix}"',
            "ETag": etag,
        }
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=image_format.media_type, headers=headers)

    return router


def library_router(services: Services) -> APIRouter:
    """`/pictures`, to be mounted at `/api`."""
    router = APIRouter()

    @router.get("/pictures")
    def newest(
        limit: Annotated[int, Query(ge=1, le=MAX_LISTED)] = 50,
        before: Annotated[str | None, Query(pattern=f"^{PICTURE_ID.pattern}$")] = None,
    ) -> dict[str, Any]:
        rows = services.library.newest(limit, before_id=before)
        return {
            "pictures": [views.library_view(row) for row in rows],
            "next_before": rows[-1].picture_id if len(rows) == limit else None,
            "count": services.library.count(),
        }

    return router
