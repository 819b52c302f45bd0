"""The small model's parts, at the sizes that fit 32 MB, built with fresh weights and stored in diffusers layout.

The classes are those of Z-Image-Turbo. The transformer starts from its stock initialisation: zero modulation with
Xavier matrices diverged in an earlier attempt. Its pad tokens, which the class leaves at zero, are drawn, so that
their norm is not divided by nothing.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from transformers import Qwen3Config, Qwen3Model

LATENT_CHANNELS = 16
VAE_FACTOR = 8
PATCH = 2
# The time shift of Z-Image-Turbo: most steps at high noise, where the composition is decided.
SHIFT = 3.0


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """How large the parts are; by default as large as 32 MB in bf16 allow.

    Attributes:
        vae_channels: of the autoencoder's levels, each half as wide and high as the one before.
        vae_norm_groups: divides each of them.
        text_width: features of a token; those of the heads may be more or fewer.
        text_layers: one of them does nothing: what goes into the last is the prompt's embedding.
        width: features of a token in the transformer. 288 makes the feed-forward layer 768 wide, which suits tensor
            cores; 256 would make it 682.
        axis_widths: of the rotary embedding: how many of a head's features tell the place in the text, the row and
            the column. Their sum times `heads` is `width`.
    """

    vae_channels: tuple[int, int, int, int] = (32, 64, 80, 96)
    vae_layers: int = 1
    vae_norm_groups: int = 16
    text_width: int = 192
    text_feed_forward: int = 512
    text_layers: int = 3
    text_heads: int = 4
    text_key_heads: int = 2
    text_head_width: int = 48
    width: int = 288
    layers: int = 7
    refiner_layers: int = 1
    heads: int = 6
    axis_widths: tuple[int, int, int] = (16, 16, 16)


@dataclass(slots=True)
class Parts:
    """The weights of a model: what is trained, and what is stored."""

    vae: AutoencoderKL
    text_encoder: Qwen3Model
    transformer: ZImageTransformer2DModel


def build_vae(sizes: ModelSizes) -> AutoencoderKL:
    """A fresh autoencoder: 8x smaller, 16 channels. It has no attention, so it may learn from crops."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(sizes.vae_channels),
        up_block_types=["UpDecoderBlock2D"] * len(sizes.vae_channels),
        block_out_channels=list(sizes.vae_channels),
        layers_per_block=sizes.vae_layers,
        norm_num_groups=sizes.vae_norm_groups,
        latent_channels=LATENT_CHANNELS,
        sample_size=256,
        use_quant_conv=False,
        use_post_quant_conv=False,
        mid_block_add_attention=False,
    )


def build_text_encoder(sizes: ModelSizes, vocab_size: int, pad_token_id: int) -> Qwen3Model:
    """A fresh text encoder for a tokenizer of `vocab_size` tokens."""
    config = Qwen3Config(
        architectures=["Qwen3Model"],
        vocab_size=vocab_size,
        pad_token_id=pad_token_id,
        hidden_size=sizes.text_width,
        intermediate_size=sizes.text_feed_forward,
        num_hidden_layers=sizes.text_layers,
        num_attention_heads=sizes.text_heads,
        num_key_value_heads=sizes.text_key_heads,
        head_dim=sizes.text_head_width,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
    )
    return Qwen3Model(config)


def build_transformer(sizes: ModelSizes) -> ZImageTransformer2DModel:
    """A fresh transformer."""
    transformer = ZImageTransformer2DModel(
        in_channels=LATENT_CHANNELS,
        cap_feat_dim=sizes.text_width,
        dim=sizes.width,
        n_layers=sizes.layers,
        n_refiner_layers=sizes.refiner_layers,
        n_heads=sizes.heads,
        n_kv_heads=sizes.heads,
        axes_dims=list(sizes.axis_widths),
        axes_lens=[1536, 512, 512],
        rope_theta=256.0,
        t_scale=1000.0,
    )
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token, std=0.02)
    return transformer


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The noise schedule, of training and of sampling."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=SHIFT)


def save_model(folder: Path, parts: Parts, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write `parts` to `folder` in diffusers layout, beside the tokenizer that is already there.

    Args:
        folder: where; files of the same names are replaced.
        parts: whole and in fp32; they are left as they are.
        dtype: of the stored weights.

    Raises:
        OSError: the folder cannot be written.
    """
    scheduler().save_pretrained(folder / "scheduler")
    for name, part in (("vae", parts.vae), ("text_encoder", parts.text_encoder), ("transformer", parts.transformer)):
        stored = copy.deepcopy(part).to("cpu", dtype)
        stored.save_pretrained(folder / name)
        _forget_origin(folder / name / "config.json")
    index = {
        "_class_name": "ZImagePipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "ZImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write_json(folder / "model_index.json", index)
    _write_json(folder / "zimage_ui.json", {"trained": True, "name": "Z-Image mini", "profile": "mini"})


def load_model(folder: Path) -> Parts:
    """The parts that `save_model` wrote, in fp32.

    Raises:
        OSError: a file is missing.
    """
    return Parts(
        AutoencoderKL.from_pretrained(folder / "vae", dtype=torch.float32),
        Qwen3Model.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        ZImageTransformer2DModel.from_pretrained(folder / "transformer", dtype=torch.float32),
    )


def _forget_origin(path: Path) -> None:
    """Remove the folder that a part was loaded from, which diffusers notes in its configuration."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)
    _write_json(path, config)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
