"""What the commands that measure a model share: their options, the model itself, and how part follows part."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bench import full_size
from bench.players import Size
from bench.report import RESULTS, PartedResult, circumstances, commit

_PACKAGES = (
    "torch", "diffusers", "transformers", "accelerate", "safetensors", "triton", "numpy", "nvidia-ml-py",
    "flash-attn-4", "quack-kernels",
)  # fmt: skip


class Turns:
    """Measures parts one after the other until the time is up; what fails is told, and the next has its turn.

    Attributes:
        left_out: the names of what failed, or was not begun any more.
    """

    def __init__(self, result: PartedResult, minutes: float, *, keep_failures: bool = False) -> None:
        """Let the time begin now.

        Args:
            result: gets each part as soon as it is there.
            minutes: after which no further part begins.
            keep_failures: store the error of a part that fails as "failed", in place of what an earlier call found.
        """
        self.left_out: list[str] = []
        self._result = result
        self._ends_s = time.perf_counter() + 60 * minutes
        self._keep_failures = keep_failures

    def measure(self, place: tuple[str, ...], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure one part and store it at `place`."""
        name = "/".join(place)
        if not self.in_time(name):
            return
        begun_s = time.perf_counter()
        try:
            self._result.put(place, measure())
        except Exception as error:  # noqa: BLE001 - minutes of a GPU are not lost to one part that fails
            traceback.print_exc()
            self.left_out.append(name)
            if self._keep_failures:
                self._result.put(place, {"failed": f"{type(error).__name__}: {error}"})
        else:
            print(f"{name}: done in {time.perf_counter() - begun_s:.1f} s", flush=True)

    def in_time(self, name: str) -> bool:
        """Whether the part `name` may still begin; if not, that is told."""
        in_time = time.perf_counter() < self._ends_s
        if not in_time:
            print(f"{name}: left out, the time is up", flush=True)
            self.left_out.append(name)
        return in_time


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """What `function` answers in a new process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def parse_size(text: str) -> Size:
    """(832, 1248) of "832x1248".

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    try:
        width, height = map(int, text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 832x1248") from None
    return width, height


def size_name(size: Size) -> str:
    """As in "1024x1024"."""
    return "x".join(map(str, size))


def model_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options that every command over a model in FOLDER has; `completed` fills in what is not given."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{name}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the model; built when it is missing")
    parser.add_argument("--minutes", type=float, default=60.0, help="after which no further part begins [60]")
    parser.add_argument("--bf16-transformer", action="store_true", help="build 20 GB instead of 33 (the hub has fp32)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: only to try this out")
    parser.add_argument("--commit", default=commit(), help="that is measured [as git says]")
    parser.add_argument("--result", type=Path, help=f"[bench/results/{name}.json; with --tiny beside FOLDER]")
    return parser


def completed(options: argparse.Namespace, name: str) -> argparse.Namespace:
    """`options` with the folder and the result's path of the command `name` as they are used."""
    options.folder = options.folder.absolute()
    beside = options.folder.with_suffix(f".{name}.json")
    options.result = options.result or (beside if options.tiny else RESULTS / f"{name}.json")
    return options


def open_result(options: argparse.Namespace) -> PartedResult:
    """What earlier calls measured, and the circumstances of this one; the model is there afterwards."""
    if not options.folder.is_dir():
        build(options)
    told = {**circumstances(*_PACKAGES), "commit": options.commit, "model": full_size.marker(options.folder)}
    return PartedResult(options.result, told)


def build(options: argparse.Namespace) -> None:
    """Write the model, in a process of its own, so that this one stays off the device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = "bfloat16" if options.bf16_transformer else "float32"
    print(f"building the model in {options.folder} ...", flush=True)
    print(f"built in {alone(full_size.build, options.folder, device, options.tiny, dtype):.1f} s", flush=True)
