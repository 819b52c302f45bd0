"""The form: what a person asks for, and the two handlers behind it.

Generate makes one `GenerationRequest` and hands it to the jobs room; Cancel names a job. Both answer at once, on
Gradio's direct path (no Gradio queue: the jobs room has the only one), and what happens then comes over the page's
stream. Mistakes come back as data and are shown as text.

Labels are written in English here; the page's script puts them, with the values it remembers, into the language of
the person through the `form` event.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from zimage_ui.errors import InvalidRequestError, ZImageError
from zimage_ui.jobs.service import JobService
from zimage_ui.request import MAX_IMAGES, MAX_SEED, MAX_STEPS, GenerationRequest, ImageFormat, SchedulerName
from zimage_ui.ui.texts import text

# What the form offers until the model is known. First a size that every model makes: whoever asks before that would
# otherwise have the small model on a CPU work half a minute on a megapixel.
DEFAULT_SIZES = ((512, 512), (768, 768), (1024, 1024), (1280, 720), (720, 1280))
DEFAULT_STEPS = 8
MAX_CLIENT_CHARS = 64

_SIZE = re.compile(r"\s*(\d{1,5})\s*[x×]\s*(\d{1,5})\s*", re.ASCII)
_SEED = re.compile(r"-?\d{1,20}", re.ASCII)
# Ours, and quick: Gradio must neither queue these events, nor hold one back until the last is answered.
_DIRECT = {"queue": False, "show_progress": "hidden", "trigger_mode": "multiple", "api_visibility": "private"}

_LINK_CHOICE = """
const choice = element.querySelector("zi-choice");
choice.link = {
  get: () => props.value,
  set: (value) => { props.value = value; },
  watch: (callback) => watch("value", callback),
};
choice.dispatchEvent(new Event("linked"));
"""
_LINK_BRIDGE = """
const page = (globalThis.zimage ??= {});
page.fillForm = () => trigger("form");
watch("value", () => page.answered?.(props.value));
globalThis.dispatchEvent(new Event("zimage-form"));
"""


@dataclass
class Form:
    """The components of the form, by the names that texts and scripts know them by.

    Attributes:
        fields: what the person fills in, in the order that Gradio hands their values to the scripts.
        buttons: what the person presses.
        bridge: carries the page's own events in and the handlers' answers out.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    buttons: dict[str, Any] = field(default_factory=dict)
    bridge: Any = None

    @property
    def labelled(self) -> dict[str, Any]:
        """All that has words of Gradio's on it, in the order of the `form` event's outputs."""
        plain = {name: part for name, part in self.fields.items() if not isinstance(part, gr.HTML)}
        return plain | self.buttons


def build_form(image_format: ImageFormat) -> Form:
    """Place the form's components; call inside a `gr.Blocks`."""
    form = Form()
    with gr.Column(elem_id="zi-compose"):
        with gr.Row(elem_id="zi-ask"):
            form.fields["prompt"] = gr.Textbox(
                label=text("form.prompt"),
                placeholder=text("form.prompt.placeholder"),
                show_label=False,
                container=False,
                lines=2,
                max_lines=6,
                elem_id="zi-prompt",
            )
            with gr.Row(elem_id="zi-act"):
                _button(form, "generate", variant="primary")
                _button(form, "cancel")
                _button(form, "another")
        with gr.Row(elem_id="zi-settings"):
            _settings(form)
        with gr.Row(elem_id="zi-advanced"):
            _advanced(form, image_format)
    form.bridge = gr.HTML(
        value=None, html_template="", js_on_load=_LINK_BRIDGE, apply_default_css=False, elem_id="zi-bridge"
    )
    return form


def _settings(form: Form) -> None:
    width, height = DEFAULT_SIZES[0]
    form.fields["size"] = _choice("size", f"{width}x{height}")
    with gr.Row(elem_id="zi-seed-field", elem_classes="zi-field"):
        form.fields["seed"] = gr.Textbox(
            label=text("form.seed"), placeholder=text("form.seed.placeholder"), max_lines=1, elem_id="zi-seed"
        )
        _button(form, "dice")
        _button(form, "reuse")
    _stepper(form, "steps", DEFAULT_STEPS, MAX_STEPS)
    _stepper(form, "count", 1, MAX_IMAGES)
    gr.HTML("<zi-more></zi-more>", js_on_load=None, apply_default_css=False, elem_id="zi-more")


def _stepper(form: Form, name: str, value: int, most: int) -> None:
    with gr.Row(elem_id=f"zi-{name}-field", elem_classes=["zi-field", "zi-stepper"]):
        less = _button(form, f"{name}-less")
        # No range for Gradio to check: GenerationRequest knows it and says what is wrong in words.
        number = form.fields[name] = gr.Number(
            label=text(f"form.{name}"), value=value, precision=0, elem_id=f"zi-{name}"
        )
        more = _button(form, f"{name}-more")
    for button, change in ((less, -1), (more, 1)):
        bounded = f"(value) => Math.min({most}, Math.max(1, (Number(value) || 0) + {change}))"
        button.click(None, inputs=number, outputs=number, js=bounded)


def _advanced(form: Form, image_format: ImageFormat) -> None:
    form.fields["negative"] = gr.Textbox(
        label=text("form.negative"),
        placeholder=text("form.negative.placeholder"),
        lines=1,
        max_lines=3,
        elem_id="zi-negative",
    )
    form.fields["guidance"] = gr.Number(label=text("form.guidance"), value=0.0, step=0.5, elem_id="zi-guidance")
    form.fields["scheduler"] = _choice("scheduler", SchedulerName.EULER.value)
    form.fields["format"] = _choice("format", image_format.value)


