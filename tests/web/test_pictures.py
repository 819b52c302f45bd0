from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.web.conftest import Studio

UNKNOWN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def make(studio: Studio, **more: Any) -> list[dict[str, Any]]:
    answer = studio.client.post("/v1/images/generations", json={"prompt": "a fox", "response_format": "url", **more})
    pictures: list[dict[str, Any]] = answer.json()["data"]
    return pictures


@pytest.mark.parametrize(("output_format", "suffix"), [("png", "png"), ("jpeg", "jpg"), ("webp", "webp")])
def test_a_picture_is_served_as_it_lies_on_disk(shared: Studio, output_format: str, suffix: str) -> None:
    (picture,) = make(shared, output_format=output_format)

    response = shared.client.get(picture["url"])

    assert response.content == (shared.services.settings.output_dir / picture["path"]).read_bytes()
    assert response.headers["content-type"] == f"image/{output_format}"
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert response.headers["content-disposition"] == f'inline; filename="{picture["picture_id"]}.{suffix}"'
    assert response.headers["x-content-type-options"] == "nosniff"


def test_a_picture_may_be_downloaded(shared: Studio) -> None:
    (picture,) = make(shared)

    disposition = shared.client.get(picture["url"], params={"download": 1}).headers["content-disposition"]

    assert disposition == f'attachment; filename="{picture["picture_id"]}.png"'


def test_a_head_tells_the_same_without_the_picture(shared: Studio) -> None:
    (picture,) = make(shared)

    whole, head = shared.client.get(picture["url"]), shared.client.head(picture["url"])

    assert head.status_code == 200
    assert head.content == b""
    for name in ("content-type", "content-length", "etag", "cache-control"):
        assert head.headers[name] == whole.headers[name]


def test_what_a_browser_has_is_not_sent_again(shared: Studio) -> None:
    (picture,) = make(shared)
    etag = shared.client.get(picture["url"]).headers["etag"]

    response = shared.client.get(picture["url"], headers={"If-None-Match": etag})

    assert response.status_code == 304
    assert response.content == b""


@pytest.mark.parametrize(
    "picture_id",
    [
        UNKNOWN_ID,
        UNKNOWN_ID.lower(),
        "x",
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "%00",
        "CON",
        "a" * 300,
        f"{UNKNOWN_ID}.png",
        f"{UNKNOWN_ID}%0a",
        "८" * 26,
    ],
)
def test_what_is_not_there_is_not_found(shared: Studio, picture_id: str) -> None:
    response = shared.client.get(f"/pictures/{picture_id}")

    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_picture_whose_file_is_gone_is_not_found_once_it_is_out_of_memory(studio: Studio) -> None:
    (picture,) = make(studio)
    assert studio.services.saver.drain(10)
    shutil.rmtree((studio.services.settings.output_dir / picture["path"]).parent)

    assert studio.client.get("/api/pictures").json()["pictures"] == []


def test_the_newest_pictures_come_first_page_by_page(studio: Studio) -> None:
    made = [picture["picture_id"] for seed in (10, 20, 30) for picture in make(studio, seed=seed)]

    first = studio.client.get("/api/pictures", params={"limit": 2}).json()
    assert [picture["picture_id"] for picture in first["pictures"]] == made[:0:-1]
    assert [picture["seed"] for picture in first["pictures"]] == [30, 20]
    assert first["count"] == 3
    rest = studio.client.get("/api/pictures", params={"limit": 2, "before": first["next_before"]}).json()
    assert [picture["picture_id"] for picture in rest["pictures"]] == made[:1]
    assert rest["next_before"] is None


def test_a_listed_picture_brings_its_settings(studio: Studio) -> None:
    make(studio, prompt='"><img onerror=alert(1)>', seed=5, num_inference_steps=3)

    (picture,) = studio.client.get("/api/pictures").json()["pictures"]

    assert picture["prompt"] == '"><img onerror=alert(1)>'
    assert picture["url"] == f"/pictures/{picture['picture_id']}"
    assert picture["metadata"]["nfe"] == 3
    assert picture["metadata"]["timings_ms"]["sample"] >= 0
    assert (picture["width"], picture["height"], picture["image_format"]) == (384, 384, "png")
    assert Path(picture["path"]).suffix == ".png"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": "9" * 5_000}, "limit"),
        ({"before": "../x"}, "before"),
        ({"before": "' OR 1=1 --"}, "before"),
    ],
)
def test_a_wrong_question_is_answered_clearly(shared: Studio, params: dict[str, Any], param: str) -> None:
    response = shared.client.get("/api/pictures", params=params)

    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
