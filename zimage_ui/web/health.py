"""Whether the process lives, whether it is ready, how it was warmed up; and Cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from zimage_ui.web import views
from zimage_ui.web.errors import RETRY_AFTER_S, SafeJSONResponse
from zimage_ui.web.services import Services


def readiness(services: Services) -> dict[str, Any]:
    """The present readiness, as `/readyz` and `/api/warmup` give it."""
    board = services.jobs.board
    return views.readiness_view(board.readiness, board.model, services.sampler.latest, board.shapes)


def health_router(services: Services) -> APIRouter:
    """`/livez` and `/readyz`."""
    router = APIRouter()

    @router.get("/livez")
    async def livez() -> dict[str, bool]:
        return {"live": True}

    @router.get("/readyz")
    async def readyz() -> JSONResponse:
        view = readiness(services)
        if view["ready"]:
            return SafeJSONResponse(view)
        return SafeJSONResponse(view, 503, headers={"Retry-After": str(RETRY_AFTER_S)})

    return router


def jobs_router(services: Services) -> APIRouter:
    """`/warmup` and `/jobs/{job_id}/cancel`, to be mounted at `/api`."""
    router = APIRouter()

    @router.post("/warmup")
    async def warmup() -> JSONResponse:
        """The warm-up begins with the process, so there is nothing to trigger: whoever asks is told how far it is."""
        return SafeJSONResponse(readiness(services))

    @router.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        if services.jobs.board.get(job_id) is None:
            raise HTTPException(404, "There is no such job, or it ended long ago.")
        return {"job_id": job_id, "cancelled": services.jobs.cancel(job_id)}

    return router
