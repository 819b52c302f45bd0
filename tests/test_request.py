"""The edge of the house: what is asked for is either a valid request or one clear message (faults 2, 3, 5, 6, 7)."""

import math
import unicodedata
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zimage_ui.errors import InvalidRequestError
from zimage_ui.request import (
    MAX_IMAGES,
    MAX_PROMPT_CHARS,
    MAX_SEED,
    MAX_SIDE,
    MAX_STEPS,
    MIN_SIDE,
    SIZE_STEP,
    GenerationRequest,
    ImageFormat,
    SchedulerName,
)

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.dictionaries(st.text(), st.integers()),
)


# Drawing characters is slow the first time; how long it takes says nothing about the code under test.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def refusal(**changes: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        GenerationRequest(**{"prompt": "a boat", **changes})
    return caught.value


def test_the_defaults_are_those_of_the_turbo_model():
    request = GenerationRequest(prompt="a boat")
    assert (request.width, request.height, request.num_inference_steps) == (1024, 1024, 8)
    assert (request.guidance_scale, request.num_images_per_prompt, request.seed) == (0.0, 1, None)


@pytest.mark.parametrize(
    "prompt",
    ["", "   ", "\n\t ", "\u3000", "\u200b\u200d\ufeff", "\x00\x07", "\u202e"],
    ids=["empty", "blanks", "newline", "ideographic space", "zero width", "controls", "bidi override"],
)
def test_a_prompt_that_shows_nothing_is_empty(prompt: str):
    error = refusal(prompt=prompt)
    assert error.param == "prompt"
    assert error.message == "The prompt is empty."
    assert error.hint


@pytest.mark.parametrize("prompt", [None, ["a"], {"a": 1}, 7, b"a boat", True])
def test_a_prompt_that_is_no_text_is_refused_by_its_type(prompt: object):
    error = refusal(prompt=prompt)
    assert error.param == "prompt"
    assert type(prompt).__name__ in error.message


@pytest.mark.parametrize(
    "prompt",
    [
        "一只猫坐在月亮上",
        "👩‍🚀 on a horse",
        "👩‍🚀",
        "שלום",
        "evil\u202etxt",
        "with\x00nul",
        "\U0001fae9",
        "𓀀",
    ],
)
def test_any_writing_is_taken_as_it_is(prompt: str):
    assert GenerationRequest(prompt=prompt).prompt == prompt


def test_text_is_brought_to_its_composed_form():
    request = GenerationRequest(prompt="cafe\u0301", negative_prompt="e\u0301")
    assert (request.prompt, request.negative_prompt) == ("caf\u00e9", "\u00e9")


def test_half_a_character_is_a_clear_refusal():
    error = refusal(prompt="a \ud83d boat")
    assert error.param == "prompt"
    assert "position 2" in error.message


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
def test_a_text_that_is_too_long_is_refused_with_its_length(param: str):
    assert getattr(GenerationRequest(**{"prompt": "a", param: "a" * MAX_PROMPT_CHARS}), param)
    error = refusal(**{param: "a" * 1_000_000})
    assert error.param == param
    assert "1,000,000 characters" in error.message
    assert f"{MAX_PROMPT_CHARS:,}" in error.message
    assert len(str(error)) < 300


