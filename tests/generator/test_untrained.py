"""The untrained model: exact diffusers layout, the same bytes each time, whole or not at all."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

from zimage_ui.generator import untrained  # noqa: E402
from zimage_ui.generator.untrained import DEFAULT, FULL, TINY, build_untrained_model  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_untrained_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def pipeline(tiny: Path):
    from diffusers import ZImagePipeline

    pipe = ZImagePipeline.from_pretrained(tiny)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def picture(pipe, prompt: str, seed: int, side: int = 64) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    made = pipe(
        prompt,
        height=side,
        width=side,
        num_inference_steps=4,
        guidance_scale=0.0,
        generator=generator,
        output_type="np",
    )
    return made.images[0]


def test_the_stock_pipeline_loads_it_unchanged(pipeline):
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
    from transformers import Qwen3Model

    assert isinstance(pipeline.transformer, ZImageTransformer2DModel)
    assert isinstance(pipeline.vae, AutoencoderKL)
    assert isinstance(pipeline.text_encoder, Qwen3Model)
    assert isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler)
    assert pipeline.scheduler.config.shift == 3.0
    assert pipeline.scheduler.config.use_dynamic_shifting is False
    assert (pipeline.vae.config.latent_channels, pipeline.vae_scale_factor) == (16, 8)
    assert (pipeline.vae.config.scaling_factor, pipeline.vae.config.shift_factor) == (0.3611, 0.1159)


def test_pictures_are_neither_flat_nor_broken_and_follow_prompt_and_seed(pipeline):
    red, again, other_seed, other_prompt, chinese = (
        picture(pipeline, "a red cat", 0),
        picture(pipeline, "a red cat", 0),
        picture(pipeline, "a red cat", 1),
        picture(pipeline, "a blue dog in the snow", 0),
        picture(pipeline, "一只红色的猫", 0),
    )
    assert np.isfinite(red).all()
    assert red.std(axis=(0, 1)).min() > 0.02
    assert np.array_equal(red, again)
    for other in (other_seed, other_prompt, chinese):
        assert np.abs(red - other).mean() > 0.005


def test_the_tokenizer_writes_any_text_and_ends_with_the_assistants_turn(tiny):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny / "tokenizer")
    text = "一只红色的猫 🐈 and a naïve fox"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    assert chat == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(tokenizer(chat).input_ids) == chat
    padded = tokenizer(chat, padding="max_length", max_length=128, truncation=True)
    assert padded.input_ids[-1] == tokenizer.convert_tokens_to_ids("<|endoftext|>")


def test_the_same_seed_gives_the_same_bytes_in_another_process(tiny, tmp_path):
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            "import sys, pathlib; from zimage_ui.generator.untrained import build_untrained_model;"
            "build_untrained_model(pathlib.Path(sys.argv[1]))",
            tmp_path / "again",
        ],
        check=True,
    )
    assert files_of(tmp_path / "again") == files_of(tiny)


def test_another_seed_gives_other_weights(tiny, tmp_path):
    other = build_untrained_model(tmp_path / "other", seed=1)
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (other / name).read_bytes() != (tiny / name).read_bytes()


def test_every_weight_is_initialised_and_in_safetensors(tiny):
    from safetensors.torch import load_file

    weights = {key: value for path in tiny.rglob("*.safetensors") for key, value in load_file(path).items()}
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert {"x_pad_token", "cap_pad_token"} <= set(weights)
    assert weights["cap_pad_token"].std() > 0
    assert {path.suffix for path in tiny.rglob("*") if path.is_file()} == {".json", ".safetensors"}
    assert json.loads((tiny / "zimage_ui.json").read_text())["trained"] is False


def test_large_parts_are_written_in_shards_with_an_index(tiny):
    index = json.loads((tiny / "transformer" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list((tiny / "transformer").glob("*.safetensors"))) > 1


def test_a_model_that_is_there_is_left_as_it_is(tiny):
    before = {path: path.stat().st_mtime_ns for path in tiny.rglob("*")}
    assert build_untrained_model(tiny, seed=5) == tiny
    assert {path: path.stat().st_mtime_ns for path in tiny.rglob("*")} == before


@pytest.mark.parametrize(
    ("file", "kept_bytes"),
    [
        ("vae/diffusion_pytorch_model.safetensors", None),
        ("vae/diffusion_pytorch_model.safetensors", 100),
        ("tokenizer/tokenizer.json", None),
        ("tokenizer/tokenizer.json", 100),
        ("zimage_ui.json", 0),
        ("model_index.json", None),
    ],
)
def test_a_damaged_model_is_built_anew(tiny, tmp_path, file, kept_bytes):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    if kept_bytes is None:
        (folder / file).unlink()
    else:
        os.truncate(folder / file, kept_bytes)
    assert build_untrained_model(folder) == folder
    assert files_of(folder) == files_of(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_damaged_model_of_somebody_else_is_left_alone(tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "model"))
    (folder / "zimage_ui.json").write_text('{"trained": true}')
    (folder / "vae" / "config.json").unlink()
    before = files_of(folder)
    assert build_untrained_model(folder) == folder
    assert files_of(folder) == before


def test_whatever_else_lies_in_its_place_is_left_alone(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "holiday.png").write_bytes(b"mine")
    with pytest.raises(OSError, match="not empty"):
        build_untrained_model(folder)
    assert (folder / "holiday.png").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_every_file_is_on_the_disk_before_the_model_is_in_its_place(tmp_path, monkeypatch):
    safe: set[tuple[int, int]] = set()
    fsync, rename = os.fsync, Path.rename

    def note(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        safe.add((status.st_ino, status.st_size if stat.S_ISREG(status.st_mode) else 0))

    def check(work: Path, folder: Path) -> Path:
        for path in (work, *work.rglob("*")):
            assert (path.stat().st_ino, path.stat().st_size if path.is_file() else 0) in safe, path
        return rename(work, folder)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(Path, "rename", check)
    build_untrained_model(tmp_path / "model")
    assert (tmp_path.stat().st_ino, 0) in safe


def test_a_build_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full_disk(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(untrained, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        build_untrained_model(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_build_that_another_process_overtook_takes_the_others_model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    write = untrained._write_model

    def overtaken(work, size, seed):
        write(work, size, seed)
        folder.mkdir()
        write(folder, size, seed)

    monkeypatch.setattr(untrained, "_write_model", overtaken)
    assert build_untrained_model(folder) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_default_size_is_small(tmp_path):
    folder = build_untrained_model(tmp_path / "default", DEFAULT)
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 40e6


def test_the_full_size_has_the_parameters_of_z_image_turbo():
    transformer = sum(value.numel() for value in untrained._transformer(FULL).parameters())
    text_encoder = sum(value.numel() for value in untrained._text_encoder(FULL).parameters())
    assert transformer == pytest.approx(6.15e9, rel=0.01)
    assert text_encoder == pytest.approx(4.02e9, rel=0.01)
    assert TINY.profile == DEFAULT.profile == "mini"
    assert FULL.profile == "turbo"
