"""How each family of Z-Image models wants to be used, and how a folder's family is found out.

The numbers are those of the models' own cards: the distilled turbo model runs without guidance in 8 steps; the base
model wants guidance from 3 to 5 and 28 to 50 steps, of which the card's own example takes 4 and 50.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zimage_ui.errors import ModelDamagedError
from zimage_ui.generator.base import ModelProfile
from zimage_ui.generator.examples import MINI_EXAMPLES, TURBO_EXAMPLES

_LARGE_SIZES = (
    (1024, 1024),
    (512, 512),
    (768, 768),
    (1280, 720),
    (720, 1280),
    (1248, 832),
    (832, 1248),
    (1536, 1536),
)

TURBO = ModelProfile(
    name="turbo",
    num_inference_steps=8,
    guidance_scale=0.0,
    takes_negative_prompt=False,
    sizes=_LARGE_SIZES,
    examples=TURBO_EXAMPLES,
)
BASE = ModelProfile(
    name="base",
    num_inference_steps=50,
    guidance_scale=4.0,
    takes_negative_prompt=True,
    sizes=_LARGE_SIZES,
    examples=TURBO_EXAMPLES,
)
MINI = ModelProfile(
    name="mini",
    num_inference_steps=8,
    guidance_scale=0.0,
    takes_negative_prompt=False,
    sizes=((384, 384), (256, 256), (512, 512), (320, 192), (192, 320)),
    examples=MINI_EXAMPLES,
)
PROFILES = {profile.name: profile for profile in (TURBO, BASE, MINI)}

# Z-Image has 3840; anything this narrow was made to be small.
_MINI_DIM = 1024
# The published schedules: Z-Image-Turbo shifts by 3, Z-Image by 6.
_BASE_SHIFT = 6.0


def find_profile(
    name: str, marker: Mapping[str, Any], transformer: Mapping[str, Any], scheduler: Mapping[str, Any]
) -> ModelProfile:
    """The profile of a model, from the first of these that tells.

    1. its own `zimage_ui.json` ("profile": "turbo", "base" or "mini");
    2. the width of its transformer: small ones are "mini";
    3. its name: one with "turbo" in it is "turbo", one that ends in "z-image" or has "base" in it is "base";
    4. its scheduler: a shift of 6 or more is "base", any other "turbo".

    Args:
        name: of the folder, or the hub id.
        marker: what `zimage_ui.json` holds; empty without one.
        transformer: its configuration.
        scheduler: its configuration.

    Raises:
        ModelDamagedError: `zimage_ui.json` names a profile that does not exist.
    """
    if "profile" in marker:
        if marker["profile"] not in PROFILES:
            raise ModelDamagedError(
                f"zimage_ui.json asks for the profile {marker['profile']!r}; there are {', '.join(PROFILES)}.",
                "Correct the file.",
            )
        return PROFILES[marker["profile"]]
    if transformer.get("dim", _MINI_DIM) < _MINI_DIM:
        return MINI
    lowered = name.lower()
    if "turbo" in lowered:
        return TURBO
    if lowered.endswith("z-image") or "base" in lowered:
        return BASE
    return BASE if scheduler.get("shift", 0.0) >= _BASE_SHIFT else TURBO
