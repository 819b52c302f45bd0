"""The command line: `zimage-ui serve` and `zimage-ui generate`.

Options of `serve` are the fields of `Settings`, made from them, so that they cannot drift apart. Exit codes follow
sysexits.h: 0 done, 2 wrong usage or request, 69 the model cannot be had, 70 it failed, 78 the settings cannot be used.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

import typer

from zimage_ui import __version__
from zimage_ui.errors import (
    InvalidRequestError,
    ModelError,
    OutputFolderError,
    SettingsError,
    ZImageError,
)
from zimage_ui.request import SchedulerName
from zimage_ui.settings import Settings, load_settings

EXIT_OK, EXIT_USAGE, EXIT_UNAVAILABLE, EXIT_SOFTWARE, EXIT_CONFIG = 0, 2, 69, 70, 78
_EXIT_CODES: tuple[tuple[type[ZImageError], int], ...] = (
    (SettingsError, EXIT_CONFIG),
    (OutputFolderError, EXIT_CONFIG),
    (InvalidRequestError, EXIT_USAGE),
    (ModelError, EXIT_UNAVAILABLE),
)

app = typer.Typer(
    help="The local studio for Z-Image-Turbo.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its square brackets would swallow ours
)


def exit_code(error: ZImageError) -> int:
    """The process exit code for an error of our tree."""
    return next((code for kind, code in _EXIT_CODES if isinstance(error, kind)), EXIT_SOFTWARE)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors of our tree are printed as one clear message."""
    try:
        app(list(arguments) if arguments is not None else None)
    except SystemExit as stop:  # typer ends every command line so, a wrong one with 2 and its own clear message
        return stop.code if isinstance(stop.code, int) else EXIT_OK
    except ZImageError as error:
        print(f"zimage-ui: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"           {error.hint}", file=sys.stderr)
        return exit_code(error)
    return EXIT_OK


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"zimage-ui {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """The local studio for Z-Image-Turbo."""


def _option(name: str, kind: Any, *flags: str, default: Any = None, **more: Any) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(*flags, show_default=False, **more)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _settings_options(*names: str) -> list[inspect.Parameter]:
    """One optional option for each field of `Settings` (or those named); None means "not given"."""
    options = []
    for name in names or Settings.model_fields:
        field = Settings.model_fields[name]
        default = field.default.value if isinstance(field.default, StrEnum) else field.default
        options.append(_option(name, field.annotation | NoneType, help=f"{field.description} [{default}]"))
    return options


def _command(parameters: list[inspect.Parameter]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function of keyword arguments as a command with exactly these parameters."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return app.command()(function)

    return register


@_command(_settings_options())
def serve(**options: Any) -> None:
    """Start the studio and print its address."""
    settings = load_settings(**options)  # a wrong setting is told before anything heavy is imported
    from zimage_ui.runtime import serve as run_service

    raise typer.Exit(run_service(settings, tell=partial(print, flush=True)))


# Public option -> field of GenerationRequest, where the names differ.
_REQUEST_FIELDS = {"steps": "num_inference_steps", "count": "num_images_per_prompt"}
_REQUEST_OPTIONS = [
    _option("width", int | None, help="Pixels, a multiple of 16. [the model's own]"),
    _option("height", int | None, help="Pixels, a multiple of 16. [the model's own]"),
    _option("steps", int | None, help="Sampling steps. [the model's own]"),
    _option("seed", int | None, help="Same seed, same picture. [drawn at random and reported]"),
    _option("count", int | None, help="Pictures from one prompt, with seeds seed, seed + 1, ... [1]"),
    _option("scheduler", SchedulerName | None, help="How the equation is integrated. [euler]"),
    _option("guidance_scale", float | None, help="0 is off, which the turbo model wants. [the model's own]"),
    _option("negative_prompt", str | None, help="What not to show; needs guidance."),
]
_GENERATE_PARAMETERS = [
    inspect.Parameter(
        "prompt",
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[str, typer.Argument(help="What the picture should show.", show_default=False)],
    ),
    *_REQUEST_OPTIONS,
    _option("output", Path | None, help="File to write: .png, .jpg or .webp. [a new one in the output folder]"),
    *_settings_options("model", "precision", "output_dir", "image_format"),
    _option("warmup", bool, "--warmup", default=False, help="One full pass first: the times are a warm service's."),
    _option("as_json", bool, "--json", default=False, help="Print files, seed, nfe, timings and the model as JSON."),
]


@_command(_GENERATE_PARAMETERS)
def generate(**options: Any) -> None:
    """Make pictures without the page."""
    from zimage_ui.errand import Errand
    from zimage_ui.runtime import run_errand

    wanted = {
        _REQUEST_FIELDS.get(parameter.name, parameter.name): options.pop(parameter.name)
        for parameter in _REQUEST_OPTIONS
    }
    given = {"prompt": options.pop("prompt"), **{name: value for name, value in wanted.items() if value is not None}}
    as_json, errand = options.pop("as_json"), Errand(given, output=options.pop("output"), warmup=options.pop("warmup"))
    tell = partial(print, file=sys.stderr)
    report = run_errand(errand, load_settings(**options), tell=tell)
    if report["truncated_tokens"]:
        tell(f"The prompt is too long: its last {report['truncated_tokens']} tokens were not read.")
    if not report["model"]["trained"]:
        tell("The model is untrained: its pictures mean nothing.")
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print("\n".join(report["files"]))
