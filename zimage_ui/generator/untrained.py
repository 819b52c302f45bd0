"""A random-weight Z-Image model in exact diffusers layout, built in place from nothing.

It stands in wherever a real model would be too large: the tests run the true code on `TINY`, `DEFAULT` is
large enough to show something, and `FULL` has the size and speed of Z-Image-Turbo itself (speed does not depend on
the values). Its pictures are abstract colours that follow prompt and seed; it knows nothing, and its `zimage_ui.json`
says `"trained": false`, so that whatever shows them can say so.

The same folder comes out, byte for byte, for the same size and seed: every tensor is drawn from a stream of its own,
named by seed, part and key. Weights are written shard by shard, so that building never needs more memory than one
shard, however large the model.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from zimage_ui.errors import ModelError
from zimage_ui.generator.layout import INDEX_FILE, MARKER_FILE, is_model_folder, open_model_folder, read_json

_log = logging.getLogger(__name__)

# The streams behind every tensor start here; a change of any rule below must raise it.
RECIPE = 1
# See _draw.
_QUERY_KEY_SCALE = 1.5
_DENOISING = 0.8

# Qwen3's template without tools: `enable_thinking=True` leaves the thinking to the model, False closes it at once.
_CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}"
    "{%- endif %}"
)
_END_OF_TEXT, _IM_START, _IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# What the byte-pair merges are learned from: the template's own words and the words of short prompts, Chinese too.
_TOKENIZER_TEXT = (
    "user\nassistant\nsystem\n",
    "a photo of a red cat and a blue dog in the green garden under the bright morning sun",
    "a painting of an old wooden house on the hill above the sea, evening light, clouds, watercolour",
    "portrait of a young woman with a yellow hat, soft light, film grain, detailed, sharp focus",
    "一只红色的猫和一只蓝色的狗在花园里，清晨的阳光，水彩画",
    "一座古老的木屋在海边的山上，傍晚的光，云，照片，细节丰富",
)
_VOCAB_SIZE = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class UntrainedSize:
    """How large an untrained model is.

    Attributes:
        name: for people; it is part of the model's name.
        profile: the profile it is used with ("mini" or "turbo").
        transformer, text_encoder, vae: what differs from the fixed part of each configuration.
        dtype: of the stored weights.
        shard_bytes: a weight file is closed before it grows beyond this.
    """

    name: str
    profile: str
    transformer: dict[str, Any]
    text_encoder: dict[str, Any]
    vae: dict[str, Any]
    dtype: torch.dtype = torch.float32
    shard_bytes: int = field(default=5 * 10**9)


TINY = UntrainedSize(
    name="tiny",
    profile="mini",
    transformer={"dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "axes_dims": [8, 12, 12]},
    text_encoder={
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": _VOCAB_SIZE,
    },
    vae={"block_out_channels": [8, 8, 16, 16], "layers_per_block": 1, "norm_num_groups": 4},
    shard_bytes=600_000,
)
DEFAULT = UntrainedSize(
    name="small",
    profile="mini",
    transformer={"dim": 256, "n_layers": 5, "n_refiner_layers": 1, "n_heads": 4, "axes_dims": [16, 24, 24]},
    text_encoder={
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": _VOCAB_SIZE,
    },
    vae={"block_out_channels": [16, 32, 64, 64], "layers_per_block": 1, "norm_num_groups": 8},
)
FULL = UntrainedSize(
    name="full",
    profile="turbo",
    transformer={"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "axes_dims": [32, 48, 48]},
    text_encoder={
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151_936,
    },
    vae={"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    dtype=torch.bfloat16,
)


def build_untrained_model(folder: Path, size: UntrainedSize = TINY, seed: int = 0) -> Path:
    """Build an untrained model at `folder`, whole or not at all.

    A model that is already there is left as it is, but for an untrained one that is damaged: that is built anew.

    Args:
        folder: where it goes; folders above it are made.
        size: how large.
        seed: of all its weights.

    Returns:
        `folder`.

    Raises:
        OSError, SafetensorError: the folder cannot be written.
    """
    if is_model_folder(folder) and not _is_ours(folder):
        return folder
    damage = _damage(folder)
    if not damage:
        return folder
    if folder.exists():
        _log.warning("the untrained model is built anew: %s", damage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = _beside(folder)
    try:
        work.mkdir()
        _write_model(work, size, seed)
        for path in (*work.rglob("*"), work):
            _sync(path)
        _put(work, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _put(work: Path, folder: Path) -> None:
    """Move `work` to `folder`, where there may be a damaged model of ours, or by now a whole one."""
    try:
        work.rename(folder)
    except OSError:
        if not _damage(folder):
            return  # two first starts at once: whoever was faster has built the same model
        if not _is_ours(folder):
            raise
        damaged = folder.rename(_beside(folder))
        try:
            work.rename(folder)
        finally:
            shutil.rmtree(damaged, ignore_errors=True)


def _beside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")


def _is_ours(folder: Path) -> bool:
    """Whether an untrained model was built at `folder`: nothing else may be replaced."""
    marker = folder / MARKER_FILE
    try:
        return read_json(marker).get("trained") is False
    except ModelError:
        return marker.is_file()  # cut short; only our own models have such a file


def _damage(folder: Path) -> str:
    """What is wrong with the model at `folder`, as far as it shows without its weights; empty when it is whole."""
    try:
        open_model_folder(folder)
        read_json(folder / "tokenizer" / "tokenizer.json")
    except ModelError as error:
        return error.message
    return ""


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_model(folder: Path, size: UntrainedSize, seed: int) -> None:
    _write_json(
        folder / INDEX_FILE,
        {
            "_class_name": "ZImagePipeline",
            "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
            "text_encoder": ["transformers", "Qwen3Model"],
            "tokenizer": ["transformers", "Qwen2Tokenizer"],
            "transformer": ["diffusers", "ZImageTransformer2DModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
    )
    _write_json(
        folder / "scheduler" / "scheduler_config.json",
        {
            "_class_name": "FlowMatchEulerDiscreteScheduler",
            "num_train_timesteps": 1000,
            "shift": 3.0,
            "use_dynamic_shifting": False,
        },
    )
    _write_tokenizer(folder / "tokenizer")
    _write_part(folder / "text_encoder", "model", _text_encoder(size), size, seed)
    _write_part(folder / "transformer", "diffusion_pytorch_model", _transformer(size), size, seed)
    _write_part(folder / "vae", "diffusion_pytorch_model", _vae(size), size, seed)
    _write_json(
        folder / MARKER_FILE,
        {"trained": False, "name": f"untrained ({size.name})", "profile": size.profile, "recipe": RECIPE},
    )


def _transformer(size: UntrainedSize) -> torch.nn.Module:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformer2DModel

    with torch.device("meta"):
        return ZImageTransformer2DModel(
            n_kv_heads=size.transformer["n_heads"],
            cap_feat_dim=size.text_encoder["hidden_size"],
            in_channels=16,
            rope_theta=256.0,
            t_scale=1000.0,
            axes_lens=[1536, 512, 512],
            **size.transformer,
        )


def _text_encoder(size: UntrainedSize) -> torch.nn.Module:
    from transformers.models.qwen3.configuration_qwen3 import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Model

    config = Qwen3Config(
        architectures=["Qwen3Model"],
        max_position_embeddings=40_960,
        rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        tie_word_embeddings=True,
        dtype=str(size.dtype).removeprefix("torch."),
        **size.text_encoder,
    )
    with torch.device("meta"):
        return Qwen3Model(config)


def _vae(size: UntrainedSize) -> torch.nn.Module:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        return AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            latent_channels=16,
            sample_size=1024,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **size.vae,
        )


def _write_part(folder: Path, stem: str, model: Any, size: UntrainedSize, seed: int) -> None:
    """Write the configuration of `model` (on the meta device) and freshly drawn weights for its every tensor."""
    (model.save_config if hasattr(model, "save_config") else model.config.save_pretrained)(folder)
    shards = list(_shards(model.state_dict(), size))
    names = [
        f"{stem}.safetensors" if len(shards) == 1 else f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        for number in range(1, len(shards) + 1)
    ]
    for name, shapes in zip(names, shards, strict=True):
        tensors = {
            key: _draw(f"{RECIPE}/{seed}/{folder.name}/", key, shape).to(size.dtype) for key, shape in shapes.items()
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
    if len(shards) > 1:
        total = sum(math.prod(shape) for shapes in shards for shape in shapes.values()) * size.dtype.itemsize
        weight_map = {key: name for name, shapes in zip(names, shards, strict=True) for key in shapes}
        _write_json(
            folder / f"{stem}.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )


def _shards(state: dict[str, torch.Tensor], size: UntrainedSize) -> Iterator[dict[str, torch.Size]]:
    """The shapes of all tensors, in order, cut into files of at most `size.shard_bytes` (or one tensor)."""
    shard: dict[str, torch.Size] = {}
    filled = 0
    for key, tensor in state.items():
        tensor_bytes = tensor.numel() * size.dtype.itemsize
        if shard and filled + tensor_bytes > size.shard_bytes:
            yield shard
            shard, filled = {}, 0
        shard[key] = tensor.shape
        filled += tensor_bytes
    yield shard


def _draw(stream: str, key: str, shape: torch.Size) -> torch.Tensor:
    """The values of the tensor `key`, whose random numbers come from `stream` + its name.

    Norm weights are 1 and biases 0; matrices and kernels are normal with variance 1 / fan-in, so that activations
    keep their scale through any depth; embeddings and pad tokens are unit normal, so that words differ. Three rules
    turn what would be noise on noise into a picture that follows its prompt:

    * queries and keys are scaled, so that attention picks some words (beyond `_QUERY_KEY_SCALE` it becomes chaotic:
      a rounding error in the prompt's embedding then grows into another picture);
    * the last layer subtracts what the first one read, so that sampling removes most of the noise;
    * the VAE's kernels are smooth, so that latents become soft patches of colour.
    """
    if len(shape) == 1:
        scales_attention = key.endswith(("norm_q.weight", "norm_k.weight"))
        return torch.full(shape, 0.0 if key.endswith("bias") else _QUERY_KEY_SCALE if scales_attention else 1.0)
    values = _normal(stream + key, shape)
    if "embed_tokens" in key or key.endswith("pad_token"):
        return values
    if key.startswith("all_x_embedder."):
        return 2 * _orthonormal(values)
    values /= math.sqrt(math.prod(shape[1:]))
    if key.startswith("all_final_layer.") and key.endswith(".linear.weight"):
        patch = key.split(".")[1]
        read = _orthonormal(_normal(f"{stream}all_x_embedder.{patch}.weight", torch.Size((shape[1], shape[0]))))
        return values / 2 - _DENOISING * read.T
    if shape[2:] == (3, 3):
        stencil = torch.tensor([1.0, 2.0, 1.0]) / 4
        return 3 * values[:, :, :1, :1] * torch.outer(stencil, stencil)
    return values


def _normal(stream: str, shape: torch.Size) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big")
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _orthonormal(values: torch.Tensor) -> torch.Tensor:
    """A matrix of orthonormal columns that span those of `values` (Gram-Schmidt by way of QR)."""
    return torch.linalg.qr(values)[0].contiguous()


def _write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer in Qwen's files: any text can be written in it, a few frequent words are one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    specials = [_END_OF_TEXT, _IM_START, _IM_END, "<think>", "</think>"]
    trained.train_from_iterator(
        _TOKENIZER_TEXT,
        trainers.BpeTrainer(
            vocab_size=_VOCAB_SIZE - len(specials),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    learned = json.loads(trained.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(pair) for pair in learned["merges"]],
        eos_token=_IM_END,
        pad_token=_END_OF_TEXT,
        model_max_length=131_072,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": specials[1:]})
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, ensure_ascii=False, indent=2, sort_keys=True)
        file.write("\n")
