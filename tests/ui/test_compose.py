from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest

from zimage_ui.errors import InvalidRequestError
from zimage_ui.generator.fake import FakeGenerator
from zimage_ui.jobs.records import JobPhase
from zimage_ui.jobs.service import JobService
from zimage_ui.request import MAX_SEED, GenerationRequest, ImageFormat, SchedulerName
from zimage_ui.storage.files import OutputFolder
from zimage_ui.storage.library import Library
from zimage_ui.storage.saver import Saver
from zimage_ui.ui.compose import Form, build_form, client_of, connect_form, form_names, request_from_form

GIVEN: dict[str, Any] = {
    "prompt": "一只猫",
    "negative": "",
    "size": "320x192",
    "guidance": 0.0,
    "steps": 4,
    "seed": "",
    "count": 2,
    "scheduler": "euler",
    "format": "png",
}


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[JobService]:
    folder = OutputFolder(tmp_path)
    folder.prepare()
    library = Library(folder)
    saver = Saver(folder, library, threads=1)
    service = JobService(FakeGenerator(), saver, queue_size=2)
    yield service
    service.close(1)
    saver.close(1)
    library.close()


@pytest.fixture
def form(jobs: JobService) -> Form:
    return asyncio.run(built_form(jobs))


async def built_form(jobs: JobService) -> Form:
    """A coroutine because Gradio, outside of an event loop, makes one and never closes it."""
    with gr.Blocks(analytics_enabled=False) as blocks:
        form = build_form(ImageFormat.PNG)
        connect_form(form, jobs)
    form.bridge.blocks = blocks
    return form


def handler(form: Form, button: str) -> Any:
    functions = form.bridge.blocks.fns.values()
    return next(fn for fn in functions if fn.fn and fn.targets == [(form.buttons[button]._id, "click")])


def ask(form: Form, **changes: Any) -> dict[str, Any]:
    fn = handler(form, "generate")
    context = next(part for part in fn.inputs if part.elem_id == "zi-context")
    values = {form.fields[name]: value for name, value in (GIVEN | changes).items()}
    answer: dict[str, Any] = fn.fn({**values, context: '{"client":"abc123"}'})
    return answer


def test_the_form_becomes_one_request() -> None:
    assert request_from_form(GIVEN) == GenerationRequest(
        prompt="一只猫", width=320, height=192, num_inference_steps=4, num_images_per_prompt=2
    )


def test_every_field_reaches_the_request() -> None:
    request = request_from_form(
        GIVEN
        | {
            "negative": "fog",
            "guidance": 4.5,
            "seed": " 77 ",
            "scheduler": "unipc",
            "format": "webp",
            "size": "512 × 512",
        }
    )
    assert (request.negative_prompt, request.guidance_scale, request.seed) == ("fog", 4.5, 77)
    assert (request.scheduler, request.image_format) == (SchedulerName.UNIPC, ImageFormat.WEBP)
    assert (request.width, request.height) == (512, 512)


@pytest.mark.parametrize(
    ("seed", "expected"), [("", None), (None, None), ("-1", None), ("0", 0), (str(MAX_SEED - 1), MAX_SEED - 1)]
)
def test_seeds(seed: Any, expected: int | None) -> None:
    assert request_from_form(GIVEN | {"seed": seed}).seed == expected


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": "  "}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "x" * 8001}, "prompt"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"seed": "abc"}, "seed"),
        ({"seed": "1.5"}, "seed"),
        ({"seed": "٣"}, "seed"),
        ({"seed": str(2**64)}, "seed"),
        ({"seed": "9" * 5000}, "seed"),
        ({"size": "1e9x1e9"}, "size"),
        ({"size": "0x7"}, "width"),
        ({"size": "1025x1024"}, "width"),
        ({"size": None}, "size"),
        ({"size": "٣٢٠x192"}, "size"),
        ({"steps": 0}, "num_inference_steps"),
        ({"steps": 101}, "num_inference_steps"),
        ({"steps": None}, "num_inference_steps"),
        ({"count": 9}, "num_images_per_prompt"),
        ({"guidance": float("nan")}, "guidance_scale"),
        ({"guidance": -1}, "guidance_scale"),
        ({"scheduler": "../../x"}, "scheduler"),
        ({"format": "svg"}, "image_format"),
    ],
)
def test_what_cannot_be_made_is_said_by_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        request_from_form(GIVEN | changes)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("context", "client"),
    [
        ('{"client":"0a1b2c"}', "0a1b2c"),
        ('{"client":"<b>"}', "page"),
        ('{"client":"' + "a" * 65 + '"}', "page"),
        ('{"client":7}', "page"),
        ("[]", "page"),
        ("", "page"),
        (None, "page"),
        ({"client": "x"}, "page"),
    ],
)
def test_clients(context: Any, client: str) -> None:
    assert client_of(context) == client


def test_generate_submits_and_answers_at_once(form: Form, jobs: JobService) -> None:
    answer = ask(form)
    record = jobs.board.get(answer["job_id"])
    assert record is not None
    assert record.phase is JobPhase.QUEUED
    assert record.client == "abc123"
    assert record.request.prompt == "一只猫"


def test_mistakes_come_back_as_data(form: Form, jobs: JobService) -> None:
    answer = ask(form, seed="<script>alert(1)</script>")
    assert answer["error"]["code"] == "invalid_request"
    assert answer["error"]["param"] == "seed"
    assert "<script>" in answer["error"]["message"]  # the page shows it as text
    assert jobs.queue_length == 0


def test_a_full_queue_is_said(form: Form) -> None:
    assert "error" not in ask(form)
    assert "error" not in ask(form)
    assert ask(form)["error"]["code"] == "queue_full"


def test_equal_answers_differ(form: Form) -> None:
    assert ask(form, prompt="")["at"] != ask(form, prompt="")["at"]


def test_cancel_names_the_job(form: Form, jobs: JobService) -> None:
    job_id = ask(form)["job_id"]
    fn = handler(form, "cancel")
    (context,) = fn.inputs
    assert fn.fn({context: job_id})["cancelled"] is True
    assert fn.fn({context: job_id})["cancelled"] is True
    assert fn.fn({context: "no such job"})["cancelled"] is False
    record = jobs.board.get(job_id)
    assert record is not None
    assert record.phase is JobPhase.CANCELLED


def test_handlers_take_the_direct_path(form: Form) -> None:
    for button in ("generate", "cancel"):
        fn = handler(form, button)
        assert fn.queue is False
        assert fn.api_visibility == "private"
        assert fn.inputs_as_dict


def test_the_context_is_the_last_value_that_scripts_see(form: Form) -> None:
    assert handler(form, "generate").inputs[-1].elem_id == "zi-context"


def test_scripts_know_the_order_of_the_form(form: Form) -> None:
    names = form_names(form)
    assert [*names["fields"], *names["buttons"]] == list(form.labelled)
    assert "size" not in names["fields"]
