import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zimage_ui import __version__
from zimage_ui.errors import InvalidRequestError, StorageError
from zimage_ui.request import GenerationRequest, Precision
from zimage_ui.storage.metadata import MAX_JSON_CHARS, PictureMetadata

AWKWARD = [
    "一只猫坐在垫子上，水墨画",
    "👩‍👩‍👧‍👦 family, e\u0301 composed",
    "שלום \u202e reversed \u2066",
    "a\x00b\x1b[31mc\r\n\ttab",
    '"><img src=x onerror=alert(1)><script>alert(1)</script>',
    'quote " backslash \\ brace { } percent %s',
    "first line\nNegative prompt: not really\nSteps: 99",
]


def test_the_text_is_what_a1111_writes(metadata_of):
    assert metadata_of("a cat, on a mat").to_parameters() == (
        "a cat, on a mat\n"
        "Steps: 8, Sampler: Euler, CFG scale: 0, Seed: 7, Size: 64x64, Model hash: 0123456789abcdef, "
        f"Model: Z-Image-Turbo, Version: zimage-ui {__version__}"
    )


def test_the_text_has_a_negative_prompt_only_when_there_is_one(metadata_of):
    request = {"negative_prompt": "fog", "guidance_scale": 4.5, "scheduler": "dpmpp_2m"}
    lines = metadata_of(request=request).to_parameters().splitlines()
    assert lines[1] == "Negative prompt: fog"
    assert "Sampler: DPM++ 2M, CFG scale: 4.5," in lines[2]


def test_the_text_says_untrained(metadata_of):
    assert ", Untrained: true, " in metadata_of(model_trained=False).to_parameters()


@pytest.mark.parametrize("name", ["a, b", "hub:model", "two\nlines"])
def test_a_name_cannot_break_the_line_of_settings(metadata_of, name):
    text = metadata_of(model_name=name).to_parameters()
    assert f"Model: {json.dumps(name)}, Version" in text
    assert len(text.splitlines()) == 2


def test_the_text_holds_no_control_characters(metadata_of):
    text = metadata_of("a\x00b\x1b\x7fc\td").to_parameters()
    assert text.startswith("a b  c\td\n")


@pytest.mark.parametrize("prompt", AWKWARD)
def test_json_gives_everything_back(metadata_of, prompt):
    metadata = metadata_of(prompt, request={"negative_prompt": prompt, "guidance_scale": 3.5, "scheduler": "unipc"})
    text = metadata.to_json()
    assert "\n" not in text
    assert PictureMetadata.from_json(text) == metadata


@given(st.text(min_size=1, max_size=200), st.integers(0, 2**53 - 1), st.floats(0, 20))
def test_json_gives_any_request_back(prompt, seed, guidance):
    try:
        request = GenerationRequest(prompt=prompt, seed=seed, guidance_scale=guidance)
    except InvalidRequestError:
        return
    metadata = PictureMetadata(
        picture_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        created_at=datetime.now(UTC),
        request=request,
        index=0,
        nfe=8,
        model_name="m",
        model_fingerprint="f",
        model_trained=True,
        dtype="float32",
    )
    assert PictureMetadata.from_json(metadata.to_json()) == metadata


def test_the_memory_plan_is_kept_and_older_files_have_none(metadata_of):
    metadata = metadata_of(memory_plan="smallest")
    assert PictureMetadata.from_json(metadata.to_json()) == metadata
    older = json.loads(metadata.to_json())
    del older["memory_plan"]
    assert PictureMetadata.from_json(json.dumps(older)).memory_plan == ""


def test_the_precision_is_kept_and_older_files_are_exact(metadata_of):
    metadata = metadata_of(precision=Precision.FP8)
    assert PictureMetadata.from_json(metadata.to_json()) == metadata
    assert ", Precision: fp8, " in metadata.to_parameters()
    assert "Precision" not in metadata_of().to_parameters()
    older = json.loads(metadata.to_json())
    assert older.pop("precision") == "fp8"
    assert PictureMetadata.from_json(json.dumps(older)).precision is Precision.EXACT


