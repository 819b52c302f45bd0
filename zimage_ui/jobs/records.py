"""What is known of a job, as one frozen record, and how each event changes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from zimage_ui.errors import ZImageError
from zimage_ui.events import (
    Event,
    JobCancelled,
    JobFailed,
    JobFinished,
    JobQueued,
    PictureReady,
    PictureRef,
    PictureSaved,
    Sampled,
    StageStarted,
    StepDone,
)
from zimage_ui.request import GenerationRequest, Precision, Preview
from zimage_ui.stages import Stage, Timings


class JobPhase(StrEnum):
    """Where a job stands. The last three are ends."""

    QUEUED = "queued"
    RUNNING = "running"
    SAVING = "saving"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self in _ENDS


_ENDS = frozenset({JobPhase.DONE, JobPhase.FAILED, JobPhase.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job as it stands; a newer state is a new record.

    Attributes:
        job_id, client, request: as submitted; the request's seed is drawn.
        phase: where it stands.
        submitted_unix_s, submitted_at_s: when it was submitted, by the calendar and by the monotonic clock.
        position: how many jobs are before it (0 = next); None when it does not wait.
        stage, stage_started_at_s: the stage it is in, or was in when it failed or was cancelled (monotonic seconds).
        step, num_steps: sampling steps done, of how many.
        preview: of the unfinished picture; None unless it is being sampled or decoded.
        nfe, embedding_cache_hit, prompt_tokens, truncated_tokens, preview_ms, memory_plan, shape_warm, precision,
            encoded_ahead_ms: see `events.Sampled`; None before it.
        pictures: those that can be shown, in the order of their seeds.
        timings: when all pictures are saved.
        error: why it failed.
        ended_at_s: when it was done, failed or cancelled (monotonic seconds).
        revision: grows with every change of any job.
    """

    job_id: str
    client: str
    request: GenerationRequest
    phase: JobPhase
    submitted_unix_s: float
    submitted_at_s: float
    position: int | None = None
    stage: Stage | None = None
    stage_started_at_s: float | None = None
    step: int = 0
    num_steps: int = 0
    preview: Preview | None = None
    nfe: int | None = None
    embedding_cache_hit: bool | None = None
    prompt_tokens: int | None = None
    truncated_tokens: int | None = None
    preview_ms: float | None = None
    memory_plan: str | None = None
    shape_warm: bool | None = None
    precision: Precision | None = None
    encoded_ahead_ms: float | None = None
    pictures: tuple[PictureRef, ...] = ()
    timings: Timings | None = None
    error: ZImageError | None = None
    ended_at_s: float | None = None
    revision: int = 0


def first_record(event: JobQueued, unix_s: float) -> JobRecord:
    """The record of a job that was just submitted, at the calendar time `unix_s`."""
    return JobRecord(
        job_id=event.job_id,
        client=event.client,
        request=event.request,
        phase=JobPhase.QUEUED,
        submitted_unix_s=unix_s,
        submitted_at_s=event.at_s,
        num_steps=event.request.num_inference_steps,
    )


def changes_of(record: JobRecord, event: Event) -> dict[str, Any]:
    """The fields of `record` that `event` gives a new value; none when it comes too late to matter.

    A job that has ended stays as it is, but for pictures: a failed save may succeed later.
    """
    if record.phase.ended and not isinstance(event, PictureReady | PictureSaved):
        return {}
    return _FOLDS[type(event)](record, event)


def _stage_started(record: JobRecord, event: StageStarted) -> dict[str, Any]:
    phase = JobPhase.SAVING if event.stage is Stage.SAVE else JobPhase.RUNNING
    preview = None if event.stage is Stage.SAVE else record.preview
    return {
        "phase": phase,
        "stage": event.stage,
        "stage_started_at_s": event.at_s,
        "position": None,
        "preview": preview,
    }


def _step_done(record: JobRecord, event: StepDone) -> dict[str, Any]:
    return {"step": event.step, "num_steps": event.num_steps, "preview": event.preview or record.preview}


def _sampled(record: JobRecord, event: Sampled) -> dict[str, Any]:
    return {
        "nfe": event.nfe,
        "embedding_cache_hit": event.embedding_cache_hit,
        "prompt_tokens": event.prompt_tokens,
        "truncated_tokens": event.truncated_tokens,
        "preview_ms": event.preview_ms,
        "memory_plan": event.memory_plan,
        "shape_warm": event.shape_warm,
        "precision": event.precision,
        "encoded_ahead_ms": event.encoded_ahead_ms,
    }


def _picture(record: JobRecord, event: PictureReady | PictureSaved) -> dict[str, Any]:
    others = [picture for picture in record.pictures if picture.picture_id != event.picture.picture_id]
    return {"pictures": tuple(sorted([*others, event.picture], key=lambda picture: picture.seed))}


def _finished(record: JobRecord, event: JobFinished) -> dict[str, Any]:
    return {"timings": event.timings, **_end(JobPhase.DONE, event)}


def _failed(record: JobRecord, event: JobFailed) -> dict[str, Any]:
    return {"error": event.error, **_end(JobPhase.FAILED, event)}


def _cancelled(record: JobRecord, event: JobCancelled) -> dict[str, Any]:
    return _end(JobPhase.CANCELLED, event)


def _end(phase: JobPhase, event: Event) -> dict[str, Any]:
    return {"phase": phase, "position": None, "preview": None, "ended_at_s": event.at_s}


_FOLDS: dict[type[Event], Callable[[JobRecord, Any], dict[str, Any]]] = {
    StageStarted: _stage_started,
    StepDone: _step_done,
    Sampled: _sampled,
    PictureReady: _picture,
    PictureSaved: _picture,
    JobFinished: _finished,
    JobFailed: _failed,
    JobCancelled: _cancelled,
}


def changed(record: JobRecord, changes: dict[str, Any], revision: int) -> JobRecord:
    """The next state of `record`."""
    return replace(record, **changes, revision=revision)
