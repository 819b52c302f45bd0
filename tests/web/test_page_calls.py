"""The shipped page's only way in, as a stranger may call it: raw HTTP on `/gradio_api/run/predict`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from zimage_ui.ui.page import build_page

if TYPE_CHECKING:
    from tests.web.conftest import Studio, StudioMaker

PATH = "/gradio_api/run/predict"
GIVEN: dict[str, Any] = {
    "prompt": "a fox",
    "size": "256x256",
    "seed": "7",
    "steps": 2,
    "count": 1,
    "negative": "",
    "guidance": 0.0,
    "scheduler": "euler",
    "format": "png",
    "context": '{"client":"abc"}',
}


@dataclass
class Handler:
    """One handler of the page, from the configuration that every browser gets."""

    index: int
    api_name: str
    inputs: list[str]


@dataclass
class Mounted:
    """A studio with the page as it is shipped."""

    studio: Studio
    generate: Handler
    cancel: Handler

    def run(self, handler: Handler, data: list[Any]) -> httpx.Response:
        body = {"data": data, "fn_index": handler.index, "session_hash": "s1", "event_data": None}
        # json of Python, because it writes NaN and half characters
        return self.send(json.dumps(body).encode())

    def send(self, body: bytes, path: str = PATH) -> httpx.Response:
        return self.studio.client.post(path, content=body, headers={"Content-Type": "application/json"})

    def ask(self, **changes: Any) -> httpx.Response:
        values = GIVEN | changes
        return self.run(self.generate, [values[name] for name in self.generate.inputs])


@pytest.fixture(scope="module")
def mounted(run_studio: StudioMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    with run_studio(tmp_path_factory.mktemp("page"), page=build_page) as studio:
        studio.wait_until_ready()
        config = studio.client.get("/config").json()
        names = {part["id"]: part["props"].get("elem_id", "") for part in config["components"]}
        handlers = [
            Handler(each["id"], each["api_name"], [names[part].removeprefix("zi-") for part in each["inputs"]])
            for each in config["dependencies"]
            if each["backend_fn"]
        ]
        generate, cancel = sorted(handlers, key=lambda each: -len(each.inputs))
        yield Mounted(studio, generate, cancel)


def answer_of(response: httpx.Response) -> dict[str, Any]:
    """What the handler says to the page."""
    assert response.status_code == 200, response.text
    (answer,) = response.json()["data"]
    output: dict[str, Any] = answer
    return output


def assert_nothing_inside(response: httpx.Response, error_output: str) -> None:
    for text in (response.text, error_output):
        assert "Traceback" not in text
        assert " object at 0x" not in text
        assert "gradio" not in text.lower()


def jobs_of(mounted: Mounted) -> int:
    return len(mounted.studio.board.recent(500)) + len(mounted.studio.board.active())


def test_the_pages_way_makes_a_picture(mounted: Mounted) -> None:
    job_id = answer_of(mounted.ask())["job_id"]

    record = mounted.studio.services.jobs.future(job_id).result(30)
    assert (record.request.prompt, record.request.seed, record.client) == ("a fox", 7, "abc")
    assert answer_of(mounted.run(mounted.cancel, [job_id]))["cancelled"] is False


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"prompt": 7}, "prompt"),
        ({"prompt": True}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "a \ud800"}, "prompt"),
        ({"steps": 2.7}, "num_inference_steps"),
        ({"steps": True}, "num_inference_steps"),
        ({"steps": "abc"}, "num_inference_steps"),
        ({"steps": float("nan")}, "num_inference_steps"),
        ({"steps": float("inf")}, "num_inference_steps"),
        ({"steps": None}, "num_inference_steps"),
        ({"steps": 101}, "num_inference_steps"),
        ({"count": 1.5}, "num_images_per_prompt"),
        ({"count": "2"}, "num_images_per_prompt"),
        ({"guidance": False}, "guidance_scale"),
        ({"guidance": ""}, "guidance_scale"),
        ({"guidance": float("nan")}, "guidance_scale"),
        ({"negative": 0}, "negative_prompt"),
        ({"negative": False}, "negative_prompt"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"size": 512}, "size"),
        ({"scheduler": 1}, "scheduler"),
        ({"format": True}, "image_format"),
    ],
)
def test_values_of_another_kind_are_told_by_name(
    mounted: Mounted, capfd: pytest.CaptureFixture[str], changes: dict[str, Any], param: str
) -> None:
    before = jobs_of(mounted)

    response = mounted.ask(**changes)

    assert answer_of(response)["error"]["param"] == param
    assert_nothing_inside(response, "".join(capfd.readouterr()))
    assert jobs_of(mounted) == before


FILE = {"path": "/etc/passwd", "url": "http://169.254.169.254/", "meta": {"_type": "gradio.FileData"}}


@pytest.mark.parametrize("field", GIVEN)
@pytest.mark.parametrize("value", [["a"], {"a": 1}, [], FILE], ids=["list", "object", "empty", "file"])
def test_lists_objects_and_files_are_no_values_of_the_form(
    mounted: Mounted, capfd: pytest.CaptureFixture[str], field: str, value: Any
) -> None:
    before = jobs_of(mounted)

    response = mounted.ask(**{field: value})

    assert response.status_code == 400
    assert response.json()["error"]["param"] == "data"
    assert_nothing_inside(response, "".join(capfd.readouterr()))
    assert jobs_of(mounted) == before


@pytest.mark.parametrize("count", [0, 1, 9, 11, 1000])
def test_too_few_and_too_many_values_are_told(mounted: Mounted, capfd: pytest.CaptureFixture[str], count: int) -> None:
    response = mounted.run(mounted.generate, ["a"] * count)

    assert response.status_code == 400
    assert f"{count} values; this handler takes 10" in response.json()["error"]["message"]
    assert_nothing_inside(response, "".join(capfd.readouterr()))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"data": "x", "fn_index": 0}',
        b'{"data": [], "fn_index": "0"}',
        b'{"data": [], "fn_index": true}',
        b'{"data": [], "fn_index": null}',
        b'{"data": [], "fn_index": 100000}',
        b'{"data": [], "fn_index": -1}',
        b'{"data": [' + b"9" * 5_000 + b'], "fn_index": 0}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
    ids=range(15),
)
def test_what_is_no_call_of_the_page_is_told_in_our_shape(
    mounted: Mounted, capfd: pytest.CaptureFixture[str], body: bytes
) -> None:
    response = mounted.send(body)

    assert response.status_code in {400, 404}
    assert response.json()["error"]["message"]
    assert_nothing_inside(response, "".join(capfd.readouterr()))


def test_no_handler_is_open_by_its_name(mounted: Mounted) -> None:
    before = jobs_of(mounted)
    for handler in (mounted.generate, mounted.cancel):
        body = json.dumps({"data": [GIVEN[name] for name in mounted.generate.inputs], "fn_index": handler.index})
        for name in (handler.api_name, "predict/", "anything"):
            response = mounted.send(body.encode(), f"/gradio_api/run/{name}")
            assert response.status_code == 404, name
    assert mounted.studio.client.get(PATH).status_code in {404, 405}
    assert jobs_of(mounted) == before


def test_what_fails_inside_is_told_without_its_inside(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("/home/somebody/secret")

    monkeypatch.setattr(type(mounted.studio.services.jobs), "submit", broken)

    response = mounted.ask()

    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_gradio_keeps_nothing_of_the_callers(mounted: Mounted) -> None:
    """It would keep the last values, up to a megabyte, of each of 10,000 sessions that strangers may name."""
    app: Any = mounted.studio.server.config.app
    (gradio_app,) = [route.app for route in app.routes if hasattr(getattr(route, "app", None), "state_holder")]

    answer_of(mounted.ask(prompt="x" * 9_000))

    assert dict(gradio_app.state_holder.session_data) == {}