def test_a_text_that_grows_beyond_the_limit_when_composed_is_refused_at_the_edge_too():
    """U+0958 has no composed form and becomes two characters: a copy of the request would be refused deep inside."""
    grows = "\u0958" * MAX_PROMPT_CHARS
    assert len(unicodedata.normalize("NFC", grows)) == 2 * MAX_PROMPT_CHARS
    assert refusal(prompt=grows).param == "prompt"
    half = GenerationRequest(prompt="\u0958" * (MAX_PROMPT_CHARS // 2), seed=1)
    assert replace(half, seed=2).prompt == half.prompt


@pytest.mark.parametrize("param", ["width", "height"])
@pytest.mark.parametrize(
    "side", [0, 7, -1, -64, 10**9, 2064, 1025, math.nan, math.inf, 512.0, "512", None, True, [512]]
)
def test_a_side_that_cannot_be_made_is_refused(param: str, side: object):
    assert refusal(**{param: side}).param == param


@pytest.mark.parametrize(("side", "nearest"), [(1025, 1024), (1039, 1040), (65, 64), (2047, 2048)])
def test_a_side_between_two_that_work_is_told_the_nearest(side: int, nearest: int):
    assert str(nearest) in refusal(width=side).hint


@pytest.mark.parametrize("side", [MIN_SIDE, 80, 1024, MAX_SIDE])
def test_multiples_of_the_step_within_the_range_are_taken(side: int):
    assert side % SIZE_STEP == 0
    assert GenerationRequest(prompt="a", width=side, height=side).width == side


@pytest.mark.parametrize("steps", [0, -1, MAX_STEPS + 1, 8.0, "8", None, False])
def test_steps_out_of_range_are_refused(steps: object):
    error = refusal(num_inference_steps=steps)
    assert error.param == "num_inference_steps"
    assert f"from 1 to {MAX_STEPS}" in error.message


@pytest.mark.parametrize("count", [0, -1, MAX_IMAGES + 1, 1.0, "2", None])
def test_a_number_of_pictures_out_of_range_is_refused(count: object):
    assert refusal(num_images_per_prompt=count).param == "num_images_per_prompt"


@pytest.mark.parametrize(
    "scale", [-0.1, 20.1, math.nan, math.inf, -math.inf, pytest.param(10**400, id="huge"), "1", None, True]
)
def test_a_guidance_scale_out_of_range_is_refused(scale: object):
    error = refusal(guidance_scale=scale)
    assert error.param == "guidance_scale"
    assert "from 0 (off) to 20" in error.message


def test_a_whole_guidance_scale_becomes_a_float():
    scale = GenerationRequest(prompt="a", guidance_scale=4).guidance_scale
    assert (scale, type(scale)) == (4.0, float)


@pytest.mark.parametrize("seed", [-2, MAX_SEED + 1, 2**64, 1.0, math.nan, "abc", "7", True, [1]])
def test_a_seed_that_would_not_come_back_the_same_is_refused(seed: object):
    assert refusal(seed=seed).param == "seed"


@pytest.mark.parametrize("seed", [None, -1])
def test_no_seed_means_one_is_drawn_and_then_stays(seed: int | None):
    request = GenerationRequest(prompt="a", seed=seed)
    assert request.seed is None
    with pytest.raises(ValueError, match="with_seed"):
        _ = request.seeds
    drawn = request.with_seed()
    assert drawn.seed is not None
    assert 0 <= drawn.seed < 2**32
    assert drawn.with_seed() is drawn
    assert len({request.with_seed().seed for _ in range(20)}) > 1


@pytest.mark.parametrize("seed", [0, 7, 2**32, MAX_SEED])
def test_a_given_seed_stays_as_it_is(seed: int):
    assert GenerationRequest(prompt="a", seed=seed).with_seed().seed == seed


def test_each_picture_has_the_next_seed_and_the_last_one_is_still_exact_in_a_browser():
    assert GenerationRequest(prompt="a", seed=7, num_images_per_prompt=3).seeds == (7, 8, 9)
    last = GenerationRequest(prompt="a", seed=MAX_SEED - 7, num_images_per_prompt=8).seeds[-1]
    assert last == MAX_SEED
    assert float(last) == last
    assert refusal(seed=MAX_SEED - 6, num_images_per_prompt=8).param == "seed"


def test_choices_are_taken_as_plain_strings():
    request = GenerationRequest(prompt="a", scheduler="unipc", image_format="webp")  # type: ignore[arg-type]
    assert request.scheduler is SchedulerName.UNIPC
    assert request.image_format is ImageFormat.WEBP


@pytest.mark.parametrize("param", ["scheduler", "image_format"])
@pytest.mark.parametrize("value", ["", "ddim", None, 3, ["png"], {"a": 1}])
def test_an_unknown_choice_is_told_what_there_is(param: str, value: object):
    error = refusal(**{param: value})
    assert error.param == param
    assert "choose one of" in error.message


@pytest.mark.parametrize("value", ["no", 0, 1, None])
def test_preview_is_true_or_false(value: object):
    assert refusal(preview=value).param == "preview"


@pytest.mark.parametrize("param", ["width", "seed", "guidance_scale", "scheduler", "preview"])
@pytest.mark.parametrize("value", ["x" * 1_000_000, 10**10_000, list(range(10**5))], ids=["text", "number", "list"])
def test_a_monstrous_value_makes_a_short_message(param: str, value: object):
    """Python refuses to print an integer of more than 4,300 digits: the message must not die of it."""
    error = refusal(**{param: value})
    assert error.param == param
    assert len(str(error)) < 300


def test_a_request_is_frozen():
    with pytest.raises(FrozenInstanceError):
        GenerationRequest(prompt="a").seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("image_format", "suffix", "media_type"),
    [
        (ImageFormat.PNG, "png", "image/png"),
        (ImageFormat.JPEG, "jpg", "image/jpeg"),
        (ImageFormat.WEBP, "webp", "image/webp"),
    ],
)
def test_formats_know_their_file_ending_and_media_type(image_format: ImageFormat, suffix: str, media_type: str):
    assert (image_format.suffix, image_format.media_type) == (suffix, media_type)


def test_the_negative_prompt_is_read_with_guidance_only():
    assert GenerationRequest(prompt="a boat", negative_prompt="fog").prompts == ("a boat",)
    assert GenerationRequest(prompt="a boat", negative_prompt="fog", guidance_scale=2.0).prompts == ("a boat", "fog")


@unhurried
@given(st.dictionaries(st.sampled_from([field.name for field in fields(GenerationRequest)]), ANYTHING))
def test_whatever_comes_it_is_a_valid_request_or_one_message_that_names_the_field(values: dict[str, Any]):
    try:
        request = GenerationRequest(**{"prompt": "a boat", **values})
    except InvalidRequestError as error:
        assert error.param in values
        assert error.message
    else:
        assert replace(request) == request


@unhurried
@given(st.text(min_size=1, alphabet=st.characters()))
def test_a_request_that_was_valid_once_can_be_copied_and_written_as_utf_8(prompt: str):
    try:
        request = GenerationRequest(prompt=prompt, seed=3)
    except InvalidRequestError:
        return
    assert replace(request, seed=4).prompt == request.prompt
    assert request.prompt.encode("utf-8").decode("utf-8") == request.prompt
    assert unicodedata.is_normalized("NFC", request.prompt)
