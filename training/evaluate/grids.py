"""Pictures on one sheet, with their prompts and the judge's word beside it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from training.evaluate.scores import Judged, is_all_right
from training.judge.verdict import CRITERIA

COLUMNS = 8
MAX_BYTES = 2_500_000
_TILES = (192, 160, 128, 96)


def write_grid(pictures: Sequence[NDArray[np.uint8]], judged: Sequence[Judged], path: Path) -> None:
    """Write `pictures` as a sheet to `path` (PNG, at most `MAX_BYTES`), and what they are beside it as JSON.

    Args:
        pictures: of one size, row after row.
        judged: what was asked for, and the judge's word on it; in the same order.
        path: of the PNG.
    """
    path.write_bytes(_small_enough(pictures))
    rows = [
        {
            "row": place // COLUMNS + 1,
            "column": place % COLUMNS + 1,
            "prompt": one.case.prompt,
            "seed": one.case.seed,
            "judged_right": is_all_right(one.verdict),
            "wrong": [name for name in CRITERIA if getattr(one.verdict, name) is False],
        }
        for place, one in enumerate(judged)
    ]
    path.with_suffix(".json").write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def sheet(pictures: Sequence[NDArray[np.uint8]], tile: int) -> Image.Image:
    """All pictures, `tile` pixels square, `COLUMNS` in a row."""
    rows = -(-len(pictures) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * tile, rows * tile))
    for place, picture in enumerate(pictures):
        small = Image.fromarray(picture).resize((tile, tile), Image.Resampling.LANCZOS)
        canvas.paste(small, (place % COLUMNS * tile, place // COLUMNS * tile))
    return canvas


def _small_enough(pictures: Sequence[NDArray[np.uint8]]) -> bytes:
    """The PNG with the largest tiles that fit in `MAX_BYTES`; noise does not compress, so there is a smallest."""
    data = b""
    for tile in _TILES:
        buffer = BytesIO()
        sheet(pictures, tile).save(buffer, "PNG", optimize=True)
        data = buffer.getvalue()
        if len(data) <= MAX_BYTES:
            break
    return data
