from __future__ import annotations

import base64
import errno
import io
import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest
from PIL import Image

from zimage_ui.errors import StorageError
from zimage_ui.generator.fake import FakeGenerator, FakeScript
from zimage_ui.jobs.records import JobPhase
from zimage_ui.stages import Stage
from zimage_ui.storage import files

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

PATH = "/v1/images/generations"
TIMINGS = {"queue", "encode", "sample", "decode", "save", "other", "total"}


@pytest.fixture
def openai_client(shared: Studio) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared.server.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def ask(studio: Studio, **body: Any) -> httpx.Response:
    return studio.client.post(PATH, json=body)


def opened(encoded: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    image.load()
    return image


def test_a_prompt_becomes_a_picture_with_its_account(shared: Studio) -> None:
    answer = ask(shared, prompt="a red fox", seed=7).json()

    (picture,) = answer["data"]
    image = opened(picture["b64_json"])
    assert image.format == "PNG"
    assert image.size == (384, 384)
    assert "a red fox" in image.info["parameters"]
    assert picture["seed"] == answer["seed"] == 7
    assert answer["nfe"] == answer["num_inference_steps"] == 8
    assert answer["memory_plan"] == "none"
    assert answer["precision"] == "exact"
    assert answer["size"] == "384x384"
    assert answer["output_format"] == "png"
    assert answer["untrained"] is True
    timings = answer["timings_ms"]
    assert set(timings) == TIMINGS
    assert sum(timings.values()) - timings["total"] == pytest.approx(timings["total"], abs=0.01)
    saved = shared.services.settings.output_dir / picture["path"]
    assert saved.read_bytes() == base64.b64decode(picture["b64_json"])


@pytest.mark.parametrize(("output_format", "format_name"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_every_field_reaches_the_picture(shared: Studio, output_format: str, format_name: str) -> None:
    answer = ask(
        shared, prompt="山水", n=2, size="320x192", seed=41, num_inference_steps=3, guidance_scale=0, scheduler="unipc",
        negative_prompt="blurry", output_format=output_format, response_format="b64_json",
    ).json()  # fmt: skip

    images = [opened(picture["b64_json"]) for picture in answer["data"]]
    assert [(image.format, image.size) for image in images] == [(format_name, (320, 192))] * 2
    assert [picture["seed"] for picture in answer["data"]] == [41, 42]
    assert (answer["nfe"], answer["scheduler"], answer["output_format"]) == (3, "unipc", output_format)
    row = shared.services.library.get(answer["data"][1]["picture_id"])
    assert (row.prompt, row.seed) == ("山水", 42)


def test_a_picture_may_be_named_by_its_address(shared: Studio) -> None:
    (picture,) = ask(shared, prompt="a fox", response_format="url").json()["data"]

    assert "b64_json" not in picture
    assert picture["url"].startswith(shared.server.url + "/pictures/")
    assert httpx.get(picture["url"]).headers["content-type"] == "image/png"


def test_a_seed_that_is_not_given_is_drawn_and_told(shared: Studio) -> None:
    first, second = (ask(shared, prompt="a fox", seed=seed).json() for seed in (None, -1))

    assert first["seed"] != second["seed"]
    assert ask(shared, prompt="a fox", seed=first["seed"]).json()["seed"] == first["seed"]


def test_null_means_not_given_and_what_means_nothing_here_is_ignored(shared: Studio) -> None:
    response = ask(
        shared, prompt="a fox", n=None, size="auto", response_format=None, model="gpt-image-1", quality="high",
        user="me", style=None, background="auto", moderation="low", output_compression=80, stream=False,
    )  # fmt: skip

    assert response.status_code == 200
    assert response.json()["size"] == "384x384"


HUGE = "9" * 400
INVALID: list[tuple[str, str, str]] = [
    # body, param, part of the message
    ('{"prompt": ""}', "prompt", "empty"),
    ('{"prompt": "   \\n"}', "prompt", "empty"),
    ('{"prompt": null}', "prompt", "null"),
    ('{"prompt": ["a"]}', "prompt", "a list"),
    ('{"prompt": {"a": 1}}', "prompt", "an object"),
    ('{"prompt": 7}', "prompt", "7"),
    ("{}", "prompt", "missing"),
    ('{"prompt": "' + "x" * 8_001 + '"}', "prompt", "8,001 characters"),
    ('{"prompt": "a", "negative_prompt": 1}', "negative_prompt", "1"),
    ('{"prompt": "a", "negative_prompt": "' + "x" * 8_001 + '"}', "negative_prompt", "8,001 characters"),
    ('{"prompt": "a", "size": "0x0"}', "size", "64"),
    ('{"prompt": "a", "size": "7x512"}', "size", "64"),
    ('{"prompt": "a", "size": "-1x-1"}', "size", "WIDTHxHEIGHT"),
    ('{"prompt": "a", "size": "99999x99999"}', "size", "2048"),
    ('{"prompt": "a", "size": "1000000000x1000000000"}', "size", "characters"),
    ('{"prompt": "a", "size": "1025x1024"}', "size", "1024"),
    ('{"prompt": "a", "size": "NaNx512"}', "size", "WIDTHxHEIGHT"),
    ('{"prompt": "a", "size": "٥١٢x512"}', "size", "WIDTHxHEIGHT"),
    ('{"prompt": "a", "size": 512}', "size", "512"),
    ('{"prompt": "a", "size": ""}', "size", "WIDTHxHEIGHT"),
    ('{"prompt": "a", "n": 0}', "n", "greater than or equal to 1"),
    ('{"prompt": "a", "n": 9}', "n", "less than or equal to 8"),
    ('{"prompt": "a", "n": true}', "n", "true"),
    ('{"prompt": "a", "n": "2"}', "n", "'2'"),
    ('{"prompt": "a", "n": 1.5}', "n", "1.5"),
    ('{"prompt": "a", "n": NaN}', "n", "NaN"),
    ('{"prompt": "a", "n": ' + HUGE + "}", "n", "more than 20 digits"),
    ('{"prompt": "a", "num_inference_steps": 0}', "num_inference_steps", "greater than or equal to 1"),
    ('{"prompt": "a", "num_inference_steps": 101}', "num_inference_steps", "less than or equal to 100"),
    ('{"prompt": "a", "num_inference_steps": 1e400}', "num_inference_steps", "Infinity"),
    ('{"prompt": "a", "guidance_scale": -0.1}', "guidance_scale", "greater than or equal to 0"),
    ('{"prompt": "a", "guidance_scale": 20.5}', "guidance_scale", "less than or equal to 20"),
    ('{"prompt": "a", "guidance_scale": NaN}', "guidance_scale", "NaN"),
    ('{"prompt": "a", "guidance_scale": Infinity}', "guidance_scale", "Infinity"),
    ('{"prompt": "a", "guidance_scale": true}', "guidance_scale", "true"),
    ('{"prompt": "a", "seed": -2}', "seed", "greater than or equal to -1"),
    ('{"prompt": "a", "seed": 18446744073709551616}', "seed", "less than or equal to"),
    ('{"prompt": "a", "seed": 9007199254740991, "n": 2}', "seed", "9007199254740990"),
    ('{"prompt": "a", "seed": "abc"}', "seed", "'abc'"),
    ('{"prompt": "a", "seed": 1.0}', "seed", "1.0"),
    ('{"prompt": "a", "seed": false}', "seed", "false"),
    ('{"prompt": "a", "seed": ' + HUGE + "}", "seed", "more than 20 digits"),
    ('{"prompt": "a", "seed": -' + HUGE + "}", "seed", "more than 20 digits"),
    ('{"prompt": "a", "scheduler": "ddim"}', "scheduler", "'ddim'"),
    ('{"prompt": "a", "response_format": "png"}', "response_format", "'png'"),
    ('{"prompt": "a", "output_format": "gif"}', "output_format", "'gif'"),
    ('{"prompt": "a", "stream": true}', "stream", "true"),
    ('{"prompt": "a", "sede": 7}', "sede", "'sede'"),
    ('{"prompt": "a", "filename": "../../x"}', "filename", "'filename'"),
    ('["prompt"]', "", "object"),
    ("7", "", "object"),
    ("null", "", "object"),
]


@pytest.mark.parametrize(("body", "param", "part"), INVALID, ids=[body[:60] for body, _, _ in INVALID])
def test_what_cannot_be_made_is_said_clearly(shared: Studio, body: str, param: str, part: str) -> None:
    queued_before = len(shared.board.recent(500))

    response = shared.client.post(PATH, content=body.encode(), headers={"Content-Type": "application/json"})

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_request"
    assert error["param"] == (param or None)
    assert part in error["message"]
    assert len(error["message"]) < 1_000
    assert len(shared.board.recent(500)) == queued_before
    assert shared.board.active() == ()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "a"',
        b'{"prompt": "a",}',
        b"prompt=a",
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\\udc00b"}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\xed\xa0\x80"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "a", "seed": ' + b"9" * 5_000 + b"}",
    ],
    ids=range(12),
)
def test_what_is_no_json_is_said_clearly(shared: Studio, body: bytes) -> None:
    response = shared.client.post(PATH, content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["code"] == "invalid_json"
    assert "cannot be read" in error["message"]


def test_an_endless_prompt_is_refused_before_it_is_read(shared: Studio) -> None:
    body = b'{"prompt": "' + b"x" * 2**20 + b'"}'

    response = shared.client.post(PATH, content=body, headers={"Content-Type": "application/json"})

    assert response.status_code == 413
    assert response.json()["error"]["code"] == "body_too_large"
    assert "1,048,576 bytes" in response.json()["error"]["message"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_body_that_is_not_said_to_be_json_is_refused(shared: Studio, media_type: str) -> None:
    """Those are the types that a foreign page may send without asking."""
    response = shared.client.post(PATH, content=b'{"prompt": "a"}', headers={"Content-Type": media_type})

    assert response.status_code == 415
    assert response.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "prompt", ["🦊👩‍👩‍👧", "\u202eabc", "a\u0000b", "<script>alert(1)</script>", "../../etc/passwd", "שלום"]
)
def test_strange_prompts_make_pictures_under_server_made_names(shared: Studio, prompt: str) -> None:
    (picture,) = ask(shared, prompt=prompt).json()["data"]

    assert shared.services.library.get(picture["picture_id"]).prompt == prompt
    assert Path(picture["path"]).stem == picture["picture_id"]


def test_wrong_methods_and_addresses_are_answered_in_our_shape(shared: Studio) -> None:
    for method, path, status in (
        ("GET", PATH, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/nothing", 404),
    ):
        response = shared.client.request(method, path)
        assert response.status_code == status, path
        assert response.json()["error"]["code"]


def test_the_models_of_the_service(shared: Studio) -> None:
    (model,) = shared.client.get("/v1/models").json()["data"]

    assert (model["id"], model["object"], model["owned_by"]) == ("fake", "model", "zimage-ui")
    assert model["untrained"] is True


def test_a_failed_job_is_an_error_that_is_not_tried_again(tmp_path: Path, run_studio: StudioMaker) -> None:
    cases = [
        (FakeScript(fail_at=Stage.SAMPLE, failures=1), 500, "generation_failed"),
        (FakeScript(out_of_memory_at=Stage.DECODE, failures=1), 500, "out_of_memory"),
    ]
    for number, (script, status, code) in enumerate(cases):
        with run_studio(tmp_path / str(number), generator=FakeGenerator(script)) as studio:
            response = ask(studio, prompt="a fox")
            assert response.status_code == status
            assert response.json()["error"]["code"] == code
            assert response.json()["error"]["type"] == "server_error"
            assert response.headers["x-should-retry"] == "false"
            assert ask(studio, prompt="a fox").status_code == 200


def test_a_picture_that_cannot_be_saved_is_a_storage_error(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StorageError("The disk is full.", "Make room.")

    monkeypatch.setattr(type(studio.services.saver), "submit", full)

    response = ask(studio, prompt="a fox")

    assert response.status_code == 507
    assert "Make room." in response.json()["error"]["message"]


def test_a_picture_that_the_disk_refuses_can_still_be_fetched(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "_write_whole", full)

    response = ask(studio, prompt="a fox", n=2)

    assert response.status_code == 507
    pictures = response.json()["error"]["pictures"]
    assert len({picture["picture_id"] for picture in pictures}) == 2
    for picture in pictures:
        image = Image.open(io.BytesIO(httpx.get(picture["url"]).content))
        assert image.size == (384, 384)
    monkeypatch.undo()  # the disk has room again, so nothing is left to be saved at the end


def test_whoever_hangs_up_while_the_model_is_loaded_gives_up_the_place(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False, queue_size=1) as studio, ThreadPoolExecutor() as pool:
        brief = httpx.Timeout(10, read=0.2)
        with pytest.raises(httpx.ReadTimeout):
            studio.client.post(PATH, json={"prompt": "gone"}, timeout=brief)
        # The server hears of it in its own time; until then, the place is taken and that is said at once.
        for _ in range(200):
            try:
                assert studio.client.post(PATH, json={"prompt": "gone too"}, timeout=brief).status_code == 503
            except httpx.ReadTimeout:
                break
        else:
            pytest.fail("the place was never given up")
        studio.services.jobs.start()
        studio.wait_until_ready()
        assert pool.submit(ask, studio, prompt="still here").result(30).status_code == 200
        assert {record.request.prompt for record in studio.board.recent(5)} <= {"still here", "gone too"}


def test_a_call_during_the_warm_up_waits_for_its_turn(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False) as studio, ThreadPoolExecutor() as pool:
        assert studio.client.get("/v1/models").json()["data"] == []
        call = pool.submit(ask, studio, prompt="a fox")
        assert not call.done()
        studio.services.jobs.start()
        assert call.result(30).status_code == 200


def test_a_call_for_a_model_that_cannot_be_loaded_is_told_so(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(FakeScript(fail_load=True))
    with run_studio(tmp_path, generator=generator, started=False) as studio, ThreadPoolExecutor() as pool:
        call = pool.submit(ask, studio, prompt="a fox")
        studio.services.jobs.start()
        for response in (call.result(30), ask(studio, prompt="a fox")):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "not_ready"
            assert int(response.headers["retry-after"]) > 0


def test_no_more_calls_wait_for_the_model_than_the_queue_takes(tmp_path: Path, run_studio: StudioMaker) -> None:
    with run_studio(tmp_path, started=False, queue_size=1) as studio, ThreadPoolExecutor() as pool:
        calls = [pool.submit(ask, studio, prompt="a fox") for _ in range(2)]
        first = next(iter(_as_completed(calls)))
        assert first.status_code == 503
        assert first.json()["error"]["code"] == "queue_full"
        studio.services.jobs.start()
        assert sorted(call.result(30).status_code for call in calls) == [200, 503]


def _as_completed(calls: list[Any]) -> Iterator[httpx.Response]:
    from concurrent.futures import as_completed

    return (call.result() for call in as_completed(calls, timeout=30))


def test_a_full_queue_says_when_to_come_back_and_recovers(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator, queue_size=2) as studio, ThreadPoolExecutor(16) as pool:
        studio.wait_until_ready()
        running = pool.submit(ask, studio, prompt="the first")
        assert generator.entered.wait(30)
        flood = [pool.submit(ask, studio, prompt=f"number {number}") for number in range(10)]
        refused = [response for _, response in zip(range(8), _as_completed(flood), strict=False)]
        assert {response.status_code for response in refused} == {503}
        for response in refused:
            assert response.json()["error"]["code"] == "queue_full"
            assert int(response.headers["retry-after"]) >= 1
        assert generator.gate is not None
        generator.gate.set()
        assert running.result(30).status_code == 200
        assert sorted(call.result(30).status_code for call in flood) == [200] * 2 + [503] * 8
        assert ask(studio, prompt="after all").status_code == 200


def test_whoever_hangs_up_loses_the_answer_but_not_the_picture(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator) as studio:
        studio.wait_until_ready()
        with pytest.raises(httpx.ReadTimeout):
            studio.client.post(PATH, json={"prompt": "left alone"}, timeout=httpx.Timeout(5, read=0.2))
        studio.wait_for(lambda: len(studio.board.active()) == 1)
        (job,) = studio.board.active()
        assert generator.gate is not None
        generator.gate.set()
        assert studio.services.jobs.future(job.job_id).result(30).phase is JobPhase.DONE
        assert [row.prompt for row in studio.services.library.newest(5)] == ["left alone"]


def test_a_cancelled_job_is_told_as_such(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator) as studio, ThreadPoolExecutor() as pool:
        studio.wait_until_ready()
        call = pool.submit(ask, studio, prompt="a fox")
        assert generator.entered.wait(30)
        (job,) = studio.board.active()
        assert studio.client.post(f"/api/jobs/{job.job_id}/cancel").json()["cancelled"] is True
        assert generator.gate is not None
        generator.gate.set()
        response = call.result(30)
        assert response.status_code == 409
        assert response.json()["error"]["code"] == "cancelled"
        assert response.headers["x-should-retry"] == "false"


def test_the_answer_names_the_format_that_the_file_really_has(shared: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_name: str) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)  # without it no JPEG can be encoded
    answer = ask(shared, prompt="a red fox", n=2, output_format="jpeg").json()
    assert [opened(picture["b64_json"]).format for picture in answer["data"]] == ["PNG"] * 2
    assert [picture["output_format"] for picture in answer["data"]] == ["png"] * 2
    assert answer["output_format"] == "png"


def test_waiting_calls_hold_no_threads(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator, queue_size=100) as studio, ThreadPoolExecutor(45) as pool:
        studio.wait_until_ready()
        calls = [pool.submit(ask, studio, prompt=f"number {number}") for number in range(45)]
        studio.wait_for(lambda: len(studio.board.active()) == 45)
        # More than the 40 threads that Starlette has, and yet what needs a thread is answered at once.
        assert studio.client.get("/api/pictures").status_code == 200
        assert studio.client.get("/metrics").status_code == 200
        assert generator.gate is not None
        generator.gate.set()
        assert {call.result(60).status_code for call in calls} == {200}


def test_the_official_client_makes_pictures(openai_client: openai.OpenAI) -> None:
    answer = openai_client.images.generate(
        prompt="a red fox", model="fake", n=2, size="512x512", response_format="b64_json", quality="standard",
        user="somebody", extra_body={"seed": 7, "num_inference_steps": 2},
    )  # fmt: skip

    assert answer.data is not None
    assert [opened(picture.b64_json or "").size for picture in answer.data] == [(512, 512)] * 2
    assert answer.created > 1_700_000_000
    assert answer.size == "512x512"
    extra = answer.model_extra or {}
    assert (extra["seed"], extra["nfe"]) == (7, 2)
    assert set(extra["timings_ms"]) == TIMINGS


def test_the_official_client_reads_addresses_and_models(openai_client: openai.OpenAI) -> None:
    answer = openai_client.images.generate(prompt="a red fox", response_format="url", output_format="webp")

    assert answer.data is not None
    assert answer.data[0].url is not None
    assert httpx.get(answer.data[0].url).headers["content-type"] == "image/webp"
    assert [model.id for model in openai_client.models.list()] == ["fake"]


def test_the_official_client_knows_our_errors(openai_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        openai_client.images.generate(prompt="a fox", size="1025x1024")  # type: ignore[call-overload]
    assert caught.value.param == "size"
    assert caught.value.code == "invalid_request"

    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("nothing")


def test_the_official_client_comes_back_when_told_to(tmp_path: Path, run_studio: StudioMaker) -> None:
    generator = FakeGenerator(gate=threading.Event())
    with run_studio(tmp_path, generator=generator, queue_size=1) as studio, ThreadPoolExecutor() as pool:
        studio.wait_until_ready()
        running = pool.submit(ask, studio, prompt="running")
        assert generator.entered.wait(30)
        waiting = pool.submit(ask, studio, prompt="waiting")
        studio.wait_for(lambda: len(studio.board.active()) == 2)
        with (
            openai.OpenAI(base_url=f"{studio.server.url}/v1", api_key="none", max_retries=0) as client,
            pytest.raises(openai.InternalServerError) as caught,
        ):
            client.images.generate(prompt="one too many")
        assert caught.value.status_code == 503
        assert caught.value.code == "queue_full"
        assert generator.gate is not None
        generator.gate.set()
        assert {running.result(30).status_code, waiting.result(30).status_code} == {200}


def test_errors_hold_nothing_of_the_inside(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr(type(studio.services.jobs), "submit", broken)

    response = ask(studio, prompt="a fox")

    assert response.status_code == 500
    error = response.json()["error"]
    assert error["code"] == "internal_error"
    assert "secret" not in json.dumps(error)
    assert "error " in error["message"]