def test_one_picture_is_kept_not_the_job_it_came_from(metadata_of):
    metadata = metadata_of(request={"num_images_per_prompt": 4, "preview": False})
    assert metadata.request.num_images_per_prompt == 1
    assert PictureMetadata.from_json(metadata.to_json()) == metadata


def test_the_time_zone_is_kept(metadata_of):
    at = datetime(2026, 3, 29, 3, 30, 0, 123456, tzinfo=timezone(timedelta(hours=5, minutes=45)))
    kept = PictureMetadata.from_json(metadata_of(created_at=at).to_json()).created_at
    assert kept == at
    assert kept.utcoffset() == at.utcoffset()


def test_later_times_are_added(metadata_of):
    metadata = metadata_of(timings_ms={"sample": 500.0, "decode": 50.0})
    assert metadata.with_timings({"save": 12.5, "decode": 51.0}).timings_ms == {
        "sample": 500.0,
        "decode": 51.0,
        "save": 12.5,
    }
    assert "save" not in metadata.timings_ms


@pytest.mark.parametrize(
    "wrong",
    [{"request": {"seed": None}}, {"created_at": datetime(2026, 11, 21)}],
    ids=["no seed", "no time zone"],
)
def test_incomplete_metadata_cannot_be_made(metadata_of, wrong):
    with pytest.raises(ValueError, match=r"seed|time zone"):
        metadata_of(**wrong)


def _forged(metadata, **changes):
    return json.dumps({**json.loads(metadata.to_json()), **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"format": True},
        {"format": "1"},
        {"picture_id": None},
        {"picture_id": "x" * 201},
        {"created_at": "yesterday"},
        {"created_at": "2026-11-21T12:00:00"},
        {"prompt": ""},
        {"prompt": ["a"]},
        {"prompt": "p" * 8001},
        {"prompt": "\ud800"},
        {"width": 10**9},
        {"width": "64"},
        {"seed": None},
        {"seed": -1},
        {"seed": 2**64},
        {"guidance_scale": 1e300},
        {"guidance_scale": "0"},
        {"scheduler": "__class__"},
        {"image_format": "svg"},
        {"nfe": -1},
        {"nfe": 10**30},
        {"memory_plan": None},
        {"memory_plan": "x" * 201},
        {"precision": "fp4"},
        {"precision": None},
        {"model": []},
        {"model": {"name": 5}},
        {"versions": {str(n): "1" for n in range(65)}},
        {"versions": {"torch": {"deep": []}}},
        {"versions": {"t" * 1000: "1"}},
        {"timings_ms": {"encode": "1"}},
        {"timings_ms": {"encode": 10**400}},
        {"timings_ms": {"encode": None}},
    ],
    ids=str,
)
def test_forged_values_are_refused(metadata_of, changes):
    with pytest.raises(StorageError):
        PictureMetadata.from_json(_forged(metadata_of(), **changes))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "{", '{"format": NaN}', "9" * 5000, "[" * 100_000, '{"a":' * 50_000, "x" * 5_000_000],
    ids=lambda text: text[:12],
)
def test_what_is_no_metadata_is_refused(text):
    with pytest.raises(StorageError, match="settings"):
        PictureMetadata.from_json(text)


def test_the_longest_prompts_fit_the_cap(metadata_of):
    text = metadata_of("\x01" * 7999 + "x", request={"negative_prompt": "\x01" * 8000}).to_json()
    assert len(text) < MAX_JSON_CHARS
    assert len(PictureMetadata.from_json(text).request.negative_prompt) == 8000


def test_half_characters_in_names_do_no_harm(metadata_of):
    forged = _forged(metadata_of(), versions={"torch\ud800": "\udfff2"})
    versions = PictureMetadata.from_json(forged).versions
    assert versions == {"torch?": "?2"}
