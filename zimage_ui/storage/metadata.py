"""What a picture remembers about its making: A1111's `parameters` text for other tools, and our JSON to rebuild from.

Both travel inside the file. The JSON is the truth: it holds everything, exactly. The A1111 text is what the field's
tools read. `timings_ms` inside a file are the times known when it was encoded; the time of its own saving cannot be
among them and is added in the library's row (`with_timings`).

`from_json` may meet a stranger's file: it takes bounded text only, checks every value, and calls nothing by name.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from zimage_ui import __version__
from zimage_ui.errors import InvalidRequestError, StorageError
from zimage_ui.request import GenerationRequest, Precision, SchedulerName

JSON_FORMAT = 1
# Two prompts of the longest kind, every character of them escaped, need 96 KB; what is longer is not ours.
MAX_JSON_CHARS = 256 * 1024
MAX_NAME_CHARS = 200
MAX_ENTRIES = 64
_MAX_COUNT = 10**9
_SAMPLER_NAMES = {
    SchedulerName.EULER: "Euler",
    SchedulerName.UNIPC: "UniPC",
    SchedulerName.DPMPP_2M: "DPM++ 2M",
}
# Control characters but tab and newline: no text tool shows them, and PNG text may not hold NUL. The JSON keeps them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureMetadata:
    """How one picture was made.

    Attributes:
        picture_id: its server-made id, also its file's name.
        created_at: when it was finished, with its time zone; its date names the folder.
        request: the request reduced to this picture: its own seed, one image.
        index: its place in the job, from 0.
        nfe: transformer forwards really run.
        model_name, model_fingerprint, model_trained, dtype: what made it.
        versions: package name -> version, of all that shapes the pixels.
        timings_ms: stage name -> milliseconds, of those stages known so far.
        prompt_tokens, truncated_tokens: given to the model; cut off beyond its maximum.
        memory_plan: how the model's parts shared the device's memory; empty in files from before it was kept.
        precision: of the transformer's matrix products; files from before it was kept are exact.

    Raises:
        ValueError: the seed has not been drawn, or `created_at` has no time zone (a programmer's mistake).
    """

    picture_id: str
    created_at: datetime
    request: GenerationRequest
    index: int
    nfe: int
    model_name: str
    model_fingerprint: str
    model_trained: bool
    dtype: str
    versions: dict[str, str] = field(default_factory=dict)
    timings_ms: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    truncated_tokens: int = 0
    memory_plan: str = ""
    precision: Precision = Precision.EXACT

    def __post_init__(self) -> None:
        if self.request.seed is None:
            raise ValueError("a picture's metadata needs the seed that it was made from")
        if self.created_at.utcoffset() is None:
            raise ValueError("created_at needs a time zone")
        # One picture, and how it was watched is no part of it: so that what is read back equals what was written.
        object.__setattr__(self, "request", replace(self.request, num_images_per_prompt=1, preview=True))

    def with_timings(self, timings_ms: dict[str, float]) -> PictureMetadata:
        """The same, with these times added to (or put in place of) those known before."""
        return replace(self, timings_ms={**self.timings_ms, **timings_ms})

    def to_parameters(self) -> str:
        """The text that A1111 writes and the field's tools read: prompt, negative prompt, one line of settings."""
        request = self.request
        lines = [_CONTROLS.sub(" ", request.prompt)]
        if request.negative_prompt:
            lines.append(f"Negative prompt: {_CONTROLS.sub(' ', request.negative_prompt)}")
        settings = {
            "Steps": request.num_inference_steps,
            "Sampler": _SAMPLER_NAMES[request.scheduler],
            "CFG scale": f"{request.guidance_scale:g}",
            "Seed": request.seed,
            "Size": f"{request.width}x{request.height}",
            "Model hash": self.model_fingerprint,
            "Model": self.model_name,
            **({} if self.model_trained else {"Untrained": "true"}),
            **({} if self.precision is Precision.EXACT else {"Precision": self.precision}),
            "Version": f"zimage-ui {__version__}",
        }
        lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items()))
        return "\n".join(lines)

    def to_json(self) -> str:
        """Everything, as one line of JSON; `from_json` gives it back."""
        return json.dumps(self._as_dict(), ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    def _as_dict(self) -> dict[str, Any]:
        request = self.request
        return {
            "format": JSON_FORMAT,
            "program": f"zimage-ui {__version__}",
            "picture_id": self.picture_id,
            "created_at": self.created_at.isoformat(),
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "width": request.width,
            "height": request.height,
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "seed": request.seed,
            "scheduler": request.scheduler.value,
            "image_format": request.image_format.value,
            "index": self.index,
            "nfe": self.nfe,
            "model": {
                "name": self.model_name,
                "fingerprint": self.model_fingerprint,
                "trained": self.model_trained,
                "dtype": self.dtype,
            },
            "versions": self.versions,
            "timings_ms": self.timings_ms,
            "prompt_tokens": self.prompt_tokens,
            "truncated_tokens": self.truncated_tokens,
            "memory_plan": self.memory_plan,
            "precision": self.precision,
        }

    @classmethod
    def from_json(cls, text: str) -> PictureMetadata:
        """Read what `to_json` wrote, from whomever it comes.

        Raises:
            StorageError: the text is too long, no JSON, or holds a value that no picture of ours can have.
        """
        if len(text) > MAX_JSON_CHARS:
            raise StorageError(
                f"The picture's settings have {len(text):,} characters; at most {MAX_JSON_CHARS:,} are read."
            )
        try:
            return cls._from_fields(_Fields(json.loads(text, parse_constant=_no_constant)))
        except RecursionError:
            raise StorageError("The picture's settings are nested too deeply.") from None
        except (ValueError, InvalidRequestError) as error:
            raise StorageError(f"The picture's settings cannot be read: {error}") from None

    @classmethod
    def _from_fields(cls, fields: _Fields) -> PictureMetadata:
        if fields.whole("format") > JSON_FORMAT:
            raise ValueError(f"they are of format {fields.whole('format')}, newer than {JSON_FORMAT}")
        model = _Fields(fields.get("model", dict))
        return cls(
            picture_id=fields.text("picture_id"),
            created_at=datetime.fromisoformat(fields.text("created_at")),
            request=GenerationRequest(
                prompt=fields.get("prompt", str),
                negative_prompt=fields.get("negative_prompt", str),
                width=fields.whole("width"),
                height=fields.whole("height"),
                num_inference_steps=fields.whole("num_inference_steps"),
                guidance_scale=fields.number("guidance_scale"),
                seed=fields.get("seed", int),
                scheduler=fields.get("scheduler", str),
                image_format=fields.get("image_format", str),
            ),
            index=fields.whole("index"),
            nfe=fields.whole("nfe"),
            model_name=model.text("name"),
            model_fingerprint=model.text("fingerprint"),
            model_trained=model.get("trained", bool),
            dtype=model.text("dtype"),
            versions={_name(key): value for key, value in fields.entries("versions", _Fields.text)},
            timings_ms={_name(key): value for key, value in fields.entries("timings_ms", _Fields.number)},
            prompt_tokens=fields.whole("prompt_tokens"),
            truncated_tokens=fields.whole("truncated_tokens"),
            memory_plan=fields.text("memory_plan") if fields.has("memory_plan") else "",
            precision=Precision(fields.text("precision")) if fields.has("precision") else Precision.EXACT,
        )


class _Fields:
    """A parsed JSON object whose values are checked as they are taken; every complaint is a `ValueError`."""

    def __init__(self, parsed: Any) -> None:
        if not isinstance(parsed, dict):
            raise ValueError(f"there is a {type(parsed).__name__} where an object should be")
        self._parsed = parsed

    def has(self, name: str) -> bool:
        """Whether there is a value of that name: files of before a field was added have none."""
        return name in self._parsed

    def get(self, name: str, kind: type) -> Any:
        """The value, of exactly this type."""
        value = self._parsed.get(name)
        if type(value) is not kind:
            raise ValueError(f"{name[:MAX_NAME_CHARS]} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def text(self, name: str) -> str:
        """A short text."""
        return _name(self.get(name, str))

    def whole(self, name: str) -> int:
        """A count."""
        value: int = self.get(name, int)
        if not 0 <= value <= _MAX_COUNT:
            raise ValueError(f"{name} is not a number from 0 to {_MAX_COUNT:,}")
        return value

    def number(self, name: str) -> float:
        """A finite number (NaN compares false)."""
        value: Any = self._parsed.get(name)
        if type(value) not in (int, float) or not abs(value) <= _MAX_COUNT:
            raise ValueError(f"{name[:MAX_NAME_CHARS]} is not a number of at most {_MAX_COUNT:,}")
        return float(value)

    def entries(self, name: str, take: Any) -> list[tuple[str, Any]]:
        """The (key, checked value) pairs of an inner object."""
        inner = _Fields(self.get(name, dict))
        if len(inner._parsed) > MAX_ENTRIES:
            raise ValueError(f"{name} has more than {MAX_ENTRIES} entries")
        return [(key, take(inner, key)) for key in inner._parsed]


def _name(text: str) -> str:
    """A short text that any encoder takes: half characters (lone surrogates) become question marks."""
    if len(text) > MAX_NAME_CHARS:
        raise ValueError(f"a name has {len(text):,} characters, more than {MAX_NAME_CHARS}")
    return text.encode("utf-8", "replace").decode("utf-8")


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _quoted(value: str) -> str:
    """A1111's rule: a value that would break the line apart is written as a JSON string."""
    return json.dumps(value, ensure_ascii=False) if re.search(r"[,:\n]", value) else value
