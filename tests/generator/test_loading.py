"""From a folder, a hub id or `auto` to components that compute exactly as the stock pipeline's do."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.generator.fake_hub import REPO_ID, FakeHub
from zimage_ui.errors import DeviceLostError, DeviceMemoryError, ModelDamagedError, ModelError, ModelNotFoundError
from zimage_ui.generator.base import WarmupPhase, WarmupProgress
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.placement import Device
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

from zimage_ui.generator import loading, sources  # noqa: E402
from zimage_ui.generator.fast import projections  # noqa: E402
from zimage_ui.generator.fast import text_encoder as fast_text_encoder  # noqa: E402
from zimage_ui.generator.fast.streaming import streamed_names  # noqa: E402
from zimage_ui.generator.loading import load_components  # noqa: E402


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine has."""
    device = Device(torch_name="cpu", name="CPU, 2 threads", free_bytes=10**10, total_bytes=10**10)
    monkeypatch.setattr(loading, "read_device", lambda: device)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


def load(folder: Path, progress: Any = lambda _: None) -> Any:
    return load_components(str(folder), progress=progress)


def run_python(script: str, *arguments: str, env: dict[str, str] | None = None) -> str:
    """The last line that `script` prints, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", script, *arguments]
    return subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]


def same_tensors(ours: Any, theirs: Any) -> bool:
    """Parameters and buffers, the ones that are not stored too."""
    pairs = [
        *zip(ours.named_parameters(), theirs.named_parameters(), strict=True),
        *zip(ours.named_buffers(), theirs.named_buffers(), strict=True),
    ]
    return all(
        name == other_name and value.dtype == other.dtype and torch.equal(value, other)
        for (name, value), (other_name, other) in pairs
    )


def test_everything_equals_the_stock_pipeline_bit_for_bit(tiny_folder: Path, stock: Any):
    components, _ = load(tiny_folder)
    assert same_tensors(components.transformer, stock.transformer)
    assert same_tensors(components.vae, stock.vae)
    assert same_tensors(components.text_encoder, stock.text_encoder)
    assert {name for name, _ in components.text_encoder.named_buffers()} >= {"rotary_emb.inv_freq"}
    assert components.scheduler.config == stock.scheduler.config
    for text in ("a red cat", "一只红色的猫"):
        assert components.tokenizer(text) == stock.tokenizer(text)
    assert components.tokenizer.chat_template == stock.tokenizer.chat_template


def test_a_picture_equals_the_stock_pipelines_bit_for_bit(tiny_folder: Path, stock: Any):
    """The stock loader leaves weights where they happen to lie in the mapped file, and the CPU's matrix products round
    differently on unaligned memory: a copy of the stock model differs from itself by 2e-6. Ours are aligned, as the
    copy is, and the copied VAE's kernels are put in the order of ours."""
    from diffusers import ZImagePipeline

    components, _ = load(tiny_folder)
    pictures = []
    for transformer, vae, text_encoder in (
        (components.transformer, components.vae, components.text_encoder),
        map(copy.deepcopy, (stock.transformer, stock.vae, stock.text_encoder)),
    ):
        vae.to(memory_format=torch.channels_last)
        pipe = ZImagePipeline(
            scheduler=components.scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=components.tokenizer,
            transformer=transformer,
        )
        pipe.set_progress_bar_config(disable=True)
        noise = torch.Generator().manual_seed(3)
        pictures.append(
            pipe(
                "a red cat", 64, 96, num_inference_steps=2, guidance_scale=0.0, generator=noise, output_type="pt"
            ).images
        )
    assert torch.equal(*pictures)


def test_on_the_cpu_the_vae_is_laid_out_channels_last_and_decodes_the_same(tiny_folder: Path, stock: Any):
    components, _ = load(tiny_folder)
    kernels = [parameter for parameter in components.vae.parameters() if parameter.ndim == 4]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    latents = torch.randn(1, 16, 8, 12, generator=torch.Generator().manual_seed(3))
    decoded, expected = (vae.decode(latents, return_dict=False)[0] for vae in (components.vae, stock.vae))
    assert torch.allclose(decoded, expected, rtol=0, atol=1e-4)


