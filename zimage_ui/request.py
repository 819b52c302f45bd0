"""What a person asks for and gets: frozen, checked once, standard library only.

`GenerationRequest` checks itself when it is made, so whoever holds one holds a valid one. It travels whole from the
edge (page, API, command line) to the generator.
"""

from __future__ import annotations

import reprlib
import secrets
import unicodedata
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any

from zimage_ui.errors import InvalidRequestError

MAX_PROMPT_CHARS = 8_000
SIZE_STEP = 16
MIN_SIDE = 64
MAX_SIDE = 2_048
MAX_STEPS = 100
MAX_IMAGES = 8
MAX_GUIDANCE_SCALE = 20.0
# The largest integer that a browser keeps exactly: a seed must survive the way through JSON and JavaScript.
MAX_SEED = 2**53 - 1


class SchedulerName(StrEnum):
    """The samplers on offer; all integrate the same flow-matching equation."""

    EULER = "euler"
    UNIPC = "unipc"
    DPMPP_2M = "dpmpp_2m"


class Precision(StrEnum):
    """How exactly the transformer's matrix products are computed.

    * EXACT: in the dtype that the model is loaded in, as the stock pipeline does.
    * FP8, INT8: in eight bits. Half the memory, FP8 faster, too, and a slightly different picture.
    * NF4: as EXACT, but by matrices kept in four bits. A third of the memory, slower, and the most different picture.
    """

    EXACT = "exact"
    FP8 = "fp8"
    INT8 = "int8"
    NF4 = "nf4"


class ImageFormat(StrEnum):
    """The file formats that pictures are saved in."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def suffix(self) -> str:
        """The file name ending, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value

    @property
    def media_type(self) -> str:
        """The MIME type."""
        return f"image/{self.value}"


# What leaves no mark on its own: controls, format characters (zero width, bidi), and every kind of blank.
_UNSEEN = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})


def _shown(value: Any) -> str:
    """A value for a message: its `repr`, cut short, whatever its size."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python refuses to write out integers of more than 4,300 digits
        return f"a {type(value).__name__} of thousands of digits"


def _whole(value: Any, param: str, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequestError(
            f"{param} is {_shown(value)}; it must be a whole number from {low} to {high}.", param=param
        )


def _side(value: Any, param: str) -> None:
    _whole(value, param, MIN_SIDE, MAX_SIDE)
    if value % SIZE_STEP:
        near = min(MAX_SIDE, max(MIN_SIDE, round(value / SIZE_STEP) * SIZE_STEP))
        raise InvalidRequestError(
            f"{param} is {value}; it must be a multiple of {SIZE_STEP}.", f"The nearest one is {near}.", param=param
        )


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidRequestError(f"{param} is of type {type(value).__name__}; it must be text.", param=param)
    _short_enough(value, param)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{param} holds half a character (a lone surrogate) at position {error.start}.",
            "Type that character again.",
            param=param,
        ) from None
    composed = unicodedata.normalize("NFC", value)
    _short_enough(composed, param)  # a few characters become two: what is valid has to stay so in every copy
    return composed


def _short_enough(text: str, param: str) -> None:
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidRequestError(
            f"{param} has {len(text):,} characters; at most {MAX_PROMPT_CHARS:,} are taken.",
            "The model reads only the first few hundred words: shorten it.",
            param=param,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One request for one or more pictures of the same prompt.

    Attributes:
        prompt: NFC-normalised; 1 to `MAX_PROMPT_CHARS` characters, one of them at least visible.
        negative_prompt: used only when `guidance_scale` > 0.
        width, height: pixels, multiples of 16 from 64 to 2048.
        num_inference_steps: steps asked for, 1 to 100.
        guidance_scale: 0.0 = off (the turbo model), up to 20.
        seed: 0 to 2**53 - 1; None and -1 mean "draw one" (`with_seed`).
        num_images_per_prompt: 1 to 8; image i gets seed + i.
        scheduler, image_format: choices; plain strings are taken too.
        preview: whether a small picture is made after each step.

    Raises:
        InvalidRequestError: a field is out of range; `param` names it.
    """

    prompt: str
    negative_prompt: str = ""
    width: int = 1024
    height: int = 1024
    num_inference_steps: int = 8
    guidance_scale: float = 0.0
    seed: int | None = None
    num_images_per_prompt: int = 1
    scheduler: SchedulerName = SchedulerName.EULER
    image_format: ImageFormat = ImageFormat.PNG
    preview: bool = True

    def __post_init__(self) -> None:
        put = partial(object.__setattr__, self)  # frozen: normalised once, here
        put("prompt", _text(self.prompt, "prompt"))
        put("negative_prompt", _text(self.negative_prompt, "negative_prompt"))
        if all(unicodedata.category(character) in _UNSEEN for character in self.prompt):
            raise InvalidRequestError("The prompt is empty.", "Say what the picture should show.", param="prompt")
        _side(self.width, "width")
        _side(self.height, "height")
        _whole(self.num_inference_steps, "num_inference_steps", 1, MAX_STEPS)
        _whole(self.num_images_per_prompt, "num_images_per_prompt", 1, MAX_IMAGES)
        put("guidance_scale", self._guidance())
        if self.seed == -1 and not isinstance(self.seed, bool):
            put("seed", None)
        if self.seed is not None:
            _whole(self.seed, "seed", 0, MAX_SEED - self.num_images_per_prompt + 1)
        put("scheduler", self._choice(SchedulerName, "scheduler"))
        put("image_format", self._choice(ImageFormat, "image_format"))
        if not isinstance(self.preview, bool):
            raise InvalidRequestError(f"preview is {_shown(self.preview)}; it must be true or false.", param="preview")

    def _guidance(self) -> float:
        value: Any = self.guidance_scale
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value <= MAX_GUIDANCE_SCALE:  # NaN is not within it either
            raise InvalidRequestError(
                f"guidance_scale is {_shown(value)}; it must be a number from 0 (off) to {MAX_GUIDANCE_SCALE:g}.",
                param="guidance_scale",
            )
        return float(value)

    def _choice(self, choices: type[StrEnum], param: str) -> StrEnum:
        value = getattr(self, param)
        try:
            return choices(value)
        except ValueError:
            offered = ", ".join(choices)
            raise InvalidRequestError(f"{param} is {_shown(value)}; choose one of: {offered}.", param=param) from None

    def with_seed(self) -> GenerationRequest:
        """The same request with a seed: its own, or one drawn at random below 2**32."""
        return self if self.seed is not None else replace(self, seed=secrets.randbelow(2**32))

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is read of them: the negative prompt with guidance only."""
        return (self.prompt,) if self.guidance_scale == 0.0 else (self.prompt, self.negative_prompt)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each picture: seed, seed + 1, ...; the request must have a seed."""
        if self.seed is None:
            raise ValueError("the seed has not been drawn yet: call with_seed() first")
        return tuple(range(self.seed, self.seed + self.num_images_per_prompt))


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedImage:
    """One finished picture, not yet a file.

    Attributes:
        index: its place in the request, from 0.
        seed: the seed it was made from.
        width, height: pixels.
        pixels: RGB, 8 bits each, row after row: height * width * 3 bytes.
    """

    index: int
    seed: int
    width: int
    height: int
    pixels: memoryview | bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """A small picture of the unfinished latents: one pixel for each latent position.

    Attributes:
        width, height: pixels (an eighth of the final size).
        pixels: RGB, 8 bits each, row after row.
    """

    width: int
    height: int
    pixels: bytes
