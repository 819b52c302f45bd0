"""The whole recipe, small: from nothing to a folder that the program draws from; interrupted, it goes on."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from training.autoencoder import PictureBatches
from training.farm import Assortment
from training.recipe import Options, Scale, Training

pytestmark = [pytest.mark.model, pytest.mark.service, pytest.mark.usefixtures("one_thread")]


class Interruption(Exception):
    pass


class Ticking:
    """A second passes whenever somebody looks; at `last_s`, the run is interrupted."""

    def __init__(self, last_s: float = float("inf")) -> None:
        self._now_s = 0.0
        self._last_s = last_s

    def __call__(self) -> float:
        self._now_s += 1
        if self._now_s > self._last_s:
            raise Interruption
        return self._now_s


@pytest.fixture
def options(tmp_path: Path, sizes: Any) -> Options:
    """About ten steps a stage, of 64x64 pixels."""
    scale = Scale(
        model=sizes,
        assortment=Assortment({(64, 64): 0.7, (80, 64): 0.3}, pictures=8),
        batches=PictureBatches(crop_px=32, crop_chunks=1, whole_size=(64, 64), whole=8),
        first_chunks=4,
        steps_per_chunk=2,
        reports_per_save=1,
    )
    return Options(
        output=tmp_path / "made", run=tmp_path / "run", device=torch.device("cpu"),
        vae_minutes=0.5, flow_minutes=0.5, distil_minutes=0.5, guidance=1.0,
        processes=1, tokens=8 * 64, pictures=64, start_from=None, rate=1.0, muon=True,
        scale=scale, clock=Ticking(),
    )  # fmt: skip


def lines_of(options: Options, stage: str) -> list[dict[str, Any]]:
    lines = (options.run / "log.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if line["stage"] == stage]


@pytest.fixture
def draw() -> Callable[[Path], Image.Image]:
    from zimage_ui.generator.zimage import ZImageGenerator
    from zimage_ui.request import GenerationRequest

    def draw_from(folder: Path) -> Any:
        generator = ZImageGenerator(str(folder), embedding_cache_bytes=1 << 20)
        try:
            generator.load(lambda _: None)
            request = GenerationRequest(prompt="a red star", width=64, height=64, seed=1, num_inference_steps=2)
            return generator.generate(request).images[0], generator.info
        finally:
            generator.close()

    return draw_from


def test_from_nothing_to_a_picture(options, draw):
    Training(options).run()
    picture, info = draw(options.output)
    assert (picture.width, picture.height) == (64, 64)
    assert (info.name, info.profile.name, info.trained) == ("Z-Image mini", "mini", True)
    for name in ("flow", "distilled"):
        with Image.open(options.run / f"{name}.png") as grid:
            assert grid.size == (4 * 64, 4 * 64)
    (start,) = lines_of(options, "start")
    assert start["device"] == "cpu"
    assert start["parameters"].keys() == {"vae", "text_encoder", "transformer"}
    for stage in ("autoencoder", "flow", "distil"):
        assert lines_of(options, stage), stage
    last = (options.run / "log.jsonl").read_text("utf-8").splitlines()[-1]
    assert json.loads(last)["stage"] == "finished"
    assert json.loads(last)["elapsed_s"] > sum(
        lines_of(options, stage)[-1]["elapsed_s"] for stage in ("flow", "distil")
    )
    stored = "transformer/diffusion_pytorch_model.safetensors"
    assert (options.run / "teacher" / stored).read_bytes() != (options.output / stored).read_bytes()


def test_interrupted_it_goes_on(options, draw):
    with pytest.raises(Interruption):
        Training(replace(options, clock=Ticking(60), flow_minutes=10)).run()
    vae = (options.run / "vae" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert not (options.output / "model_index.json").exists()
    interrupted_at = torch.load(options.run / "flow.pt", weights_only=True)
    assert interrupted_at["step"] > 0

    Training(replace(options, clock=Ticking(), flow_minutes=1)).run()
    assert len(lines_of(options, "start")) == 2
    assert [line for line in lines_of(options, "autoencoder") if line.get("step") == 0] != []
    assert len([line for line in lines_of(options, "autoencoder") if "psnr_db" in line]) == 1
    assert (options.run / "vae" / "diffusion_pytorch_model.safetensors").read_bytes() == vae
    assert [line.get("step") for line in lines_of(options, "flow")].count(0) == 1
    finished = torch.load(options.run / "flow.pt", weights_only=True)
    assert finished["step"] > interrupted_at["step"]
    assert finished["spent_s"] >= 60 > interrupted_at["spent_s"]
    assert draw(options.output)[1].trained


def test_interrupted_in_the_last_stage_it_starts_that_one_again(options):
    with pytest.raises(Interruption):
        Training(replace(options, clock=Ticking(80))).run()
    assert (options.run / "teacher").exists()
    assert not (options.output / "model_index.json").exists()
    flow = lines_of(options, "flow")
    Training(replace(options, clock=Ticking())).run()
    assert lines_of(options, "flow") == flow
    assert (options.output / "model_index.json").exists()


def test_a_finished_model_is_trained_on(options, tmp_path):
    quick = replace(options, vae_minutes=0.1, flow_minutes=0.1, distil_minutes=0)
    Training(quick).run()
    assert not (options.run / "teacher").exists()
    further = replace(
        quick, run=tmp_path / "run-2", output=tmp_path / "made-2", start_from=quick.output, vae_minutes=0, rate=0.5,
        clock=Ticking(),
    )  # fmt: skip
    Training(further).run()
    assert lines_of(further, "autoencoder") == []
    before, after = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (quick.output, further.output)
    )
    assert before.keys() == after.keys()
    changed = {str(path.parts[0]) for path in before if before[path] != after[path]}
    assert changed == {"text_encoder", "transformer"}