def test_what_is_one_product_is_loaded_as_one_matrix(tiny_folder: Path):
    components, _ = load(tiny_folder)
    model = components.transformer
    blocks = [(block, projections.FUSED) for block in (*model.layers, *model.noise_refiner, *model.context_refiner)]
    blocks += [(layer, fast_text_encoder.FUSED) for layer in components.text_encoder.layers]
    for block, groups in blocks:
        before = [block.get_parameter(group[0]).data_ptr() for group in groups]
        assert [whole.data_ptr() for whole in projections.fused(block, groups)] == before


def test_components_are_ready_for_inference(tiny_folder: Path):
    components, info = load(tiny_folder)
    for part in (components.transformer, components.vae, components.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    assert components.device == torch.device("cpu")
    assert components.dtype is torch.float32
    assert components.memory_plan is MemoryPlan.RESIDENT
    assert len(components.text_encoder_fingerprint) == 16
    assert components.text_encoder_fingerprint != info.fingerprint


def test_the_info_says_what_is_loaded_and_why_so(tiny_folder: Path):
    _, info = load(tiny_folder)
    assert (info.name, info.source, info.trained) == ("untrained (tiny)", str(tiny_folder), False)
    assert info.source_reason == ""
    assert info.profile.name == "mini"
    assert (info.device, info.dtype, info.memory_plan) == ("cpu", "fp32", "resident")
    assert info.dtype_reason
    assert info.memory_plan_reason
    assert info.max_prompt_tokens == 512
    assert len(info.fingerprint) == 16
    assert {"zimage-ui", "torch", "diffusers", "transformers"} <= info.versions.keys()
    assert info.load_ms > 0


def test_a_model_without_a_marker_is_a_trained_one_of_the_folders_name(folder: Path):
    (folder / "zimage_ui.json").unlink()
    _, info = load(folder)
    assert (info.name, info.trained, info.profile.name) == ("model", True, "mini")


def test_progress_is_true_and_goes_from_nothing_to_all(tiny_folder: Path):
    heard: list[WarmupProgress] = []
    load(tiny_folder, heard.append)
    assert {step.phase for step in heard} == {WarmupPhase.LOADING}
    assert [step.progress for step in heard] == sorted(step.progress for step in heard)
    assert heard[0].progress < 0.01
    assert heard[-1].progress == 1.0
    assert heard[0].detail == "transformer, file 1 of 6"
    assert "transformer, file 3 of 6" in {step.detail for step in heard}
    assert heard[-1].detail == "text encoder, file 6 of 6"


def test_auto_loads_the_bundled_model_with_its_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "BUNDLED_FOLDER", folder)
    (folder / "zimage_ui.json").write_text('{"trained": true, "name": "Z-Image mini", "profile": "mini"}')
    _, info = load_components("auto", progress=lambda _: None)
    assert (info.name, info.trained, info.profile.name) == ("Z-Image mini", True, "mini")
    assert info.source_reason == "there is no NVIDIA GPU that torch can use"


def test_the_bundled_model_is_small_and_loads_as_a_trained_one():
    weights = list(sources.BUNDLED_FOLDER.rglob("*.safetensors"))
    assert len(weights) == 3
    assert sum(file.stat().st_size for file in weights) <= 32_000_000
    _, info = load(sources.BUNDLED_FOLDER)
    assert (info.name, info.trained, info.profile.name) == ("Z-Image mini", True, "mini")
    assert "untrained" not in (sources.BUNDLED_FOLDER / "README.md").read_text("utf-8")


def test_the_published_text_encoders_configuration_is_understood(folder: Path):
    """Written by transformers 4: `rope_theta` at the top, `torch_dtype`, and the language model's class."""
    path = folder / "text_encoder" / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_parameters")["rope_theta"]
    for newer in ("layer_types", "dtype"):
        del config[newer]
    config |= {
        "architectures": ["Qwen3ForCausalLM"],
        "rope_scaling": None,
        "rope_theta": theta,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.51.0",
    }
    expected, _ = load(folder)
    path.write_text(json.dumps(config))
    components, _ = load(folder)
    assert same_tensors(components.text_encoder, expected.text_encoder)
    tokens = torch.arange(12)[None]
    with torch.inference_mode():
        ours = components.text_encoder(tokens).last_hidden_state
        theirs = expected.text_encoder(tokens).last_hidden_state
    assert torch.equal(ours, theirs)


def remove_template(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))


