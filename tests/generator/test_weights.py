"""Weights: read fast, cast as they arrive, exactly the ones that are needed."""

import json
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from zimage_ui.errors import ModelDamagedError  # noqa: E402
from zimage_ui.generator import reader, weights  # noqa: E402
from zimage_ui.generator.layout import WeightedPart, open_model_folder  # noqa: E402
from zimage_ui.generator.reader import read_tensors  # noqa: E402
from zimage_ui.generator.weight_files import open_weight_file  # noqa: E402
from zimage_ui.generator.weights import fill, make_empty, match  # noqa: E402

CPU = torch.device("cpu")
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def empty_vae(part: WeightedPart):
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return make_empty(lambda: AutoencoderKL.from_config(part.config))


def ignore(*_: object) -> None:
    pass


def save_random(path: Path) -> dict[str, "torch.Tensor"]:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "long": torch.randn(1000, 37, generator=generator),
        "half": torch.randn(300, generator=generator).to(torch.bfloat16),
        "number": torch.randn((), generator=generator),
        "empty": torch.zeros(0, 5),
        "other": torch.randn(64, 64, generator=generator).to(torch.float16),
    }
    save_file(tensors, path)
    return tensors


def test_an_empty_model_has_shapes_and_no_memory(folder: Path):
    module = empty_vae(open_model_folder(folder).vae)
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("block_bytes", [7, 4096, 2**24])
def test_tensors_arrive_bit_for_bit_however_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
):
    monkeypatch.setattr(reader, "_BLOCK_BYTES", block_bytes)
    if block_bytes == 7:
        monkeypatch.setattr(reader, "_RING_BLOCKS", 3)
    tensors = save_random(tmp_path / "a.safetensors")
    weights = [open_weight_file(tmp_path / "a.safetensors")] * 2
    arrived = [(key, tensor) for _, key, tensor in read_tensors(weights, tensors, CPU)]
    assert [key for key, _ in arrived] == list(weights[0].tensors) * 2
    for key, tensor in arrived:
        assert tensor.dtype is tensors[key].dtype
        assert torch.equal(tensor, tensors[key])


def test_only_what_is_wanted_is_read(tmp_path: Path):
    save_random(tmp_path / "a.safetensors")
    weight = open_weight_file(tmp_path / "a.safetensors")
    assert [key for _, key, _ in read_tensors([weight], {"half"}, CPU)] == ["half"]


def test_reading_that_is_left_early_ends_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "_BLOCK_BYTES", 64)
    tensors = save_random(tmp_path / "a.safetensors")
    reading = read_tensors([open_weight_file(tmp_path / "a.safetensors")], tensors, CPU)
    next(reading)
    reading.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("weights")]


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path):
    tensors = save_random(tmp_path / "a.safetensors")
    weight = open_weight_file(tmp_path / "a.safetensors")
    weight.path.write_bytes(weight.path.read_bytes()[:2000])
    with pytest.raises(ModelDamagedError, match=r"a\.safetensors ended while it was being read"):
        list(read_tensors([weight], tensors, CPU))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_filled_model_equals_the_stock_loader_bit_for_bit(folder: Path, dtype: "torch.dtype"):
    from diffusers import AutoencoderKL

    part = open_model_folder(folder).vae
    module = empty_vae(part)
    fill(module, part, CPU, dtype, ignore)
    stock = AutoencoderKL.from_pretrained(folder / "vae", dtype=dtype)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    for (name, ours), (stock_name, theirs) in zip(module.named_parameters(), stock.named_parameters(), strict=True):
        assert name == stock_name
        assert ours.dtype is dtype
        assert torch.equal(ours, theirs)
    assert module.config.items() >= {k: v for k, v in stock.config.items() if not k.startswith("_")}.items()


