"""Whether the process lives, whether it is ready, how it was warmed up; Cancel, and what somebody is still writing."""

from __future__ import annotations

import contextlib
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException

from zimage_ui.errors import InvalidRequestError
from zimage_ui.request import GenerationRequest
from zimage_ui.web import views
from zimage_ui.web.errors import RETRY_AFTER_S, SafeJSONResponse
from zimage_ui.web.services import Services


class Draft(BaseModel):
    """What somebody has written so far, as far as its encoding depends on it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str
    negative_prompt: str = ""
    guidance_scale: float = 0.0


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
    """`/warmup`, `/draft` and `/jobs/{job_id}/cancel`, to be mounted at `/api`."""
    router = APIRouter()

    @router.post("/warmup")
    async def warmup() -> JSONResponse:
        """The warm-up begins with the process, so there is nothing to trigger: whoever asks is told how far it is."""
        return SafeJSONResponse(readiness(services))

    @router.post("/draft", status_code=204)
    async def draft(given: Draft) -> Response:
        """A prompt may be encoded while it is written; who still writes is told nothing of mistakes."""
        with contextlib.suppress(InvalidRequestError):
            services.jobs.announce(GenerationRequest(**given.model_dump()))
        return Response(status_code=204)

    @router.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> dict[str, Any]:
        if services.jobs.board.get(job_id) is None:
            raise HTTPException(404, "There is no such job, or it ended long ago.")
        return {"job_id": job_id, "cancelled": services.jobs.cancel(job_id)}

    return router