def change_config(part: str, **entries: object) -> Any:
    def change(folder: Path) -> None:
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_template, "has no chat template"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").write_text("{"), "does not describe a model"),
        (change_config("transformer", axes_dims=[1, 2, 3]), "does not describe a model"),
        (change_config("transformer", dim="wide"), "does not describe a model"),
        (change_config("transformer", n_layers=3), "belong to different models|lacks"),
        (change_config("vae", block_out_channels=[]), "does not describe a model"),
        (change_config("vae", down_block_types=["NoSuchBlock"] * 4), "does not describe a model"),
        (change_config("text_encoder", hidden_size="wide"), "does not describe a model"),
        (change_config("text_encoder", hidden_act="nothing"), "does not describe a model"),
        (change_config("text_encoder", num_hidden_layers=2), "validate_layer_type.*num_hidden_layers"),
        (
            change_config("text_encoder", num_hidden_layers=2, layer_types=["full_attention"] * 2),
            "for which there is no place in the text encoder",
        ),
        (change_config("text_encoder", vocab_size=300), "knows 512 tokens, the text encoder only 300"),
    ],
)
def test_damage_behind_the_files_is_said_too(folder: Path, damage: Any, said: str):
    damage(folder)
    with pytest.raises(ModelDamagedError, match=said):
        load(folder)


def test_a_folder_that_is_not_there_is_not_found(tmp_path: Path):
    with pytest.raises(ModelNotFoundError):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (OSError(5, "Input/output error"), ModelError),
        (MemoryError(), DeviceMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), DeviceMemoryError),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), DeviceLostError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: out of memory"), DeviceMemoryError),
        (KeyError("dim"), ModelDamagedError),
        (AssertionError(), ModelDamagedError),
    ],
)
def test_foreign_errors_become_ours(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, ours: type):
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(loading, "fill", fail)
    with pytest.raises(ours) as raised:
        load(tiny_folder)
    assert type(raised.value) is ours
    assert raised.value.hint


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Plans are made for a GPU of so many free bytes, and carried out on the CPU."""

    def pretend(**changes: Any) -> None:
        card = Device(torch_name="cpu", name="a card", free_bytes=10**9, total_bytes=10**9, capability=(8, 0))
        monkeypatch.setattr(loading, "read_device", lambda: replace(card, **changes))

    return pretend


def test_the_dtype_is_that_of_the_device(tiny_folder: Path, pretended_gpu: Any, stock: Any):
    pretended_gpu(capability=(7, 5))
    components, info = load(tiny_folder)
    assert components.dtype is torch.float16
    assert (info.dtype, info.dtype_reason) == ("fp16", "a card (compute capability 7.5) has no bf16")
    for part, original in ((components.transformer, stock.transformer), (components.text_encoder, stock.text_encoder)):
        for value, stored in zip(part.parameters(), original.parameters(), strict=True):
            assert torch.equal(value, stored.to(torch.float16))


@pytest.mark.parametrize("precision", Precision)
def test_requests_are_judged_in_the_precision_that_was_asked_for(
    tiny_folder: Path, pretended_gpu: Any, precision: Precision
):
    pretended_gpu()
    components, info = load_components(str(tiny_folder), progress=lambda _: None, precision=precision)
    assert components.budget.precision is precision
    kept = f"the transformer's matrices are kept in {precision}: "
    assert info.memory_plan_reason.startswith("everything" if precision is Precision.EXACT else kept)


@pytest.fixture
def runs_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part that is filled runs out of memory."""
    fill, failures = loading.fill, [torch.OutOfMemoryError("CUDA out of memory")]

    def fail_once(*arguments: Any, **named: Any) -> None:
        if failures:
            raise failures.pop()
        fill(*arguments, **named)

    monkeypatch.setattr(loading, "fill", fail_once)


@pytest.mark.usefixtures("runs_out_once")
def test_running_out_of_memory_while_loading_leads_to_the_next_smaller_plan(tiny_folder: Path, pretended_gpu: Any):
    pretended_gpu()
    heard: list[WarmupProgress] = []
    components, info = load(tiny_folder, heard.append)
    assert components.memory_plan is MemoryPlan.TEXT_ENCODER_OFFLOADED
    assert info.memory_plan == "text_encoder_offloaded"
    assert info.memory_plan_reason == "the plan resident ran out of memory while loading"
    assert heard[-1].progress == 1.0


@pytest.fixture(scope="module")
def five_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    size = replace(TINY, transformer=TINY.transformer | {"n_layers": 5})
    return build_untrained_model(tmp_path_factory.mktemp("model") / "five", size)


