import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bench import quality
from bench.pictures import painted
from zimage_ui.request import Precision


def made(shift: float) -> quality.Made:
    latents = np.ones(16, np.float32) * (1 + shift)
    return quality.Made(latents, (painted(32) + shift * 100).clip(0, 255).astype(np.uint8))


def test_pairs_are_measured_and_equal_pictures_have_no_psnr():
    figures = quality.compare([made(0), made(0.1)], [made(0), made(0)])
    equal, shifted = figures["pictures"]
    assert equal == {"latents_error_pct": 0.0, "psnr_db": None, "ssim": 1.0}
    assert shifted["latents_error_pct"] == pytest.approx(10, abs=1e-4)
    assert 20 < shifted["psnr_db"] < 30
    assert figures["spread"]["psnr_db"]["count"] == 1
    assert figures["spread"]["ssim"]["min"] == pytest.approx(shifted["ssim"], abs=1e-3)
    alone = quality.compare([made(0)], [made(0)])
    assert alone["spread"]["psnr_db"] is None
    assert "equal" in quality.table({"model": {"mode": alone}})


def test_prompts_come_in_pairs_of_seeds():
    sketches = quality.sketches_for(quality.BUNDLED_FOLDER, [(64, 64), (96, 64)], 2)
    assert [sketch.seed for sketch in sketches] == [1, 2] * 4
    assert [sketch.prompt for sketch in sketches[::2]] == [sketch.prompt for sketch in sketches[1::2]]
    assert len({sketch.prompt for sketch in sketches}) == 4
    assert {sketch.size for sketch in sketches[:4]} == {(64, 64)}


def test_every_lossy_precision_is_measured_unless_named():
    assert set(quality.parse([]).modes) == set(Precision) - {"exact"}
    assert quality.parse(["--modes", "int8"]).modes == ["int8"]


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        quality.main([str(tmp_path / "nowhere")])
    assert f"{tmp_path / 'nowhere'} is no folder; `python -m bench.engine` builds one" in capsys.readouterr().err


@pytest.mark.model
def test_the_stock_pipeline_of_a_tiny_model_draws_what_exact_draws(tmp_path: Path):
    """A CPU computes in fp32: there is nothing that fp32 could show beside it."""
    import torch

    from zimage_ui.generator.untrained import TINY, build_untrained_model

    folder, result = build_untrained_model(tmp_path / "tiny", TINY), tmp_path / "quality.json"
    arguments = f"--sizes 64x64 --prompts 1 --threads {torch.get_num_threads()} --commit abc --result {result}"
    quality.main([str(folder), *arguments.split(), "--modes", "fp8", "--stock"])
    ((_, parts),) = json.loads(result.read_text("utf-8"))["parts"].items()
    assert set(parts) == {quality.ANOTHER_SEED, "fp8", quality.STOCK}
    assert parts[quality.STOCK]["computed_on"] == parts[quality.ANOTHER_SEED]["computed_on"]
    assert "emulated" in parts["fp8"]["computed_on"]
    measured, other = parts[quality.STOCK]["spread"], parts[quality.ANOTHER_SEED]["spread"]
    assert measured["latents_error_pct"]["max"] < 0.01 < other["latents_error_pct"]["min"]
    assert measured["ssim"]["min"] > other["ssim"]["max"]


@pytest.mark.parametrize(("dtype", "parts"), [("bfloat16", 3), ("float32", 1)])
def test_in_16_bits_both_are_compared_with_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dtype, parts):
    off = {"bfloat16": 0.03, "float32": 0.0}
    cast = SimpleNamespace(device="cpu", dtype=dtype)
    monkeypatch.setattr(quality, "Cast", lambda folder: cast)
    monkeypatch.setattr(quality, "Stock", lambda folder, device, dtype: off[dtype])
    monkeypatch.setattr(quality, "draw_stock", lambda shift, sketches: [made(shift)])
    figures = dict(quality.compare_with_stock(tmp_path, [], [made(0.01)]))
    errors = {part: told["pictures"][0]["latents_error_pct"] for part, told in figures.items()}
    stock_to_exact = 100 * abs(off[dtype] - 0.01) / 1.01
    expected = {quality.STOCK: stock_to_exact, quality.EXACT_TO_FP32: 1.0, quality.STOCK_TO_FP32: 3.0}
    assert errors == pytest.approx(dict(list(expected.items())[:parts]), abs=1e-3)


@pytest.mark.model
def test_both_modes_of_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import torch

    from zimage_ui.generator.untrained import TINY, build_untrained_model

    folder, threads = build_untrained_model(tmp_path / "tiny", TINY), torch.get_num_threads()
    result = tmp_path / "quality.json"
    arguments = f"--sizes 64x64 --prompts 1 --threads {threads} --commit abc --result {result}"
    quality.main([str(folder), *arguments.split(), "--modes", "fp8"])
    quality.main([str(folder), *arguments.split(), "--modes", "int8", "nf4"])
    content = json.loads(result.read_text("utf-8"))
    ((_, parts),) = content["parts"].items()
    assert set(parts) == {quality.ANOTHER_SEED, "fp8", "int8", "nf4"}
    assert "emulated" in parts["fp8"]["computed_on"]
    for mode in ("fp8", "int8", "nf4"):
        measured, other = parts[mode]["spread"], parts[quality.ANOTHER_SEED]["spread"]
        assert 0 < measured["latents_error_pct"]["max"] < other["latents_error_pct"]["min"]
        assert math.inf > measured["psnr_db"]["min"] > other["psnr_db"]["max"]
        assert 1 > measured["ssim"]["min"] > other["ssim"]["max"]
    assert {told["commit"] for told in content["calls"].values()} == {"abc"}
    assert "fp8" in capsys.readouterr().out
