"""From what `ZIMAGE_MODEL` names to components on their device: find, check, choose, load.

Nothing is decided twice: the device decides the dtype, both and the model's size decide the memory plan, and each
choice keeps its reason for `ModelInfo`. Everything that can be wrong with a folder is found before the first weight is
read.
"""

from __future__ import annotations

import importlib.metadata
import logging
import time
from dataclasses import dataclass, replace

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer
from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
from transformers.models.qwen3.modeling_qwen3 import Qwen3Model
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from zimage_ui import __version__
from zimage_ui.errors import ModelDamagedError
from zimage_ui.generator.base import ModelInfo, ProgressListener, WarmupPhase, WarmupProgress
from zimage_ui.generator.components import Components
from zimage_ui.generator.fast import projections
from zimage_ui.generator.fast import text_encoder as fast_text_encoder
from zimage_ui.generator.fast.rounding import RoundedBlocks
from zimage_ui.generator.fast.streaming import streamed_names
from zimage_ui.generator.fingerprint import model_fingerprint, text_encoder_fingerprint
from zimage_ui.generator.layout import ModelFolder, WeightedPart, is_qwen_tokenizer, open_model_folder
from zimage_ui.generator.memory import release_memory
from zimage_ui.generator.model_errors import LOAD_ERRORS, as_load_error
from zimage_ui.generator.placement import (
    Device,
    DtypeChoice,
    MemoryBudget,
    ModelSizes,
    PlanChoice,
    choose_dtype,
    choose_plan,
    memory_need,
    read_device,
)
from zimage_ui.generator.profiles import find_profile
from zimage_ui.generator.sources import find_model
from zimage_ui.generator.weight_files import FETCH_AGAIN, WeightFile
from zimage_ui.generator.weights import fill, make_empty, match
from zimage_ui.request import Precision

_log = logging.getLogger(__name__)

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_VERSIONED = ("torch", "diffusers", "transformers", "tokenizers")
# Fetching takes minutes, loading what was fetched takes seconds.
_DOWNLOAD_SHARE = 0.9


class _Way:
    """Turns the progress of the download and of the weights into one, from 0 to 1."""

    def __init__(self, progress: ProgressListener) -> None:
        self._progress = progress
        self._begin = 0.0

    def download(self, downloaded: WarmupProgress) -> None:
        """A download has come this far; loading will begin where it ends."""
        self._begin = _DOWNLOAD_SHARE
        self._progress(replace(downloaded, progress=downloaded.progress * _DOWNLOAD_SHARE))

    def load(self, share: float, detail: str) -> None:
        """`share` (0..1) of the weights is in its place."""
        done = self._begin + (1 - self._begin) * share
        self._progress(WarmupProgress(phase=WarmupPhase.LOADING, progress=min(done, 1.0), detail=detail))


class _Count:
    """Counts the bytes and files of a load, and reports them."""

    def __init__(self, files: ModelFolder, way: _Way) -> None:
        self._places = {weight.path: place for place, weight in enumerate(files.weights, 1)}
        self._total_bytes = max(
            1, sum(stored.size_bytes for weight in files.weights for stored in weight.tensors.values())
        )
        self._done_bytes = 0
        self._way = way

    def loaded(self, weight: WeightFile, count: int) -> None:
        """`count` bytes of `weight` have arrived."""
        self._done_bytes += count
        detail = f"{weight.path.parent.name.replace('_', ' ')}, file {self._places[weight.path]} of {len(self._places)}"
        self._way.load(self._done_bytes / self._total_bytes, detail)


@dataclass(frozen=True, slots=True)
class _Choices:
    """Where and in what a model computes."""

    device: Device
    dtype: DtypeChoice
    plan: PlanChoice
    precision: Precision

    def budget(self, sizes: ModelSizes) -> MemoryBudget | None:
        """What requests are judged by; None on a CPU, whose memory others take and give back."""
        if not self.device.is_gpu:
            return None
        return MemoryBudget(
            sizes=sizes, itemsize=self.dtype.itemsize, free_bytes=self.device.free_bytes, precision=self.precision
        )

    def smaller(self, layers: int) -> _Choices | None:
        """The same with the next smaller plan for a transformer of so many layers: this one ran out of memory."""
        plan = self.plan.plan.smaller if self.device.is_gpu else None
        if plan is None:
            return None
        reason = f"the plan {self.plan.plan} ran out of memory while loading"
        return replace(self, plan=PlanChoice(plan, reason, plan.streamed_layers(layers)))


def load_components(
    model: str, *, progress: ProgressListener, precision: Precision = Precision.EXACT
) -> tuple[Components, ModelInfo]:
    """Bring the model that `model` names to the device that is there.

    Args:
        model: a folder in diffusers layout, a hub id ("owner/name" or "owner/name@revision"), or "auto".
        progress: hears of the download, if there is one, and of each tensor's arrival; 0..1 over both.
        precision: of the transformer's matrix products. In a lossy one its matrices are rounded as they arrive
            (`Components.rounded`), and never stand there as a whole in the dtype.

    Raises:
        ModelError: it cannot be found, fetched or read.
        DeviceMemoryError: it does not fit.
        DeviceLostError: the device stopped answering.
    """
    way = _Way(progress)
    device = read_device()
    source = find_model(model, device, way.download, precision)
    begun = time.perf_counter()
    files = open_model_folder(source.folder)
    profile = find_profile(source.source, files.marker, files.transformer.config, files.scheduler)
    dtype = choose_dtype(device)
    try:
        need = memory_need(_sizes(files), profile.sizes[0], dtype.itemsize, precision=precision)
        choices = _Choices(device, dtype, choose_plan(device, need), precision)
        components, choices = _load_in_some_plan(files, choices, way)
        _finish(components)
    except LOAD_ERRORS as error:
        raise as_load_error(error, str(files.folder), device.name) from error
    info = ModelInfo(
        name=str(files.marker.get("name", source.name)),
        source=source.source,
        source_reason=source.reason,
        fingerprint=model_fingerprint(files.folder),
        profile=profile,
        trained=bool(files.marker.get("trained", True)),
        device=device.torch_name,
        device_name=device.name,
        dtype=dtype.name,
        dtype_reason=dtype.reason,
        memory_plan=str(choices.plan.plan),
        memory_plan_reason=choices.plan.reason,
        max_prompt_tokens=components.max_prompt_tokens,
        versions=_versions(device),
        load_ms=(time.perf_counter() - begun) * 1e3,
    )
    _log.info(
        "%s is loaded in %.1f s on %s: %s (%s), plan %s (%s)",
        info.name, info.load_ms / 1e3, info.device_name, info.dtype, info.dtype_reason, info.memory_plan,
        info.memory_plan_reason,
    )  # fmt: skip
    return components, info