def test_streamed_layers_never_see_the_device(five_layers: Path, pretended_gpu: Any, monkeypatch: pytest.MonkeyPatch):
    pretended_gpu()
    choice = loading.PlanChoice(MemoryPlan.STREAMED, "because", 3)
    monkeypatch.setattr(loading, "choose_plan", lambda device, need: choice)
    fill, on_host = loading.fill, {}

    def watched(module: Any, part: Any, *arguments: Any, **named: Any) -> None:
        on_host[part.name] = set(arguments[-1])
        fill(module, part, *arguments, **named)

    monkeypatch.setattr(loading, "fill", watched)
    components, info = load(five_layers)
    assert (components.memory_plan, components.streamed_layers) == (MemoryPlan.STREAMED, 3)
    assert (info.memory_plan, info.memory_plan_reason) == ("streamed", "because")
    assert on_host == {"transformer": streamed_names(3, 5), "text_encoder": set(), "vae": set()}


@pytest.mark.usefixtures("runs_out_once")
def test_what_does_not_fit_with_some_layers_streamed_is_loaded_with_all_of_them(
    five_layers: Path, pretended_gpu: Any, monkeypatch: pytest.MonkeyPatch
):
    pretended_gpu()
    choice = loading.PlanChoice(MemoryPlan.STREAMED, "because", 3)
    monkeypatch.setattr(loading, "choose_plan", lambda device, need: choice)
    components, info = load(five_layers)
    assert (components.memory_plan, components.streamed_layers) == (MemoryPlan.SMALLEST, 5)
    assert info.memory_plan_reason == "the plan streamed ran out of memory while loading"


def test_a_device_that_is_too_small_for_every_plan_is_said(tiny_folder: Path, pretended_gpu: Any):
    pretended_gpu(free_bytes=10**8)
    with pytest.raises(DeviceMemoryError, match="the smallest plan needs"):
        load(tiny_folder)


def test_a_large_model_is_never_in_host_memory_twice(tmp_path: Path):
    """The peak of a process that casts 600 MB of fp32 to 300 MB of bf16: what it keeps, and the ring of blocks."""
    shape, count = [3000, 2500], 20
    size = 4 * shape[0] * shape[1]
    entries = {
        f"{number}.weight": {"dtype": "F32", "shape": shape, "data_offsets": [number * size, (number + 1) * size]}
        for number in range(count)
    }
    header = json.dumps(entries).encode()
    with (tmp_path / "weights.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + count * size)
    script = """
import re, sys
from pathlib import Path
import torch
from torch import nn
from zimage_ui.generator.layout import WeightedPart
from zimage_ui.generator.weight_files import open_weight_file
from zimage_ui.generator.weights import fill, make_empty

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1000

path = Path(sys.argv[1])
part = WeightedPart("transformer", path.parent, {}, (open_weight_file(path),))
module = make_empty(lambda: nn.Sequential(*(nn.Linear(2500, 3000, bias=False) for _ in range(20))))
before = peak_mb()
fill(module, part, torch.device("cpu"), torch.bfloat16, lambda *_: None)
print(peak_mb() - before)
"""
    grown_mb = float(run_python(script, str(tmp_path / "weights.safetensors")))
    assert 300 < grown_mb < 300 + 12 * 17 + 150  # some for the threads of a large machine; 900 for all of it at once


def test_the_hub_is_as_good_as_a_folder(tiny_folder: Path, tmp_path: Path):
    files = {str(path.relative_to(tiny_folder)): path.read_bytes() for path in tiny_folder.rglob("*") if path.is_file()}
    script = """
import json, sys
from zimage_ui.generator.loading import load_components
heard = []
components, info = load_components(sys.argv[1], progress=heard.append)
print(json.dumps({"fingerprint": info.fingerprint, "name": info.name, "source": info.source,
                  "phases": list(dict.fromkeys(step.phase for step in heard)),
                  "progress": [step.progress for step in heard]}))
"""
    with FakeHub(files).running() as hub:
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "*"}
        told = json.loads(run_python(script, REPO_ID, env=env))
    _, info = load(tiny_folder)
    assert told["fingerprint"] == info.fingerprint
    assert told["source"] == REPO_ID
    assert told["phases"] == ["downloading", "loading"]
    assert told["progress"] == sorted(told["progress"])
    assert told["progress"][-1] == 1.0
