"""What can be wrong with a model's folder, and that each is said: with the file, before a weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from zimage_ui.errors import ModelDamagedError, ModelError, ModelNotFoundError
from zimage_ui.generator.layout import is_model_folder, open_model_folder, read_json
from zimage_ui.generator.weight_files import open_weight_file

pytestmark = pytest.mark.model

VAE = "vae/diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
FIRST_SHARD = "transformer/diffusion_pytorch_model-00001-of-00004.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_whole_folder_opens(folder: Path):
    files = open_model_folder(folder)
    assert files.folder == folder
    assert files.marker["trained"] is False
    assert files.scheduler["shift"] == 3.0
    assert [part.name for part in files.parts] == ["transformer", "vae", "text_encoder"]
    assert len(files.transformer.weights) == 4
    assert len(files.weights) == 6
    assert files.text_encoder.title == "text encoder"
    on_disk = sum(path.stat().st_size for path in (folder / "vae").glob("*.safetensors"))
    assert sum(weight.size_bytes for weight in files.vae.weights) == on_disk
    assert 0.9 * on_disk < 4 * files.vae.parameter_count < on_disk


def test_a_folder_without_a_marker_opens(folder: Path):
    (folder / "zimage_ui.json").unlink()
    assert open_model_folder(folder).marker == {}


def test_a_tokenizer_may_be_in_its_older_files(folder: Path):
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(map(" ".join, tokenizer["merges"])))
    assert open_model_folder(folder).folder == folder


@pytest.mark.parametrize("name", ["PreTrainedTokenizerFast", "TokenizersBackend"])
def test_a_tokenizer_may_be_of_the_plain_kind(folder: Path, name: str):
    assert open_model_folder(folder).tokenizer_class == "Qwen2Tokenizer"
    change(folder / "model_index.json", tokenizer=["transformers", name])
    assert open_model_folder(folder).tokenizer_class == name
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "tokenizer" / "vocab.json")
    (folder / "tokenizer" / "merges.txt").touch()  # the files of another kind
    with pytest.raises(ModelDamagedError, match=r"has no tokenizer\.json"):
        open_model_folder(folder)


def test_headers_say_where_each_tensor_lies(folder: Path):
    weight = open_weight_file(folder / VAE)
    arrays = load_file(weight.path)
    content = weight.path.read_bytes()
    assert weight.tensors.keys() == arrays.keys()
    assert list(weight.tensors.values()) == sorted(weight.tensors.values(), key=lambda stored: stored.begin)
    for key, stored in weight.tensors.items():
        assert (stored.dtype, stored.shape) == ("F32", arrays[key].shape)
        assert content[stored.begin : stored.end] == arrays[key].tobytes()


@pytest.mark.parametrize(
    ("path", "error", "said"),
    [
        ("nowhere", ModelNotFoundError, "There is no folder"),
        ("vae", ModelNotFoundError, "holds no model: it has no model_index.json"),
    ],
)
def test_a_folder_without_a_model_is_not_found(folder: Path, path: str, error: type[ModelError], said: str):
    assert not is_model_folder(folder / path)
    with pytest.raises(error, match=said):
        open_model_folder(folder / path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def pad(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"?")


def leave_a_pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4f27\nsize 123\n")


@pytest.mark.parametrize(
    "name",
    [
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "text_encoder/config.json",
        "transformer/config.json",
        "vae/config.json",
        VAE,
        "text_encoder/model.safetensors",
        FIRST_SHARD,
        "tokenizer/tokenizer.json",
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str):
    (folder / name).unlink()
    with pytest.raises(ModelDamagedError, match=r"missing|has no|has neither") as raised:
        open_model_folder(folder)
    assert Path(name).parent.name in raised.value.message


@pytest.mark.parametrize("damage", [cut, pad, leave_a_pointer, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("name", [VAE, FIRST_SHARD])
def test_a_damaged_weight_file_is_named(folder: Path, name: str, damage: Callable[[Path], None]):
    damage(folder / name)
    with pytest.raises(ModelDamagedError, match="cannot be read") as raised:
        open_model_folder(folder)
    assert str(folder / name) in raised.value.message
    assert ("git lfs pull" in raised.value.hint) is (damage is leave_a_pointer)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"", b"[" * 100_000])
@pytest.mark.parametrize("name", ["model_index.json", "vae/config.json", "zimage_ui.json", INDEX])
def test_wrong_json_is_named(folder: Path, name: str, content: bytes):
    (folder / name).write_bytes(content)
    with pytest.raises(ModelDamagedError) as raised:
        open_model_folder(folder)
    assert name in raised.value.message


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "describes a StableDiffusionPipeline"),
        ({"transformer": ["diffusers", "FluxTransformer2DModel"]}, "names FluxTransformer2DModel as the transformer"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "names CLIPTextModel as the text encoder"),
        ({"vae": None}, "names None as the vae"),
        ({"scheduler": "broken"}, "names broken as the scheduler"),
        ({"tokenizer": ["transformers", ["a list"]]}, "as the tokenizer"),
    ],
)
def test_another_kind_of_model_is_refused(folder: Path, entries: dict[str, object], said: str):
    change(folder / "model_index.json", **entries)
    with pytest.raises(ModelDamagedError, match=said):
        open_model_folder(folder)


@pytest.mark.parametrize(
    ("weight_map", "said"),
    [
        ({}, "has no weight_map"),
        ("text", "has no weight_map"),
        ({"a": "../../../etc/passwd"}, "which is no safetensors file beside it"),
        ({"a": "../vae/diffusion_pytorch_model.safetensors"}, "which is no safetensors file beside it"),
        ({"a": "weights.bin"}, "which is no safetensors file beside it"),
        ({"a": "nowhere.safetensors"}, "nowhere.safetensors is missing"),
        ({"a": Path(FIRST_SHARD).name}, "lacks a, which .*index.json says it has"),
    ],
)
def test_a_wrong_index_of_shards_is_refused(folder: Path, weight_map: object, said: str):
    change(folder / INDEX, weight_map=weight_map)
    with pytest.raises(ModelDamagedError, match=said):
        open_model_folder(folder)


def test_a_shard_that_lost_a_tensor_is_named(folder: Path):
    tensors = load_file(folder / FIRST_SHARD)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, folder / FIRST_SHARD)
    with pytest.raises(ModelDamagedError, match=f"lacks {lost}"):
        open_model_folder(folder)


def test_weights_in_pickles_only_are_refused_with_the_reason(folder: Path):
    (folder / VAE).rename(folder / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelDamagedError, match=r"only as pickle .* can run any program"):
        open_model_folder(folder)


def test_quantised_models_are_refused(folder: Path):
    change(folder / "transformer" / "config.json", quantization_config={"quant_method": "gguf"})
    with pytest.raises(ModelDamagedError, match="quantised"):
        open_model_folder(folder)


def test_a_folder_in_place_of_a_file_is_an_error_too(tmp_path: Path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelDamagedError, match="cannot be read"):
        read_json(tmp_path / "config.json")