def _load_in_some_plan(files: ModelFolder, choices: _Choices, way: _Way) -> tuple[Components, _Choices]:
    """Load with the chosen plan, or with the largest smaller one that does not run out of memory."""
    following: _Choices | None = choices
    while following is not None:
        choices = following
        try:
            return _load(files, choices, way), choices
        except torch.OutOfMemoryError as error:
            _log.warning("the plan %s ran out of memory while loading: %s", choices.plan.plan, str(error))
            following = choices.smaller(files.transformer.config["n_layers"])
            if following is None:
                raise
        release_memory(torch.device(choices.device.torch_name))
    raise AssertionError("unreachable: there is always a first plan")


def _load(files: ModelFolder, choices: _Choices, way: _Way) -> Components:
    device, dtype = torch.device(choices.device.torch_name), _DTYPES[choices.dtype.name]
    tokenizer = _tokenizer(files)
    transformer = make_empty(lambda: ZImageTransformer2DModel.from_config(files.transformer.config))
    vae = make_empty(lambda: AutoencoderKL.from_config(files.vae.config))
    text_encoder = make_empty(lambda: Qwen3Model(_text_encoder_config(files.text_encoder, dtype)))
    layers: int = files.transformer.config["n_layers"]
    streamed = choices.plan.streamed_layers
    together = {"text_encoder": projections.fused_names(text_encoder, fast_text_encoder.FUSED)}
    places = {
        "transformer": (transformer, device),
        "vae": (vae, device),
        "text_encoder": (text_encoder, device if choices.plan.plan.keeps_text_encoder else torch.device("cpu")),
    }
    for part in files.parts:
        match(places[part.name][0], part)  # all of them before the first weight is read
    rounded, on_host = None, {}
    if choices.precision is Precision.EXACT:
        on_host = {"transformer": streamed_names(streamed, layers)}
        together["transformer"] = projections.fused_names(transformer, projections.FUSED)
    else:
        rounded = RoundedBlocks(transformer, choices.precision, dtype, device, streamed)
    count = _Count(files, way)
    for part in files.parts:
        module, place = places[part.name]
        names, away = together.get(part.name, ()), on_host.get(part.name, ())
        sinks = rounded.sinks if rounded and module is transformer else None
        fill(module, part, place, dtype, count.loaded, away, together=names, sinks=sinks)
    if not choices.device.is_gpu:
        # oneDNN's own order: decoding takes 10 to 20 % less time on a CPU (and, without a compiler, more on a GPU)
        vae.to(memory_format=torch.channels_last)
    return Components(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler.from_config(files.scheduler),
        device=device,
        dtype=dtype,
        memory_plan=choices.plan.plan,
        streamed_layers=streamed,
        rounded=rounded,
        budget=choices.budget(_sizes(files)),
        text_encoder_fingerprint=text_encoder_fingerprint(files.folder),
    )


def _tokenizer(files: ModelFolder) -> TokenizersBackend:
    folder, vocab_size = files.folder / "tokenizer", files.text_encoder.config["vocab_size"]
    kind = Qwen2Tokenizer if is_qwen_tokenizer(files.tokenizer_class) else TokenizersBackend
    tokenizer = kind.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) > vocab_size:
        raise ModelDamagedError(
            f"The tokenizer in {folder} knows {len(tokenizer):,} tokens, the text encoder only {vocab_size:,}.",
            "They belong to different models: fetch the model again.",
        )
    if not tokenizer.chat_template:
        raise ModelDamagedError(
            f"The tokenizer in {folder} has no chat template, which every prompt is wrapped in.", FETCH_AGAIN
        )
    return tokenizer


def _text_encoder_config(part: WeightedPart, dtype: torch.dtype) -> Qwen3Config:
    config = Qwen3Config.from_dict(part.config)
    config.dtype = dtype
    return config


def _sizes(files: ModelFolder) -> ModelSizes:
    return ModelSizes(
        text_encoder=files.text_encoder.parameter_count,
        transformer=files.transformer.parameter_count,
        vae=files.vae.parameter_count,
        transformer_width=files.transformer.config["dim"],
        vae_width=files.vae.config["block_out_channels"][1],
        transformer_layers=files.transformer.config["n_layers"],
        transformer_refiners=files.transformer.config.get("n_refiner_layers", 2),
    )


def _finish(components: Components) -> None:
    """Wait for the last copy to the device, so that `load_ms` is the whole truth."""
    if components.device.type == "cuda":
        torch.cuda.synchronize(components.device)


def _versions(device: Device) -> dict[str, str]:
    versions = {"zimage-ui": __version__} | {name: importlib.metadata.version(name) for name in _VERSIONED}
    if device.is_gpu:
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return versions
