"""What happens to a job on its way, as small frozen facts.

The worker publishes them, the board folds them into the state that pages, streams and futures read. Each carries the
job's id; `at_s` is the host's monotonic clock in seconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from zimage_ui.errors import ZImageError
from zimage_ui.request import GenerationRequest, ImageFormat, Precision, Preview
from zimage_ui.stages import Stage, Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRef:
    """How a finished picture is referred to: its server-made id and what a page needs to lay it out.

    Attributes:
        picture_id: sortable by time of making.
        seed: the seed that it was made from.
        width, height: pixels.
        image_format: of the file.
        size_bytes: of the encoded file.
        path: relative to the output folder, once it lies there; "" before, or if it could not be saved.
    """

    picture_id: str
    seed: int
    width: int
    height: int
    image_format: ImageFormat
    size_bytes: int
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The base of all events."""

    job_id: str
    at_s: float = field(default_factory=time.monotonic)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobQueued(Event):
    """A request was taken; its seed is drawn."""

    request: GenerationRequest
    client: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(Event):
    """The job is in this stage now."""

    stage: Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """A sampling step is done: `step` of `num_steps`, from 1."""

    step: int
    num_steps: int
    preview: Preview | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(Event):
    """The generator is done with the job: what it counted. Saving follows.

    Attributes:
        nfe: transformer forwards really run, for one picture of the batch.
        embedding_cache_hit: the prompt needed no text encoder.
        prompt_tokens: tokens given to the model.
        truncated_tokens: tokens beyond the model's maximum that were cut off.
        preview_ms: what all previews of this job cost together.
        memory_plan: the plan that really made the pictures; empty when the generator has none.
        shape_warm: whether their shape had been prepared; None when the generator prepares nothing.
        precision: of the transformer's matrix products.
        encoded_ahead_ms: what of the encoding was done before the job's turn; not part of encode.
    """

    nfe: int
    embedding_cache_hit: bool
    prompt_tokens: int
    truncated_tokens: int
    preview_ms: float
    memory_plan: str = ""
    shape_warm: bool | None = None
    precision: Precision = Precision.EXACT
    encoded_ahead_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureReady(Event):
    """A picture is encoded and can be shown; it is not yet safe on disk."""

    picture: PictureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSaved(Event):
    """A picture lies on disk, whole, and in the index."""

    picture: PictureRef


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished(Event):
    """All pictures of the job are saved."""

    timings: Timings


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailed(Event):
    """The job ended in an error; pictures that were ready before stay."""

    error: ZImageError


@dataclass(frozen=True, slots=True, kw_only=True)
class JobCancelled(Event):
    """The job was cancelled, in the queue or on its way."""
