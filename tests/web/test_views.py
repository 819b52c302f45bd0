from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import pytest
from PIL import Image

from zimage_ui.events import (
    JobCancelled,
    JobFinished,
    JobQueued,
    PictureRef,
    PictureSaved,
    Sampled,
    StageStarted,
    StepDone,
)
from zimage_ui.generator.base import CacheStats, WarmupPhase, WarmupProgress
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.jobs.board import Board
from zimage_ui.jobs.records import JobRecord
from zimage_ui.request import GenerationRequest, ImageFormat, Precision, Preview
from zimage_ui.stages import Stage, Timings
from zimage_ui.telemetry.fake import fake_gpu, fake_host
from zimage_ui.telemetry.probe import Snapshot
from zimage_ui.web import views

MODEL = FakeGenerator().load(lambda _: None)
READY = WarmupProgress(phase=WarmupPhase.READY, progress=1.0)
SNAPSHOT = Snapshot(at_s=1.0, unix_s=2.0, gpus=(fake_gpu(0.5),), host=fake_host())


def recorded(*events: object) -> JobRecord:
    board = Board()
    board.publish(
        JobQueued(
            job_id="j", at_s=10.0, client="me", request=GenerationRequest(prompt="狐", width=64, height=64, seed=3)
        )
    )
    for event in events:
        board.publish(event)  # type: ignore[arg-type]
    record = board.get("j")
    assert record is not None
    return record


def test_a_history_has_a_place_for_every_look_in_every_list() -> None:
    two = replace(SNAPSHOT, at_s=2.0, gpus=(*SNAPSHOT.gpus, replace(fake_gpu(0.9), index=1, fan_pct=None)))
    view = views.history_view([SNAPSHOT, two])

    first, second = view["gpus"]
    assert (first["index"], second["index"]) == (0, 1)
    assert first["temperature_c"] == [fake_gpu(0.5).temperature_c] * 2
    assert second["temperature_c"] == [None, fake_gpu(0.9).temperature_c]
    assert second["fan_pct"] == [None, None]
    assert view["host"]["cpu_pct"] == [fake_host().cpu_pct] * 2
    assert set(view["host"]) == set(views.HOST_NUMBERS)
    assert views.history_view([]) == {"gpus": [], "host": {name: [] for name in views.HOST_NUMBERS}}


def test_a_waiting_job() -> None:
    view = views.job_view(recorded(), MODEL, None)

    assert view["phase"] == "queued"
    assert view["prompt"] == "狐"
    assert (view["seed"], view["stage"], view["timings_ms"], view["error"], view["nfe"]) == (3, None, None, None, None)
    assert view["elapsed_ms"] > 0
    assert view["untrained"] is True
    assert json.loads(json.dumps(view)) == view


def test_a_job_that_is_done() -> None:
    picture = PictureRef(
        picture_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", seed=3, width=64, height=64, image_format=ImageFormat.WEBP,
        size_bytes=9, path="2026-11-21/01ARZ3NDEKTSV4RRFFQ69G5FAV.webp",
    )  # fmt: skip
    timings = Timings.account(queue_ms=1, stage_ms=dict.fromkeys(Stage, 2.0), total_ms=10)
    record = recorded(
        StageStarted(job_id="j", at_s=10.1, stage=Stage.SAMPLE),
        StepDone(job_id="j", at_s=10.2, step=8, num_steps=8, preview=None),
        Sampled(
            job_id="j",
            nfe=8,
            embedding_cache_hit=True,
            prompt_tokens=5,
            truncated_tokens=0,
            preview_ms=0.5,
            memory_plan="smallest",
            shape_warm=False,
            precision=Precision.FP8,
            encoded_ahead_ms=431.5,
        ),
        PictureSaved(job_id="j", picture=picture),
        JobFinished(job_id="j", at_s=10.5, timings=timings),
    )

    view = views.job_view(record, replace(MODEL, trained=True), None)

    assert view["phase"] == "done"
    assert view["elapsed_ms"] == 500
    assert view["timings_ms"] == timings.as_dict()
    assert (view["step"], view["num_steps"], view["nfe"], view["embedding_cache_hit"]) == (8, 8, 8, True)
    assert (view["memory_plan"], view["shape_warm"]) == ("smallest", False)
    assert view["memory_plan"] == "smallest"
    assert view["precision"] == "fp8"
    assert view["encoded_ahead_ms"] == 431.5
    assert view["untrained"] is False
    assert view["pictures"] == [
        {
            "picture_id": picture.picture_id, "url": f"/pictures/{picture.picture_id}", "seed": 3, "width": 64,
            "height": 64, "image_format": "webp", "size_bytes": 9, "path": picture.path,
        }
    ]  # fmt: skip


def test_a_cancelled_job_stops_counting() -> None:
    assert views.job_view(recorded(JobCancelled(job_id="j", at_s=12.0)), None, None)["elapsed_ms"] == 2_000


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
@pytest.mark.parametrize("lost", [False, True])
def test_ready_means_that_the_device_answers(device: str, lost: bool) -> None:
    snapshot = replace(SNAPSHOT, gpu_lost=lost, gpu_note="lost" if lost else "")

    view = views.readiness_view(READY, replace(MODEL, device=device), snapshot)

    assert view["ready"] is not (lost and device == "cuda:0")
    assert view["error"] == ("" if view["ready"] else "lost")
    assert view["phase"] == "ready"


def test_a_service_without_a_model_yet() -> None:
    progress = WarmupProgress(phase=WarmupPhase.DOWNLOADING, progress=0.123456, detail="3 of 7 files")

    assert views.readiness_view(progress, None, None) == {
        "ready": False, "phase": "downloading", "progress": 0.1235, "detail": "3 of 7 files", "error": "",
        "model": None, "shapes": [],
    }  # fmt: skip


def test_a_look_at_the_machine() -> None:
    view = views.telemetry_view(SNAPSHOT, 3, 2, CacheStats(hits=5))

    assert (view["queue_length"], view["pending_saves"], view["embedding_cache"]["hits"]) == (3, 2, 5)
    assert view["gpus"][0]["temperature_c"] == 58
    assert view["age_s"] > 0
    json.dumps(view, allow_nan=False)


def test_the_source_of_a_model_stays_inside() -> None:
    assert "source" not in views.model_view(replace(MODEL, source="/home/somebody/models"))


def test_a_model_brings_its_examples_along() -> None:
    view = json.loads(json.dumps(views.model_view(MODEL)))
    assert view["profile"]["examples"] == [{"en": each.en, "zh": each.zh} for each in MODEL.profile.examples]
    assert view["profile"]["examples"]


def test_a_preview_is_a_small_jpeg() -> None:
    pixels = bytes(value for _ in range(64) for value in (200, 30, 30))

    kind, _, data = views.preview_data_url(Preview(width=8, height=8, pixels=pixels)).partition(",")

    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg;base64"
    assert image.size == (8, 8)
    red, green, blue = image.getpixel((4, 4))  # type: ignore[misc]
    assert abs(red - 200) < 12
    assert abs(green - 30) < 12
    assert abs(blue - 30) < 12
