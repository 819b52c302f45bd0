"""`POST /v1/images/generations` and `GET /v1/models`: what OpenAI's clients speak, and our own fields beside it.

Understood: `prompt`, `n`, `size` ("WIDTHxHEIGHT" or "auto"), `response_format` ("b64_json" or "url"), `output_format`,
and `seed`, `num_inference_steps`, `guidance_scale`, `negative_prompt`, `scheduler`; what is not given comes from the
loaded model's profile and the settings. Taken and ignored, as nothing here corresponds to them: `model` (the loaded one
answers), `quality`, `style`, `background`, `moderation`, `output_compression`, `user`. Anything else is an error.

A call waits for its picture without holding a thread. Whoever hangs up loses the answer, not the picture: it is made,
saved, and shown in the library.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool

from zimage_ui.errors import InvalidRequestError, JobCancelledError, NotReadyError, QueueFullError
from zimage_ui.generator.base import ModelInfo, ModelProfile, WarmupPhase
from zimage_ui.jobs.records import JobPhase, JobRecord
from zimage_ui.request import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_STEPS,
    GenerationRequest,
    ImageFormat,
    SchedulerName,
)
from zimage_ui.web import views
from zimage_ui.web.errors import InvalidCallError, error_response
from zimage_ui.web.services import Services

_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_SHOWN_CHARS = 80
# Names of GenerationRequest's fields in this API, where they differ.
_PARAMS = {"num_images_per_prompt": "n", "image_format": "output_format", "width": "size", "height": "size"}


class ImagesCall(BaseModel):
    """The body of a call, checked for types; ranges that GenerationRequest knows are left to it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    prompt: str = Field(max_length=MAX_PROMPT_CHARS)
    n: int | None = Field(None, ge=1, le=MAX_IMAGES)
    size: str | None = Field(None, max_length=20)
    response_format: Literal["b64_json", "url"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    seed: int | None = Field(None, ge=-1, le=MAX_SEED)
    num_inference_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE_SCALE, allow_inf_nan=False)
    negative_prompt: str | None = Field(None, max_length=MAX_PROMPT_CHARS)
    scheduler: Literal["euler", "unipc", "dpmpp_2m"] | None = None
    stream: Literal[False] | None = None

    model: Any = None
    quality: Any = None
    style: Any = None
    background: Any = None
    moderation: Any = None
    output_compression: Any = None
    user: Any = None

    def to_request(self, profile: ModelProfile, image_format: ImageFormat) -> GenerationRequest:
        """The request that the call stands for, with the model's defaults.

        Raises:
            InvalidRequestError: a value is out of range; `param` is its name in this API.
        """
        width, height = self._size(profile)
        guidance_scale = profile.guidance_scale if self.guidance_scale is None else self.guidance_scale
        try:
            return GenerationRequest(
                prompt=self.prompt,
                negative_prompt=self.negative_prompt or "",
                width=width,
                height=height,
                num_inference_steps=self.num_inference_steps or profile.num_inference_steps,
                guidance_scale=guidance_scale,
                seed=self.seed,
                num_images_per_prompt=self.n or 1,
                scheduler=SchedulerName(self.scheduler or SchedulerName.EULER),
                image_format=ImageFormat(self.output_format or image_format),
            )
        except InvalidRequestError as error:
            param = _PARAMS.get(error.param, error.param)
            raise InvalidRequestError(error.message, error.hint, param=param) from None

    def _size(self, profile: ModelProfile) -> tuple[int, int]:
        if self.size in {None, "auto"}:
            return profile.sizes[0]
        match = _SIZE.fullmatch(self.size or "")
        if match is None:
            example = "x".join(map(str, profile.sizes[0]))
            raise InvalidRequestError(
                f"size is {self.size!r}; it must be WIDTHxHEIGHT in pixels, or auto.",
                f"This model's own size is {example}.",
                param="size",
            )
        return int(match[1]), int(match[2])


