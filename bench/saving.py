"""What does saving cost the generator? Pictures per second with saving off, inline and in the background.

`python -m bench.saving` runs the three in turns (off, inline, background, off, ...), each in a new folder on a real
disk, and reports medians, and the median of the ratios to "off" of the same round: what else the machine does meanwhile
is then in all three. The background's time includes waiting for the last picture to be safe on disk.

No model is run; what stands in for it, one at a time, does what a generator's thread does between two pictures:

    device  waits for `--picture-ms` in 8 steps, without the GIL, as a thread waits for a GPU
    launch  runs Python code for as long, never waiting: the worst that eager kernel launches could be, bound by the GIL
    cpu     multiplies matrices with torch on every core: a model without a GPU, with which the saver has to share

Pictures are prepared beforehand, picture-like and 8 different ones; nothing of their making is timed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from bench.pictures import painted
from bench.report import write_result
from zimage_ui.request import GeneratedImage, GenerationRequest, ImageFormat
from zimage_ui.storage.encoders import encode_picture
from zimage_ui.storage.files import OutputFolder, new_picture_id
from zimage_ui.storage.library import Library, LibraryRow
from zimage_ui.storage.metadata import PictureMetadata
from zimage_ui.storage.saver import SaveOrder, Saver

STEPS = 8
BAR = 0.97
MODES = ("off", "inline", "background")
_DIFFERENT = 8
_DRAIN_S = 600.0
Generate = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Run:
    """One mode, timed over all its pictures."""

    pictures_per_s: float
    saved_size_bytes: int


def device(picture_ms: float) -> Generate:
    """Waits, as for a GPU."""
    never = threading.Event()

    def generate() -> None:
        for _ in range(STEPS):
            never.wait(picture_ms / STEPS / 1e3)

    return generate


def launch(picture_ms: float) -> Generate:
    """Runs a fixed amount of Python code that takes `picture_ms` on an idle core."""
    return _fixed_work(_count_to, picture_ms)


def cpu(picture_ms: float) -> Generate:
    """Multiplies matrices on every core, a fixed number of times that takes `picture_ms` on an idle machine."""
    import torch

    factors = torch.full((512, 512), 1e-3)

    def multiply(times: int) -> None:
        with torch.inference_mode():
            for _ in range(times):
                torch.mm(factors, factors)

    return _fixed_work(multiply, picture_ms)


GENERATORS: dict[str, Callable[[float], Generate]] = {"device": device, "launch": launch, "cpu": cpu}


def _count_to(end: int) -> None:
    number = 0
    while number < end:
        number += 1


def _fixed_work(work: Callable[[int], None], picture_ms: float) -> Generate:
    """`work` of the amount that takes `picture_ms`, found from the fastest of several tries."""
    amount, fastest_ms = 64, 0.0
    while fastest_ms < 40:
        amount *= 2
        fastest_ms = min(_ms(work, amount) for _ in range(15))
    wanted = max(1, round(amount * picture_ms / fastest_ms))
    return lambda: work(wanted)


def _ms(work: Callable[[int], None], amount: int) -> float:
    began_s = time.perf_counter()
    work(amount)
    return (time.perf_counter() - began_s) * 1e3


def _images(side: int) -> list[GeneratedImage]:
    return [
        GeneratedImage(index=0, seed=seed, width=side, height=side, pixels=painted(side, seed).tobytes())
        for seed in range(_DIFFERENT)
    ]


def _orders(
    images: list[GeneratedImage], image_format: ImageFormat
) -> Iterator[tuple[GeneratedImage, PictureMetadata]]:
    for image in cycle(images):
        request = GenerationRequest(
            prompt="a measured picture",
            width=image.width,
            height=image.height,
            seed=image.seed,
            image_format=image_format,
        )
        yield (
            image,
            PictureMetadata(
                picture_id=new_picture_id(),
                created_at=datetime.now(UTC),
                request=request,
                index=0,
                nfe=STEPS,
                model_name="none",
                model_fingerprint="",
                model_trained=False,
                dtype="",
            ),
        )


def _save_inline(folder: OutputFolder, library: Library, image: GeneratedImage, metadata: PictureMetadata) -> None:
    encoded = encode_picture(image, metadata, metadata.request.image_format)
    path = folder.path_for(metadata.picture_id, metadata.created_at, encoded.image_format)
    folder.write(path, encoded.data)
    library.add([LibraryRow.of(metadata, path=folder.relative(path), size_bytes=len(encoded.data))])


def _submit(saver: Saver, image: GeneratedImage, metadata: PictureMetadata) -> None:
    saver.submit(
        SaveOrder(
            picture_id=metadata.picture_id,
            image=image,
            metadata=metadata,
            image_format=metadata.request.image_format,
            on_ready=lambda _: None,
            on_saved=lambda _: None,
            on_failed=lambda error: print(f"not saved: {error}"),
        )
    )


@contextmanager
def _started(saver: Saver) -> Iterator[Saver]:
    saver.start()
    try:
        saver.self_check()  # as the service does before its first picture
        yield saver
    finally:
        saver.close(_DRAIN_S)


def run_once(mode: str, generate: Generate, orders: list[tuple[GeneratedImage, PictureMetadata]], root: Path) -> Run:
    """Make and (unless off) save all pictures in a new folder below `root`, which is removed afterwards."""
    folder = OutputFolder(Path(tempfile.mkdtemp(prefix="bench-saving-", dir=root)))
    folder.prepare()
    try:
        with closing(Library(folder)) as library, _started(Saver(folder, library)) as saver:
            began_s = time.perf_counter()
            for image, metadata in orders:
                generate()
                if mode == "inline":
                    _save_inline(folder, library, image, metadata)
                elif mode == "background":
                    _submit(saver, image, metadata)
            saver.drain(_DRAIN_S)
            spent_s = time.perf_counter() - began_s
            saved = library.count()
            if saved != (0 if mode == "off" else len(orders)):
                raise SystemExit(f"{mode}: {saved} of {len(orders)} pictures are listed")
            size_bytes = sum((folder.root / path).stat().st_size for path in folder.pictures())
    finally:
        shutil.rmtree(folder.root)
    return Run(len(orders) / spent_s, size_bytes)


def compare(
    name: str, image_format: ImageFormat, given: argparse.Namespace, images: list[GeneratedImage]
) -> dict[str, Any]:
    """The three modes in turns, `given.rounds` times."""
    generate = GENERATORS[name](given.picture_ms)
    generate()
    runs: dict[str, list[Run]] = {mode: [] for mode in MODES}
    for _ in range(given.rounds):
        for mode in MODES:
            orders = list(islice(_orders(images, image_format), given.pictures))
            runs[mode].append(run_once(mode, generate, orders, given.folder))
    ratios = {
        mode: [run.pictures_per_s / off.pictures_per_s for run, off in zip(runs[mode], runs["off"], strict=True)]
        for mode in MODES[1:]
    }
    return {
        "generator": name,
        "image_format": image_format.value,
        "pictures_per_s": {m: round(statistics.median(run.pictures_per_s for run in runs[m]), 3) for m in MODES},
        "ratio_to_off": {mode: round(statistics.median(ratios[mode]), 4) for mode in ratios},
        "ratios_of_rounds": {mode: [round(ratio, 4) for ratio in ratios[mode]] for mode in ratios},
        "mean_picture_kib": round(runs["inline"][0].saved_size_bytes / given.pictures / 1024),
    }


def _print_row(row: dict[str, Any]) -> None:
    rates, ratios = row["pictures_per_s"], row["ratio_to_off"]
    verdict = (
        f"(bar {BAR}: {'met' if ratios['background'] >= BAR else 'MISSED'})" if row["generator"] == "device" else ""
    )
    saving = ", ".join(f"{mode} {rates[mode]:6.3f} ({ratio:.3f})" for mode, ratio in ratios.items())
    print(
        f"{row['generator']:7} {row['image_format']:5} pictures/s: off {rates['off']:6.3f}, {saving} {verdict}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print one line for each comparison and write `results/saving.json`."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.saving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=1024, help="pixels [1024]")
    parser.add_argument("--pictures", type=int, default=24, help="of each run [24]")
    parser.add_argument("--rounds", type=int, default=7, help="of all three modes [7]")
    parser.add_argument("--picture-ms", type=float, default=300.0, help="one picture without saving [300]")
    parser.add_argument("--generators", nargs="+", choices=GENERATORS, default=list(GENERATORS), help="[all]")
    parser.add_argument("--formats", nargs="+", choices=list(ImageFormat), default=["png", "jpeg"], help="[png jpeg]")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to measure [/tmp]"
    )
    parser.add_argument("--name", default="saving", help="of the result [saving]")
    given = parser.parse_args(arguments)
    images, rows = _images(given.side), []
    for name in given.generators:
        for image_format in given.formats:
            rows.append(compare(name, ImageFormat(image_format), given, images))
            _print_row(rows[-1])
    setting = {name: getattr(given, name) for name in ("side", "pictures", "rounds", "picture_ms")} | {
        "disk": _file_system(given.folder),
        "cpu_count": os.cpu_count(),
        "bar": BAR,
    }
    print("written:", write_result(given.name, {**setting, "rows": rows}, "numpy", "pillow", "isal", "torch"))


def _file_system(folder: Path) -> str:
    """The type of the file system that `folder` lies on, from the longest mount point that holds it."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text("utf-8").splitlines()]
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    return max(holding, key=lambda mount: len(mount[1]))[2] if holding else ""


if __name__ == "__main__":
    main()
