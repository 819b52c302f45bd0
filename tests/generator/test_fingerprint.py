"""The fingerprint changes with whatever shapes a picture, and with nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zimage_ui.generator.fingerprint import model_fingerprint, text_encoder_fingerprint

WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model-00001-of-00001.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    numbers = np.random.default_rng(0)
    for part in ("scheduler", "tokenizer", "text_encoder", "transformer", "vae"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(f'{{"part": "{part}"}}')
    (folder / "tokenizer" / "merges.txt").write_text("a b\n" * 600_000)  # longer than what is read whole
    for path in WEIGHTS.values():
        tensors = {f"layer.{i}": numbers.standard_normal((300, 400), dtype=np.float32) for i in range(4)}
        save_file(tensors, folder / path)
    return folder


def test_it_is_sixteen_hex_digits_and_the_same_wherever_the_folder_lies(folder: Path, tmp_path: Path):
    fingerprint = model_fingerprint(folder)
    assert len(fingerprint) == 16
    assert int(fingerprint, 16) >= 0
    assert model_fingerprint(shutil.copytree(folder, tmp_path / "elsewhere")) == fingerprint
    assert text_encoder_fingerprint(folder) != fingerprint


@pytest.mark.parametrize("part", WEIGHTS)
@pytest.mark.parametrize("layer", [0, 3])
def test_a_change_of_any_tensor_changes_it(folder: Path, part: str, layer: int):
    before, text_before = model_fingerprint(folder), text_encoder_fingerprint(folder)
    path = folder / WEIGHTS[part]
    tensors = load_file(path)
    tensors[f"layer.{layer}"] *= np.float32(1.0001)
    save_file(tensors, path)
    assert model_fingerprint(folder) != before
    assert (text_encoder_fingerprint(folder) != text_before) is (part == "text_encoder")


@pytest.mark.parametrize("part", ["scheduler", "tokenizer", "text_encoder", "transformer", "vae"])
def test_a_change_of_any_configuration_changes_it(folder: Path, part: str):
    before, text_before = model_fingerprint(folder), text_encoder_fingerprint(folder)
    (folder / part / "config.json").write_text('{"part": "another"}')
    assert model_fingerprint(folder) != before
    assert (text_encoder_fingerprint(folder) != text_before) is (part in {"tokenizer", "text_encoder"})


def test_a_file_more_or_less_or_longer_changes_it(folder: Path):
    seen = {model_fingerprint(folder)}
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    seen.add(model_fingerprint(folder))
    (folder / "scheduler" / "config.json").unlink()
    seen.add(model_fingerprint(folder))
    with (folder / "tokenizer" / "merges.txt").open("a") as file:
        file.write("c d\n")
    seen.add(model_fingerprint(folder))
    assert len(seen) == 4


def test_what_shapes_no_picture_does_not_change_it(folder: Path):
    before = model_fingerprint(folder)
    (folder / "README.md").write_text("about")
    (folder / "zimage_ui.json").write_text("{}")
    (folder / "vae" / ".gitattributes").write_text("lfs")
    assert model_fingerprint(folder) == before


def test_of_a_large_file_only_samples_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    path = folder / WEIGHTS["transformer"]
    save_file({"large": np.zeros(2**24, dtype=np.float32), "empty": np.zeros(0, dtype=np.float32)}, path)
    read: list[int] = []
    original = Path.open

    def counting_open(self: Path, *args, **kwargs):
        file = original(self, *args, **kwargs)
        if self == path:
            file_read = file.read
            file.read = lambda size=-1: read.append(size) or file_read(size)  # type: ignore[method-assign]
        return file

    monkeypatch.setattr(Path, "open", counting_open)
    model_fingerprint(folder)
    assert read
    assert all(0 <= size <= 4096 for size in read)
    assert sum(read) < 20_000