async def read_call(request: Request) -> ImagesCall:
    """The call in the body of `request`.

    Raises:
        InvalidRequestError: it is no JSON object of the fields above.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise InvalidCallError(
            f"The body is of type {media_type[:_SHOWN_CHARS] or 'unknown'}; it must be application/json.",
            "Send the header Content-Type: application/json.",
            status=415,
            code="unsupported_media_type",
        )
    try:
        return ImagesCall.model_validate_json(await request.body())
    except ValidationError as error:
        raise _invalid(error) from None


def images_router(services: Services) -> APIRouter:
    """`/images/generations` and `/models`, to be mounted at `/v1`."""
    router = APIRouter()
    waiting_room = _WaitingRoom(services)

    @router.post("/images/generations")
    async def generate(request: Request) -> Response:
        call = await read_call(request)
        model = await waiting_room.model(request)
        wanted = call.to_request(model.profile, services.settings.image_format)
        client = request.client.host if request.client else ""
        job = services.jobs.submit(wanted, f"api {client}")
        record = await asyncio.wrap_future(services.jobs.future(job.job_id))
        if record.phase is JobPhase.DONE:
            base_url = str(request.base_url) if call.response_format == "url" else None
            body = await run_in_threadpool(_answer, services, record, model, base_url)
            return Response(body, media_type="application/json")
        error = record.error or JobCancelledError("The job was cancelled.", "Ask again.")
        # What was made can still be fetched, though the disk refused it.
        made = [{"picture_id": each.picture_id, "url": _url(request, each.picture_id)} for each in record.pictures]
        return error_response(error, {"pictures": made} if made else {})

    @router.get("/models")
    async def models() -> dict[str, Any]:
        model = services.jobs.board.model
        return {"object": "list", "data": [] if model is None else [_model_entry(model, services)]}

    return router


class _WaitingRoom:
    """Where calls wait for the model's profile while it is still being loaded; no more of them than the queue takes."""

    def __init__(self, services: Services) -> None:
        self._board = services.jobs.board
        self._capacity = services.settings.queue_size
        self._waiting = 0

    async def model(self, request: Request) -> ModelInfo:
        """What is loaded, for `request`, whose body has been read.

        Raises:
            QueueFullError: too many calls wait for it.
            NotReadyError: it could not be loaded.
            JobCancelledError: the caller hung up meanwhile.
        """
        if self._board.model is not None:
            return self._board.model
        if self._waiting >= self._capacity:
            raise QueueFullError(f"The model is still being loaded, and {self._waiting} calls wait for it already.")
        self._waiting += 1
        gone = asyncio.create_task(_hung_up(request))
        try:
            return await self._loaded(gone)
        finally:
            self._waiting -= 1
            gone.cancel()

    async def _loaded(self, gone: asyncio.Task[None]) -> ModelInfo:
        loop, news = asyncio.get_running_loop(), asyncio.Event()
        gone.add_done_callback(lambda _: news.set())
        with self._board.subscribe(lambda: _set_soon(loop, news)) as changes:
            while (model := self._board.model) is None:
                if self._board.readiness.phase is WarmupPhase.FAILED:
                    raise NotReadyError(f"No picture can be made: {self._board.readiness.error}")
                await news.wait()
                news.clear()
                if gone.done():
                    raise JobCancelledError("The caller hung up while the model was being loaded.")
                changes.changed()
        return model


async def _hung_up(request: Request) -> None:
    """Return when the caller is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _set_soon(loop: asyncio.AbstractEventLoop, news: asyncio.Event) -> None:
    loop.call_soon_threadsafe(news.set)


def _answer(services: Services, record: JobRecord, model: ModelInfo, base_url: str | None) -> bytes:
    """The answer to a call whose pictures are saved; reads and encodes them, so not for the event loop."""
    request = record.request
    answer = {
        "created": int(time.time()),
        "data": [
            {
                **_content(services, picture.picture_id, base_url),
                "seed": picture.seed,
                "picture_id": picture.picture_id,
                "path": picture.path,
                "output_format": picture.image_format.value,
            }
            for picture in record.pictures
        ],
        "size": f"{request.width}x{request.height}",
        # What the files are, not what was asked for: a picture that cannot be encoded so becomes a PNG.
        "output_format": record.pictures[0].image_format.value,
        "seed": request.seed,
        "nfe": record.nfe,
        "num_inference_steps": request.num_inference_steps,
        "guidance_scale": request.guidance_scale,
        "scheduler": request.scheduler.value,
        "timings_ms": record.timings.as_dict() if record.timings else None,
        "embedding_cache_hit": record.embedding_cache_hit,
        "encoded_ahead_ms": record.encoded_ahead_ms,
        "prompt_tokens": record.prompt_tokens,
        "truncated_tokens": record.truncated_tokens,
        "memory_plan": record.memory_plan,
        "shape_warm": record.shape_warm,
        "precision": record.precision,
        "model": model.name,
        "untrained": not model.trained,
    }
    return json.dumps(answer, separators=(",", ":"), allow_nan=False).encode()


def _url(request: Request, picture_id: str) -> str:
    return str(request.base_url).rstrip("/") + views.picture_url(picture_id)


def _content(services: Services, picture_id: str, base_url: str | None) -> dict[str, str]:
    if base_url is not None:
        return {"url": base_url.rstrip("/") + views.picture_url(picture_id)}
    data, _ = services.saver.read(picture_id)
    return {"b64_json": base64.b64encode(data).decode()}


def _model_entry(model: ModelInfo, services: Services) -> dict[str, Any]:
    since_start_s = time.monotonic() - services.started_at_s
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time() - since_start_s),
        "owned_by": "zimage-ui",
        "profile": model.profile.name,
        "fingerprint": model.fingerprint,
        "untrained": not model.trained,
        "precision": model.precision,
    }


def _invalid(error: ValidationError) -> InvalidRequestError:
    """The first complaint as one of ours, with the field and (the beginning of) its value."""
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return InvalidCallError(f"The body cannot be read: {first['msg']}.", status=400, code="invalid_json")
    if first["type"] == "missing":
        return InvalidRequestError(f"{param} is missing.", param=param)
    if first["type"] == "extra_forbidden":
        known = ", ".join(ImagesCall.model_fields)
        return InvalidRequestError(f"There is no field {param[:_SHOWN_CHARS]!r}.", f"Known are: {known}.", param=param)
    if not param:
        return InvalidRequestError("The body must be a JSON object.")
    return InvalidRequestError(f"{param} is {_shown(first['input'])}: {first['msg']}.", param=param)


def _shown(value: Any) -> str:
    """A value for a message; lists, objects and endless numbers by their kind."""
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20):
        return json.dumps(value)
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN_CHARS else f"a text of {len(value):,} characters"
    return {list: "a list", dict: "an object", int: "a number of more than 20 digits"}.get(type(value), "unusable")
