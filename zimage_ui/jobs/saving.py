"""From the generator's pixels to the end of a job: one save order for each picture, and the account when all are in.

The worker hands a job over here and takes the next one; the rest happens on the saver's threads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from zimage_ui.errors import StorageError, ZImageError
from zimage_ui.events import Event, JobFailed, JobFinished, PictureReady, PictureRef, PictureSaved
from zimage_ui.generator.base import GenerationResult, ModelInfo
from zimage_ui.jobs.queue import Job
from zimage_ui.request import GeneratedImage, GenerationRequest
from zimage_ui.stages import Stage, Timings
from zimage_ui.storage.files import new_picture_id
from zimage_ui.storage.metadata import PictureMetadata
from zimage_ui.storage.saver import SaveOrder, Saver

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeJob:
    """A job whose pictures are made and not yet saved.

    Attributes:
        job: what was asked.
        result: what the generator made of it.
        model: by which model.
        begun_at_s, made_at_s: when its first stage began and its last one ended (monotonic seconds).
    """

    job: Job
    result: GenerationResult
    model: ModelInfo
    begun_at_s: float
    made_at_s: float

    @property
    def queue_ms(self) -> float:
        """The wait from the submission to the first stage."""
        return (self.begun_at_s - self.job.submitted_at_s) * 1e3

    def account(self, saved_at_s: float) -> Timings:
        """Where the time went, when the last picture was saved at `saved_at_s` (monotonic seconds)."""
        return Timings.account(
            queue_ms=self.queue_ms,
            stage_ms={**self.result.stage_ms, Stage.SAVE: (saved_at_s - self.made_at_s) * 1e3},
            total_ms=(saved_at_s - self.job.submitted_at_s) * 1e3,
        )

    def metadata(self, image: GeneratedImage) -> PictureMetadata:
        """What is kept with one of the pictures: all it takes to make it again, and what its making took.

        The time of saving cannot be in the file that is being saved; the job's record has it.
        """
        return picture_metadata(image, self.job.request, self.result, self.model, queue_ms=self.queue_ms)


def picture_metadata(
    image: GeneratedImage, request: GenerationRequest, result: GenerationResult, model: ModelInfo, *, queue_ms: float
) -> PictureMetadata:
    """What is kept with `image`, one of those that `model` made of `request`; its id and its time are of now."""
    spent_ms = {"queue": queue_ms, **{stage.value: spent_ms for stage, spent_ms in result.stage_ms.items()}}
    return PictureMetadata(
        picture_id=new_picture_id(),
        created_at=datetime.now().astimezone(),
        request=replace(request, seed=image.seed, num_images_per_prompt=1),
        index=image.index,
        nfe=result.nfe,
        model_name=model.name,
        model_fingerprint=model.fingerprint,
        model_trained=model.trained,
        dtype=model.dtype,
        versions=dict(model.versions),
        timings_ms={name: round(milliseconds, 3) for name, milliseconds in spent_ms.items()},
        prompt_tokens=result.prompt_tokens,
        truncated_tokens=result.truncated_tokens,
        memory_plan=result.memory_plan,
        precision=result.precision,
    )


class JobSaving:
    """The saving of one job: publishes each picture as it becomes ready and safe, and with the last one the end."""

    def __init__(self, made: MadeJob, publish: Callable[[Event], None]) -> None:
        # Without the pixels: each order has its own, and whoever keeps a callback must not keep all of them.
        self._images = made.result.images
        self._made = replace(made, result=replace(made.result, images=()))
        self._publish = publish
        self._job_id = made.job.job_id
        self._lock = threading.Lock()
        self._count = len(self._images)
        self._open: set[str] = set()  # ids of pictures that met no end yet
        self._shown: set[str] = set()
        self._errors: dict[str, ZImageError] = {}

    def submit_to(self, saver: Saver) -> None:
        """Order every picture to be saved; waits when the saver has too many before them."""
        orders, self._images = [self._order(image) for image in self._images], ()
        self._open = {order.picture_id for order in orders}
        for order in orders:
            try:
                saver.submit(order)
            except ZImageError as error:  # a saver that takes no more: the other pictures still get their end
                order.on_failed(error)

    def _order(self, image: GeneratedImage) -> SaveOrder:
        metadata = self._made.metadata(image)
        return SaveOrder(
            picture_id=metadata.picture_id,
            image=image,
            metadata=metadata,
            image_format=metadata.request.image_format,
            on_ready=self._ready,
            on_saved=self._saved,
            on_failed=partial(self._failed, metadata.picture_id),
        )

    def _ready(self, picture: PictureRef) -> None:
        self._shown.add(picture.picture_id)
        self._publish(PictureReady(job_id=self._job_id, picture=picture))

    def _saved(self, picture: PictureRef) -> None:
        self._publish(PictureSaved(job_id=self._job_id, picture=picture))
        self._one_less(picture.picture_id)

    def _failed(self, picture_id: str, error: ZImageError) -> None:
        logger.error("a picture of job %s could not be saved: %s", self._job_id, error)
        self._one_less(picture_id, error)

    def _one_less(self, picture_id: str, error: ZImageError | None = None) -> None:
        """One picture met its end; the last one's is the job's. A picture that is saved after all had met it before."""
        with self._lock:
            if picture_id not in self._open:
                return
            self._open.remove(picture_id)
            if error is not None:
                self._errors[picture_id] = error
            if self._open:
                return
        now_s = time.monotonic()
        if self._errors:
            self._publish(JobFailed(job_id=self._job_id, at_s=now_s, error=self._summary()))
        else:
            self._publish(JobFinished(job_id=self._job_id, at_s=now_s, timings=self._made.account(now_s)))

    def _summary(self) -> ZImageError:
        first, lost = next(iter(self._errors.values())), len(self._errors.keys() - self._shown)
        what = "The picture was made" if self._count == 1 else f"All {self._count} pictures were made"
        which = "it" if self._count == 1 else f"{len(self._errors)} of them"
        if not lost:
            what, hint = f"{what} and can be seen", first.hint
        else:
            fate = "It is lost" if self._count == 1 else f"{lost} of them cannot be seen and are lost"
            hint = f"{fate}: make it again with the same seed. {first.hint}".rstrip()
        return StorageError(f"{what}, but {which} could not be saved: {first.message}", hint)
