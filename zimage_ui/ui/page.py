"""The page: Gradio Blocks for the form, our own elements for everything that moves.

The elements (`assets/*.js`) are fed by the one stream that the web room serves; Gradio places them and carries the
form's events. The page holds no state that matters: reload it, open it twice, close it, and all is still there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any

import gradio as gr

from zimage_ui import __version__
from zimage_ui.generator.examples import MINI_EXAMPLES
from zimage_ui.jobs.service import JobService
from zimage_ui.request import ImageFormat, SchedulerName
from zimage_ui.settings import Settings
from zimage_ui.ui.chart import chart_spec
from zimage_ui.ui.compose import DEFAULT_SIZES, DEFAULT_STEPS, Form, build_form, connect_form, form_names
from zimage_ui.ui.texts import catalogue
from zimage_ui.ui.theme import StudioTheme

TITLE = "zimage-ui"
ASSETS_URL = "/assets"


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The page and what belongs to its mount (`gradio.mount_gradio_app`).

    Attributes:
        blocks: a `gradio.Blocks`.
        theme: a Gradio theme; it carries the style sheet too.
        css, js: empty: Gradio would rewrite the one and wait for the other.
        head: what goes into the page's head: its configuration and its script.
    """

    blocks: Any
    theme: Any
    css: str
    head: str
    js: str


def build_page(jobs: JobService, settings: Settings) -> Page:
    """Build the page over `jobs`; call from outside of any event loop."""
    return asyncio.run(_build_page(jobs, settings))


async def _build_page(jobs: JobService, settings: Settings) -> Page:
    """A coroutine because Gradio, outside of an event loop, makes several and never closes them."""
    with gr.Blocks(title=TITLE, fill_width=True, analytics_enabled=False) as blocks:
        with gr.Column(elem_id="zi-shell"):
            _element("zi-header")
            _element("zi-strip")
            with gr.Column(elem_id="zi-studio"):
                _element("zi-canvas")
                _element("zi-timings")
                form = build_form(settings.image_format)
            with gr.Column(elem_id="zi-instruments"):
                for tag in ("zi-warmup", "zi-machine", "zi-chart", "zi-model"):
                    _element(tag)
        _element("zi-toasts")
        connect_form(form, jobs)
    blocks.queue(api_open=False)
    return Page(blocks=blocks, theme=StudioTheme(), css="", head=_head(page_config(form, settings)), js="")


def page_config(form: Form, settings: Settings) -> dict[str, Any]:
    """What the scripts know from the start; everything else comes over the stream."""
    return {
        "version": __version__,
        "language": settings.language,
        "texts": catalogue(),
        "chart": chart_spec(),
        "telemetry_interval_s": settings.telemetry_interval_s,
        "form": form_names(form),
        "sizes": DEFAULT_SIZES,
        "steps": DEFAULT_STEPS,
        # Until the model is known: what the small one draws, every other draws too.
        "examples": [asdict(example) for example in MINI_EXAMPLES],
        "choices": {"scheduler": list(SchedulerName), "format": list(ImageFormat)},
        "plotly_url": f"{ASSETS_URL}/plotly.min.js?v={_plotly_version()}",
    }


def _element(tag: str) -> None:
    """Place one of our own elements."""
    gr.HTML(f"<{tag}></{tag}>", js_on_load=None, apply_default_css=False, elem_id=f"{tag}-slot")


def _head(config: dict[str, Any]) -> str:
    # "<" only ever stands inside JSON strings, where its escape means the same and cannot end the script.
    embedded = json.dumps(config, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return "".join(
        (
            '<meta name="color-scheme" content="light dark">',
            f'<link rel="icon" type="image/svg+xml" href="{ASSETS_URL}/favicon.svg?v={__version__}">',
            f'<script type="application/json" id="zi-config">{embedded}</script>',
            f'<script type="module" src="{ASSETS_URL}/studio.js?v={_scripts_version()}"></script>',
        )
    )


def _scripts_version() -> str:
    """Changes with the entry script; what it imports has no version in its address and is asked for each time."""
    return hashlib.blake2b(
        files("zimage_ui.ui").joinpath("assets", "studio.js").read_bytes(), digest_size=6
    ).hexdigest()


def _plotly_version() -> str:
    import plotly

    return str(plotly.__version__)
