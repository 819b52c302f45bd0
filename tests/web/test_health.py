from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zimage_ui.generator.base import ShapeState
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase
from zimage_ui.request import GenerationRequest
from zimage_ui.telemetry.fake import FakeProbe
from zimage_ui.telemetry.probe import Snapshot

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker


def test_a_process_lives_before_it_is_ready(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False) as studio:
        assert studio.client.get("/livez").json() == {"live": True}
        response = studio.client.get("/readyz")
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) > 0
        assert response.json() == {
            "ready": False, "phase": "starting", "progress": 0, "detail": "", "error": "", "model": None,
            "shapes": [],
        }  # fmt: skip


def test_a_warm_service_is_ready_and_says_what_is_loaded(shared: Studio) -> None:
    response = shared.client.get("/readyz")

    assert response.status_code == 200
    view = response.json()
    assert (view["ready"], view["phase"], view["progress"]) == (True, "ready", 1)
    model = view["model"]
    assert (model["name"], model["trained"], model["profile"]["num_inference_steps"]) == ("fake", False, 8)
    assert model["profile"]["sizes"][0] == [384, 384]
    assert model["dtype_reason"]
    assert "source" not in model


def test_what_is_still_written_is_no_job(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False) as studio:
        queue = studio.services.jobs._queue
        sent = {"prompt": "a red boat", "negative_prompt": "fog", "guidance_scale": 3}
        assert studio.client.post("/api/draft", json=sent).status_code == 204
        assert queue.announced == GenerationRequest(prompt="a red boat", negative_prompt="fog", guidance_scale=3.0)
        for mistaken in ({"prompt": ""}, {"prompt": "x" * 9_000}, {"prompt": "a boat", "guidance_scale": 99}):
            assert studio.client.post("/api/draft", json=mistaken).status_code == 204
        assert queue.announced.prompt == "a red boat"
        assert (studio.services.jobs.queue_length, studio.board.active()) == (0, ())


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'{"prompt": 7}', b"{}", b'{"prompt": "a boat", "seed": 1}', b'{"prompt": "\\ud800"}x'],
)
def test_what_is_no_draft_is_told_in_our_shape(shared: Studio, body: bytes) -> None:
    response = shared.client.post("/api/draft", content=body, headers={"Content-Type": "application/json"})

    assert 400 <= response.status_code < 500
    assert response.json()["error"]["message"]


def test_it_says_of_each_shape_whether_it_is_warm(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(FakeScript(prepare_s=0.0), prepare_gate=threading.Event())
    assert generator.prepare_gate is not None
    with run_studio(tmp_path, generator=generator) as studio:
        try:
            studio.wait_for(lambda: any(shape.state is ShapeState.PREPARING for shape in studio.board.shapes))
            shapes = studio.client.get("/readyz").json()["shapes"]
            assert shapes[0] == {
                "width": 384, "height": 384, "prompt_tokens": 64, "num_images": 1, "state": "warm",
            }  # fmt: skip
            assert [shape["state"] for shape in shapes[1:3]] == ["preparing", "cold"]
        finally:
            generator.prepare_gate.set()
        studio.wait_for(lambda: {shape.state for shape in studio.board.shapes} == {ShapeState.WARM})
        assert {shape["state"] for shape in studio.client.get("/readyz").json()["shapes"]} == {"warm"}


def test_a_service_that_cannot_load_says_why_and_lives(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, generator=FakeGenerator(FakeScript(fail_load=True))) as studio:
        studio.wait_for(lambda: bool(studio.board.readiness.error))
        response = studio.client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["phase"] == "failed"
        assert "told not to be found" in response.json()["error"]
        assert studio.client.get("/livez").status_code == 200


def test_asking_for_the_warm_up_tells_how_far_it_is(shared: Studio) -> None:
    for _ in range(2):
        response = shared.client.post("/api/warmup")
        assert response.status_code == 200
        assert response.json() == shared.client.get("/readyz").json()


def test_a_lost_gpu_makes_a_service_on_it_unready_but_not_one_on_a_processor(
    tmp_path: Path, run_studio: StudioMaker
) -> None:
    lost = FakeProbe([Snapshot(at_s=0, unix_s=0, gpu_note="The NVIDIA GPU has stopped answering.", gpu_lost=True)])
    with run_studio(tmp_path, probe=lost) as studio:
        studio.wait_until_ready()
        read = threading.Event()
        with studio.services.sampler.subscribe(read.set):
            assert read.wait(10)
        assert studio.client.get("/readyz").status_code == 200

        model = studio.board.model
        assert model is not None
        studio.board.publish_model(replace(model, device="cuda:0"))
        response = studio.client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["ready"] is False
        assert "stopped answering" in response.json()["error"]


def test_cancelling_is_the_same_however_often_it_is_asked(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator) as studio:
        studio.wait_until_ready()
        job = studio.services.jobs.submit(GenerationRequest(prompt="a fox", width=256, height=256))
        assert generator.entered.wait(10)
        path = f"/api/jobs/{job.job_id}/cancel"
        for _ in range(2):
            assert studio.client.post(path).json() == {"job_id": job.job_id, "cancelled": True}
        assert generator.gate is not None
        generator.gate.set()
        assert studio.services.jobs.future(job.job_id).result(10).phase is JobPhase.CANCELLED
        assert studio.client.post(path).json()["cancelled"] is True


def test_cancelling_what_never_was_is_an_error(shared: Studio) -> None:
    response = shared.client.post("/api/jobs/0123456789abcdef/cancel")

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_a_finished_job_cannot_be_cancelled(shared: Studio) -> None:
    job = shared.services.jobs.submit(GenerationRequest(prompt="a fox", width=256, height=256))
    shared.services.jobs.future(job.job_id).result(10)

    assert shared.client.post(f"/api/jobs/{job.job_id}/cancel").json()["cancelled"] is False


def test_api_addresses_are_answered_in_our_shape(shared: Studio) -> None:
    for method, path, status in (
        ("GET", "/api/warmup", 405),
        ("GET", "/api/nothing", 404),
        ("POST", "/api/pictures", 405),
    ):
        response = shared.client.request(method, path)
        assert response.status_code == status
        assert response.json()["error"]["message"]
