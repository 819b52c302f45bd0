"""How the inside looks from outside: the JSON of every answer and event, one function each."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from PIL import Image

from zimage_ui.errors import ZImageError
from zimage_ui.events import PictureRef
from zimage_ui.generator.base import CacheStats, ModelInfo, ShapeStatus, WarmupPhase, WarmupProgress
from zimage_ui.jobs.records import JobRecord
from zimage_ui.request import Preview
from zimage_ui.storage.library import LibraryRow
from zimage_ui.telemetry.probe import Snapshot

PREVIEW_QUALITY = 85
# What changes from look to look, and is drawn as a line.
GPU_NUMBERS = (
    "utilization_pct",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "power_w",
    "nvml_used_bytes",
    "fan_pct",
)
HOST_NUMBERS = ("cpu_pct", "memory_used_bytes", "process_rss_bytes", "load_1m")


def readiness_view(
    readiness: WarmupProgress,
    model: ModelInfo | None,
    snapshot: Snapshot | None,
    shapes: Sequence[ShapeStatus] = (),
) -> dict[str, Any]:
    """Whether a picture asked for now would be made at once, and which shapes at full speed.

    Not when its GPU has stopped answering.
    """
    ready, error = readiness.phase is WarmupPhase.READY, readiness.error
    on_gpu = model is not None and model.device.startswith("cuda")
    if ready and on_gpu and snapshot is not None and snapshot.gpu_lost:
        ready, error = False, snapshot.gpu_note
    return {
        "ready": ready,
        "phase": readiness.phase.value,
        "progress": round(readiness.progress, 4),
        "detail": readiness.detail,
        "error": error,
        "model": None if model is None else model_view(model),
        "shapes": [asdict(shape) for shape in shapes],
    }


def model_view(model: ModelInfo) -> dict[str, Any]:
    """What is loaded; where it came from stays inside (it may be a path)."""
    view = asdict(model)
    del view["source"]
    view["load_ms"] = round(model.load_ms, 1)
    return view


def telemetry_view(snapshot: Snapshot, queue_length: int, pending_saves: int, cache: CacheStats) -> dict[str, Any]:
    """One look at the machine and at what waits; `age_s` tells when the sensors hang."""
    return {
        "at_s": round(snapshot.at_s, 3),
        "unix_s": round(snapshot.unix_s, 3),
        "age_s": round(max(0.0, time.monotonic() - snapshot.at_s), 3),
        "gpus": [asdict(gpu) for gpu in snapshot.gpus],
        "gpu_note": snapshot.gpu_note,
        "gpu_lost": snapshot.gpu_lost,
        "host": asdict(snapshot.host),
        "queue_length": queue_length,
        "pending_saves": pending_saves,
        "embedding_cache": asdict(cache),
    }


def history_view(snapshots: Sequence[Snapshot]) -> dict[str, Any]:
    """The sensors over several looks, oldest first: of each device every number as a list, None where it is missing.

    A GPU has a place in each list for each look, also for those at which it was not there.
    """
    places = sorted({gpu.index for snapshot in snapshots for gpu in snapshot.gpus})
    looks = [{gpu.index: gpu for gpu in snapshot.gpus} for snapshot in snapshots]
    return {
        "gpus": [{"index": place, **_columns(GPU_NUMBERS, [look.get(place) for look in looks])} for place in places],
        "host": _columns(HOST_NUMBERS, [snapshot.host for snapshot in snapshots]),
    }


def _columns(names: Sequence[str], readings: Sequence[object]) -> dict[str, list[float | None]]:
    return {name: [getattr(reading, name, None) for reading in readings] for name in names}


def job_view(record: JobRecord, model: ModelInfo | None, preview_url: str | None) -> dict[str, Any]:
    """One job as it stands now."""
    request = record.request
    until_s = time.monotonic() if record.ended_at_s is None else record.ended_at_s
    return {
        "job_id": record.job_id,
        "client": record.client,
        "phase": record.phase.value,
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "num_inference_steps": request.num_inference_steps,
        "num_images": request.num_images_per_prompt,
        "scheduler": request.scheduler.value,
        "seed": request.seed,
        "submitted_unix_s": round(record.submitted_unix_s, 3),
        "position": record.position,
        "stage": None if record.stage is None else record.stage.value,
        "step": record.step,
        "num_steps": record.num_steps,
        "preview": preview_url,
        "nfe": record.nfe,
        "embedding_cache_hit": record.embedding_cache_hit,
        "encoded_ahead_ms": record.encoded_ahead_ms,
        "prompt_tokens": record.prompt_tokens,
        "truncated_tokens": record.truncated_tokens,
        "preview_ms": record.preview_ms,
        "memory_plan": record.memory_plan,
        "shape_warm": record.shape_warm,
        "precision": record.precision,
        "pictures": [picture_view(picture) for picture in record.pictures],
        "timings_ms": None if record.timings is None else record.timings.as_dict(),
        "elapsed_ms": round((until_s - record.submitted_at_s) * 1e3, 1),
        "error": None if record.error is None else error_view(record.error),
        "untrained": model is not None and not model.trained,
        "revision": record.revision,
    }


def error_view(error: ZImageError) -> dict[str, str]:
    """An error for a page: what happened, what to do, and a name for programs."""
    return {"message": error.message, "hint": error.hint, "code": error.code}


def picture_url(picture_id: str) -> str:
    """Where a picture's file is served."""
    return f"/pictures/{picture_id}"


def picture_view(picture: PictureRef) -> dict[str, Any]:
    """A picture of a job."""
    return {
        "picture_id": picture.picture_id,
        "url": picture_url(picture.picture_id),
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "image_format": picture.image_format.value,
        "size_bytes": picture.size_bytes,
        "path": picture.path,
    }


def library_view(row: LibraryRow) -> dict[str, Any]:
    """A picture of the library, with all that its file says of itself."""
    return {
        "picture_id": row.picture_id,
        "url": picture_url(row.picture_id),
        "created_at": row.created_at.isoformat(),
        "prompt": row.prompt,
        "seed": row.seed,
        "width": row.width,
        "height": row.height,
        "image_format": row.image_format.value,
        "size_bytes": row.size_bytes,
        "path": row.path,
        "metadata": json.loads(row.metadata_json),
    }


def preview_data_url(preview: Preview) -> str:
    """A preview as a `data:` URL; JPEG, at a tenth of a PNG's size for these noisy pictures."""
    image = Image.frombytes("RGB", (preview.width, preview.height), preview.pixels)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=PREVIEW_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(encoded.getvalue()).decode()