def _choice(name: str, value: str) -> Any:
    """One value out of a few, drawn by our own element (`choice.js`); the options live in the page."""
    return gr.HTML(
        value=value,
        html_template=f'<zi-choice name="{name}"></zi-choice>',
        js_on_load=_LINK_CHOICE,
        apply_default_css=False,
        elem_id=f"zi-{name}",
    )


def _button(form: Form, name: str, variant: str = "secondary") -> Any:
    form.buttons[name] = gr.Button(text(f"form.{name}"), variant=variant, elem_id=f"zi-{name}")
    return form.buttons[name]


def connect_form(form: Form, jobs: JobService) -> None:
    """Give the form its events; call inside the same `gr.Blocks`, after all parts are placed."""
    fields = form.fields
    for part in fields.values():
        # Gradio would make text of lists and round numbers; what was sent is judged by `request_from_form` alone.
        part.preprocess = _as_sent
    # Filled in by the page's script when an event sets off: who asks, or which job to cancel.
    context = gr.HTML(value="", html_template="", js_on_load=None, apply_default_css=False, elem_id="zi-context")
    asked = form.buttons["generate"].click(
        _asker(jobs, fields, context),
        inputs={*fields.values(), context},
        outputs=form.bridge,
        js="(...values) => globalThis.zimage.submitting(values)",
        **_DIRECT,
    )
    asked.failure(None, js="() => globalThis.zimage.refused()")
    cancelled = form.buttons["cancel"].click(
        _canceller(jobs, context),
        inputs={context},
        outputs=form.bridge,
        js="() => [globalThis.zimage.cancelling()]",
        **_DIRECT,
    )
    cancelled.failure(None, js="() => globalThis.zimage.refused()")
    form.buttons["another"].click(None, js="() => globalThis.zimage.generate()")
    form.buttons["dice"].click(None, outputs=fields["seed"], js="() => ''")
    form.buttons["reuse"].click(
        None, inputs=fields["seed"], outputs=fields["seed"], js="(seed) => globalThis.zimage.lastSeed(seed)"
    )
    filled = form.bridge.form(None, outputs=list(form.labelled.values()), js="() => globalThis.zimage.form()")
    filled.then(None, js="() => globalThis.zimage.filled()")
    for name in ("prompt", "negative", "seed", "steps", "count", "guidance"):
        fields[name].change(None, inputs=fields[name], js=f"(value) => globalThis.zimage.remember('{name}', value)")


def _as_sent(value: Any) -> Any:
    return value


Handler = Callable[[dict[Any, Any]], dict[str, Any]]


def _asker(jobs: JobService, fields: dict[str, Any], context: Any) -> Handler:
    def ask(values: dict[Any, Any]) -> dict[str, Any]:
        given = {name: values[part] for name, part in fields.items()}

        def submit() -> dict[str, Any]:
            return {"job_id": jobs.submit(request_from_form(given), client_of(values[context])).job_id}

        return _answer(submit)

    return ask


def _canceller(jobs: JobService, context: Any) -> Handler:
    def cancel(values: dict[Any, Any]) -> dict[str, Any]:
        job_id = str(values[context])
        return _answer(lambda: {"cancelled": jobs.cancel(job_id), "job_id": job_id})

    return cancel


def _answer(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the page is told; `at` makes every answer differ from the last, or the page would not hear of it."""
    try:
        answer = act()
    except ZImageError as error:
        answer = {"error": {"message": error.message, "hint": error.hint, "code": error.code}}
        if isinstance(error, InvalidRequestError):
            answer["error"]["param"] = error.param
    return answer | {"at": time.monotonic_ns()}


def client_of(context: Any) -> str:
    """Who asks: the id that the browser made for itself; "page" when it has none that can be used."""
    try:
        client = json.loads(context)["client"]
    except (TypeError, ValueError, KeyError):
        return "page"
    usable = isinstance(client, str) and client.isascii() and client.isalnum() and len(client) <= MAX_CLIENT_CHARS
    return client if usable else "page"


def request_from_form(given: dict[str, Any]) -> GenerationRequest:
    """The request that the form's values ask for; whatever they are, as Gradio lets strangers send anything.

    Raises:
        InvalidRequestError: a value cannot be used; `param` names it.
    """
    width, height = _size(given["size"])
    return GenerationRequest(
        prompt=given["prompt"],
        negative_prompt="" if given["negative"] is None else given["negative"],
        width=width,
        height=height,
        num_inference_steps=given["steps"],
        guidance_scale=0.0 if given["guidance"] is None else given["guidance"],
        seed=_seed(given["seed"]),
        num_images_per_prompt=given["count"],
        scheduler=given["scheduler"],
        image_format=given["format"],
    )


def _size(value: Any) -> tuple[int, int]:
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidRequestError(f"size is {value!r}; it must be WIDTHxHEIGHT in pixels.", param="size")
    return int(match[1]), int(match[2])


def _seed(value: Any) -> int | None:
    """Empty is None: one is drawn."""
    digits = str("" if value is None else value).strip()
    if not digits:
        return None
    if not _SEED.fullmatch(digits):
        raise InvalidRequestError(
            f"seed is {digits[:40]!r}; it must be a whole number from 0 to {MAX_SEED}.",
            "Leave it empty to have one drawn.",
            param="seed",
        )
    return int(digits)


def form_names(form: Form) -> dict[str, Sequence[str]]:
    """What the scripts need to know of the form: the names behind the `form` event's outputs and Generate's inputs."""
    return {
        "fields": [name for name in form.labelled if name in form.fields],
        "buttons": list(form.buttons),
    }
