"""Which encoder? Time, size, exactness and use of the GIL of the candidates: `python -m bench.encoders`.

Each candidate encodes the same pictures, in turns, on one thread. `ms` is the median wall time, `cpu_ms` the median
time of that thread's own processor clock, which other programs on the machine hardly disturb. `gil_free_pct` says how
much another Python thread could work meanwhile: the processor time that it got, of that of the encoding; 100 or more is
all of it, near 0 means that the encoder never let the GIL go. fpng and opencv are compared where they are installed;
the service needs neither.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import threading
import time
import zlib
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from PIL import Image

from bench.pictures import KINDS, Pixels
from bench.report import write_result
from zimage_ui.request import GeneratedImage, GenerationRequest, ImageFormat
from zimage_ui.storage import encoders
from zimage_ui.storage.files import new_picture_id
from zimage_ui.storage.metadata import PictureMetadata

Encode = Callable[[Pixels], bytes]
_UP, _SUB, _NONE = 2, 1, 0


def _pillow(pixels: Pixels, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, name, **options)
    return file.getvalue()


def _pillow_by_descriptor(pixels: Pixels, name: str, **options: Any) -> bytes:
    """Pillow writes to a true file descriptor without the GIL; here one of memory (Linux only)."""
    with os.fdopen(os.memfd_create("picture"), "w+b") as file:
        Image.fromarray(pixels).save(file, name, **options)
        file.seek(0)
        return file.read()


def _filtered(pixels: Pixels, kind: int) -> Pixels:
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    filtered = np.empty((height, width * channels + 1), np.uint8)
    filtered[:, 0], filtered[:, 1:] = kind, rows
    if kind == _UP:
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    elif kind == _SUB:
        np.subtract(rows[:, 3:], rows[:, :-3], out=filtered[:, 4:])
    return filtered


def _adaptive(pixels: Pixels) -> Pixels:
    """For each row the one of "up" and "sub" with the smaller sum of absolute differences (PNG specification 12.7)."""
    up, sub = _filtered(pixels, _UP), _filtered(pixels, _SUB)
    cost_up, cost_sub = (np.abs(rows[:, 1:].view(np.int8)).sum(1, dtype=np.int64) for rows in (up, sub))
    better = cost_sub < cost_up
    up[better] = sub[better]
    return up


def _own_png(pixels: Pixels, rows: Callable[[Pixels], Pixels], compress: Callable[[Pixels], bytes]) -> bytes:
    height, width, _ = pixels.shape
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((8, 2, 0, 0, 0))
    chunks = ((b"IHDR", header), (b"IDAT", compress(rows(pixels))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + isal_zlib.crc32(data, isal_zlib.crc32(kind)).to_bytes(4, "big")
        for kind, data in chunks
    )


def _ours(pixels: Pixels, image_format: ImageFormat) -> bytes:
    height, width, _ = pixels.shape
    image = GeneratedImage(index=0, seed=1, width=width, height=height, pixels=memoryview(pixels.reshape(-1)))
    request = GenerationRequest(prompt="a measured picture", width=width, height=height, seed=1)
    metadata = PictureMetadata(
        picture_id=new_picture_id(),
        created_at=datetime.now(UTC),
        request=request,
        index=0,
        nfe=8,
        model_name="none",
        model_fingerprint="",
        model_trained=False,
        dtype="",
    )
    return encoders.encode_picture(image, metadata, image_format).data


def _candidates() -> dict[str, Encode]:
    up, sub, none = (partial(_filtered, kind=kind) for kind in (_UP, _SUB, _NONE))
    candidates: dict[str, Encode] = {
        f"png up isal {level}": partial(_own_png, rows=up, compress=partial(isal_zlib.compress, level=level))
        for level in range(4)
    }
    isal_1 = partial(isal_zlib.compress, level=1)
    candidates |= {
        "png sub isal 1": partial(_own_png, rows=sub, compress=isal_1),
        "png none isal 1": partial(_own_png, rows=none, compress=isal_1),
        "png adaptive isal 1": partial(_own_png, rows=_adaptive, compress=isal_1),
        "png up zlib 1": partial(_own_png, rows=up, compress=partial(zlib.compress, level=1)),
        "png Pillow 1": partial(_pillow, name="PNG", compress_level=1),
        "png Pillow default": partial(_pillow, name="PNG"),
        **_optional(),
        "jpeg q90 4:4:4": partial(_pillow, name="JPEG", quality=90, subsampling="4:4:4"),
        "jpeg q92 4:4:4": partial(_pillow, name="JPEG", quality=92, subsampling="4:4:4"),
        "jpeg q92 4:4:4 memfd": partial(_pillow_by_descriptor, name="JPEG", quality=92, subsampling="4:4:4"),
        "jpeg q92 4:2:0": partial(_pillow, name="JPEG", quality=92, subsampling="4:2:0"),
        "jpeg q95 4:4:4": partial(_pillow, name="JPEG", quality=95, subsampling="4:4:4"),
        **{f"webp q90 m{m}": partial(_pillow, name="WEBP", quality=90, method=m) for m in (0, 2, 4)},
        **{f"{image_format} as saved": partial(_ours, image_format=image_format) for image_format in ImageFormat},
    }
    return candidates


def _optional() -> dict[str, Encode]:
    found: dict[str, Encode] = {}
    try:
        import fpng
    except ImportError:
        print("fpng is not installed: left out")
    else:
        found["png fpng"] = fpng.from_ndarray
    try:
        import cv2
    except ImportError:
        print("opencv is not installed: left out")
    else:
        cv2.setNumThreads(1)
        found["png opencv 1"] = lambda pixels: bytes(
            cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
        )
    return found


def _time_once(encode: Encode, pixels: Pixels) -> tuple[float, float]:
    wall_s, cpu_s = time.perf_counter(), time.thread_time()
    encode(pixels)
    return (time.perf_counter() - wall_s) * 1e3, (time.thread_time() - cpu_s) * 1e3


def _gil_free_pct(encode: Encode, pixels: Pixels) -> float:
    """Processor time of this thread, which only takes and leaves the GIL, in % of that of one that encodes."""
    begun, span_s = threading.Event(), []

    def work() -> None:
        begun.set()
        wall_s, cpu_s = time.perf_counter(), time.thread_time()
        encode(pixels)
        span_s.extend((wall_s, time.perf_counter(), time.thread_time() - cpu_s))

    thread, turns_at_s = threading.Thread(target=work), []
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        thread.start()
        begun.wait()
        began_s = time.thread_time()
        while not span_s:
            nowhere.write(b"x")
            turns_at_s.append(time.perf_counter())
        turn_s = (time.thread_time() - began_s) / max(1, len(turns_at_s))
    thread.join()
    wall_s, end_s, encoding_s = span_s
    return 100 * turn_s * sum(wall_s < at_s < end_s for at_s in turns_at_s) / encoding_s


def _fidelity_db(data: bytes, pixels: Pixels) -> float | None:
    """Peak signal-to-noise ratio; None where every pixel is the same."""
    with Image.open(io.BytesIO(data)) as picture:
        error = np.asarray(picture.convert("RGB"), np.float64) - pixels
    power = float(np.mean(error**2))
    return 10 * float(np.log10(255**2 / power)) if power else None


def measure(side: int, rounds: int) -> list[dict[str, Any]]:
    """One row for each candidate and kind of picture."""
    candidates, rows = _candidates(), []
    for kind, make in KINDS.items():
        pixels = make(side)
        for encode in candidates.values():  # nobody pays for its first call
            encode(pixels)
        times = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, encode in candidates.items():
                times[name].append(_time_once(encode, pixels))
        for name, encode in candidates.items():
            data = encode(pixels)
            free = [_gil_free_pct(encode, pixels) for _ in range(rounds if kind == "painted" else 0)]
            rows.append(
                {
                    "picture": kind,
                    "encoder": name,
                    "ms": round(statistics.median(wall for wall, _ in times[name]), 2),
                    "cpu_ms": round(statistics.median(cpu for _, cpu in times[name]), 2),
                    "kib": round(len(data) / 1024, 1),
                    "psnr_db": None if (fidelity := _fidelity_db(data, pixels)) is None else round(fidelity, 2),
                    "gil_free_pct": round(statistics.median(free)) if free else None,
                }
            )
            _print_row(rows[-1])
    return rows


def _print_row(row: dict[str, Any]) -> None:
    exact = "exact" if row["psnr_db"] is None else f"{row['psnr_db']:.1f} dB"
    free = "" if row["gil_free_pct"] is None else f"  GIL free {row['gil_free_pct']:3} %"
    print(
        f"{row['picture']:9} {row['encoder']:20} {row['ms']:8.2f} ms {row['cpu_ms']:8.2f} cpu ms "
        f"{row['kib']:8.1f} KiB  {exact:>8}{free}"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, print the table and write `results/encoders.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--side", type=int, default=1024, help="pixels [1024]")
    parser.add_argument("--rounds", type=int, default=9, help="timed runs of each [9]")
    given = parser.parse_args(arguments)
    rows = measure(given.side, given.rounds)
    setting = {"side": given.side, "rounds": given.rounds}
    packages = ("numpy", "pillow", "isal", "fpng", "opencv-python-headless")
    print("written:", write_result("encoders", {**setting, "rows": rows}, *packages))


if __name__ == "__main__":
    main()