def test_each_tensor_is_cast_before_the_next_one_is_in_place(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """At no time does more than the ring's worth of fp32 stand beside what is already cast."""
    part = open_model_folder(folder).vae
    module = empty_vae(part)
    in_place: list[tuple[int, int]] = []

    def count(_weight: object, _bytes: int) -> None:
        there = [parameter for parameter in module.parameters() if parameter.device.type != "meta"]
        in_place.append((len(there), len({parameter.dtype for parameter in there})))

    fill(module, part, CPU, torch.bfloat16, count)
    assert in_place == [(number, 1) for number in range(1, len(in_place) + 1)]


def test_what_belongs_on_the_host_never_sees_the_device(folder: Path, monkeypatch: pytest.MonkeyPatch):
    part = open_model_folder(folder).vae
    module = empty_vae(part)
    on_host = {"decoder.conv_in.weight", "decoder.conv_out.weight"}
    read: list[tuple[set[str], torch.device]] = []

    def watched(files: Any, wanted: Any, device: "torch.device", _placing: Any) -> Any:
        read.append((set(wanted), device))
        return read_tensors(files, wanted, CPU)

    monkeypatch.setattr(weights, "read_tensors", watched)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, _place: tensor)  # fp32 already, and there is no such device
    fill(module, part, torch.device("cuda"), torch.float32, ignore, on_host)
    names = set(module.state_dict())
    assert read == [(names - on_host, torch.device("cuda")), (on_host, CPU)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matrices_that_belong_together_are_read_below_each_other(
    folder: Path, dtype: "torch.dtype", monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(reader, "_BLOCK_BYTES", 1000)  # so that they arrive in pieces
    part = open_model_folder(folder).vae
    apart, module = empty_vae(part), empty_vae(part)
    fill(apart, part, CPU, dtype, ignore)
    attention = "decoder.mid_block.attentions.0"
    group = [f"{attention}.to_{letter}.weight" for letter in "vqk"]
    fill(module, part, CPU, dtype, ignore, on_host=group[:1], together=[group])
    for (name, value), expected in zip(module.named_parameters(), apart.parameters(), strict=True):
        assert torch.equal(value, expected), name
        assert value.dtype is dtype
        assert not value.requires_grad
    first, *others = (module.get_parameter(name) for name in group)
    assert first.untyped_storage().nbytes() == 3 * first.nbytes
    assert [other.data_ptr() - first.data_ptr() for other in others] == [first.nbytes, 2 * first.nbytes]


def test_what_is_read_below_each_other_and_needs_no_cast_has_no_memory_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    part = open_model_folder(folder).vae
    group = [f"decoder.mid_block.attentions.0.to_{letter}.weight" for letter in "qkv"]
    placed: dict[str, int] = {}

    def watched(*arguments: Any) -> Any:
        for weight, key, tensor in read_tensors(*arguments):
            placed[key] = tensor.data_ptr()
            yield weight, key, tensor

    monkeypatch.setattr(weights, "read_tensors", watched)
    module = empty_vae(part)
    fill(module, part, CPU, torch.float32, ignore, together=[group])
    assert {name: placed[name] for name in group} == {name: module.get_parameter(name).data_ptr() for name in group}


def test_reading_is_reported_by_bytes(folder: Path):
    part = open_model_folder(folder).transformer
    heard: list[tuple[str, int]] = []
    from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

    module = make_empty(lambda: ZImageTransformer2DModel.from_config(part.config))
    fill(module, part, CPU, torch.float32, lambda weight, count: heard.append((weight.path.name, count)))
    assert sum(count for _, count in heard) == 4 * part.parameter_count
    assert [name for name, _ in heard] == sorted(name for name, _ in heard)


def test_weights_of_a_language_model_fit_the_text_encoder(folder: Path):
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    prefixed = {f"model.{key}": value for key, value in tensors.items()}
    save_file(prefixed | {"lm_head.weight": tensors["embed_tokens.weight"].clone()}, path)
    part = open_model_folder(folder).text_encoder
    module = make_empty(lambda: Qwen3Model(Qwen3Config.from_dict(part.config)))
    fill(module, part, CPU, torch.float32, ignore)
    assert all(torch.equal(parameter, tensors[name]) for name, parameter in module.named_parameters())


def rewritten(folder: Path, change) -> WeightedPart:
    tensors = load_file(folder / VAE)
    change(tensors)
    save_file(tensors, folder / VAE)
    return open_model_folder(folder).vae


def test_a_missing_tensor_is_named(folder: Path):
    part = rewritten(folder, lambda tensors: tensors.pop("decoder.conv_in.bias"))
    with pytest.raises(ModelDamagedError, match=r"lacks 1 of \d+ tensors, the first of them decoder\.conv_in\.bias"):
        match(empty_vae(part), part)


def test_a_tensor_too_many_is_named(folder: Path):
    part = rewritten(folder, lambda tensors: tensors.update({"decoder.extra": torch.zeros(2)}))
    with pytest.raises(ModelDamagedError, match=r"has a tensor decoder\.extra, for which there is no place in the vae"):
        match(empty_vae(part), part)


def test_another_shape_is_named(folder: Path):
    part = rewritten(folder, lambda tensors: tensors.update({"decoder.conv_in.bias": torch.zeros(3)}))
    with pytest.raises(ModelDamagedError, match=r"decoder\.conv_in\.bias is 3; config\.json asks for 16"):
        match(empty_vae(part), part)


def test_whole_numbers_are_no_weights(folder: Path):
    part = rewritten(
        folder, lambda tensors: tensors.update({"decoder.conv_in.bias": torch.zeros(16, dtype=torch.int8)})
    )
    with pytest.raises(ModelDamagedError, match="stored as I8; quantised"):
        match(empty_vae(part), part)


def test_a_configuration_of_another_model_is_noticed_before_a_weight_is_read(folder: Path):
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"latent_channels": 4}))
    part = open_model_folder(folder).vae
    with pytest.raises(ModelDamagedError, match="belong to different models"):
        fill(empty_vae(part), part, CPU, torch.float32, lambda *_: pytest.fail("a weight was read"))


class FakeGpuBlock(reader._Block):
    """A block that goes through a buffer of its own, as on the way to a GPU, with events that count."""

    waits = 0

    def __init__(self, _device: object) -> None:
        self._pinned = torch.empty(reader._BLOCK_BYTES, dtype=torch.uint8)
        self._sent = None


def test_blocks_on_the_way_to_a_gpu_are_not_overwritten_before_they_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a GPU here: the copies happen at once, but every reuse has to wait for the event of the last copy."""
    waited: list[int] = []

    class Event:
        def record(self) -> None:
            self.recorded = True

        def synchronize(self) -> None:
            assert self.recorded
            waited.append(1)

    monkeypatch.setattr(reader, "_BLOCK_BYTES", 1000)
    monkeypatch.setattr(reader, "_RING_BLOCKS", 4)
    monkeypatch.setattr(reader, "_Block", FakeGpuBlock)
    monkeypatch.setattr(torch, "cuda", SimpleNamespace(Event=Event))
    tensors = save_random(tmp_path / "a.safetensors")
    weight = open_weight_file(tmp_path / "a.safetensors")
    for _, key, tensor in read_tensors([weight], tensors, CPU):
        assert torch.equal(tensor, tensors[key])
    pieces = sum(max(1, -(-stored.size_bytes // 1000)) for stored in weight.tensors.values())
    assert len(waited) == pieces - 4
