import json

import numpy as np
import pytest

from bench import encoders, report
from bench.pictures import KINDS


def test_the_comparison_runs_and_every_png_is_exact(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    encoders.main(["--side", "64", "--rounds", "1"])
    rows = json.loads((tmp_path / "encoders.json").read_text("utf-8"))["rows"]
    assert {row["picture"] for row in rows} == set(KINDS)
    assert {"png as saved", "jpeg as saved", "webp as saved", "png Pillow default"} <= {row["encoder"] for row in rows}
    assert all(row["psnr_db"] is None for row in rows if row["encoder"].startswith("png"))
    assert all(row["kib"] > 0 and row["ms"] > 0 for row in rows)
    assert all((row["gil_free_pct"] is not None) == (row["picture"] == "painted") for row in rows)
    assert len(capsys.readouterr().out.splitlines()) >= len(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_the_pictures_are_the_same_each_time(kind):
    first, again = KINDS[kind](64), KINDS[kind](64)
    assert (first.shape, first.dtype) == ((64, 64, 3), np.uint8)
    assert np.array_equal(first, again)
