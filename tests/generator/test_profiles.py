"""Which family a model belongs to."""

import re

import pytest

from zimage_ui.errors import ModelDamagedError
from zimage_ui.generator.profiles import BASE, MINI, PROFILES, TURBO, find_profile
from zimage_ui.request import GenerationRequest
from zimage_ui.ui.texts import LANGUAGES

LARGE, SMALL = {"dim": 3840}, {"dim": 256}
SHIFT_3, SHIFT_6 = {"shift": 3.0}, {"shift": 6.0}


@pytest.mark.parametrize(
    ("name", "marker", "transformer", "scheduler", "profile"),
    [
        ("Tongyi-MAI/Z-Image-Turbo", {}, LARGE, SHIFT_3, TURBO),
        ("Tongyi-MAI/Z-Image", {}, LARGE, SHIFT_6, BASE),
        ("/models/z-image-base-fp16", {}, LARGE, SHIFT_3, BASE),
        ("/models/my-finetune", {}, LARGE, SHIFT_6, BASE),
        ("/models/my-finetune", {}, LARGE, SHIFT_3, TURBO),
        ("/models/unknown", {}, {}, {}, TURBO),
        ("/models/small-turbo", {}, SMALL, SHIFT_3, MINI),
        ("/models/z-image", {"profile": "turbo"}, SMALL, SHIFT_6, TURBO),
        ("Tongyi-MAI/Z-Image-Turbo", {"profile": "mini"}, LARGE, SHIFT_3, MINI),
        ("/models/anything", {"trained": False}, LARGE, SHIFT_3, TURBO),
    ],
)  # fmt: skip
def test_the_first_that_tells_decides(name, marker, transformer, scheduler, profile):
    assert find_profile(name, marker, transformer, scheduler) is profile


def test_an_unknown_profile_is_refused():
    with pytest.raises(ModelDamagedError, match="'huge'; there are turbo, base, mini"):
        find_profile("a model", {"profile": "huge"}, LARGE, SHIFT_3)


def test_distilled_models_run_without_guidance_and_base_with_it():
    assert (TURBO.num_inference_steps, TURBO.guidance_scale, TURBO.takes_negative_prompt) == (8, 0.0, False)
    assert (MINI.num_inference_steps, MINI.guidance_scale, MINI.takes_negative_prompt) == (8, 0.0, False)
    assert (BASE.num_inference_steps, BASE.guidance_scale, BASE.takes_negative_prompt) == (50, 4.0, True)


@pytest.mark.parametrize("name", PROFILES)
def test_every_preset_is_a_request_that_is_taken(name):
    profile = PROFILES[name]
    for width, height in profile.sizes:
        GenerationRequest(
            prompt="a",
            width=width,
            height=height,
            num_inference_steps=profile.num_inference_steps,
            guidance_scale=profile.guidance_scale,
        )
    assert profile.sizes[0] == ((384, 384) if profile is MINI else (1024, 1024))


@pytest.mark.parametrize("name", PROFILES)
def test_every_family_has_prompts_to_begin_with_in_both_languages(name):
    examples = PROFILES[name].examples
    english, chinese = ([getattr(example, language) for example in examples] for language in LANGUAGES)
    assert len(examples) >= 6
    assert len({*english, *chinese}) == 2 * len(examples)
    for prompts in zip(english, chinese, strict=True):
        quoted = [re.findall("“(.+?)”", prompt) for prompt in prompts]
        assert len(quoted[0]) == len(quoted[1]), "words in one language and none in the other"
        assert not any(re.search(r"[\u4e00-\u9fff]", re.sub("“.+?”", "", prompt)) for prompt in prompts[:1])
        assert all(re.search(r"[\u4e00-\u9fff]", prompt) for prompt in prompts[1:])
        assert max(map(len, prompts)) <= 80, "does not fit on its button"
