"""A model's folder in diffusers layout: which files there are, and whether they belong together.

Opening one reads the configurations and the headers of the weight files, a few hundred kilobytes, and checks all that
can be checked without the weights themselves: every file is there, is what it says it is, and has the length that its
header promises.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zimage_ui.errors import ModelDamagedError, ModelNotFoundError
from zimage_ui.generator.weight_files import FETCH_AGAIN, WeightFile, open_weight_file

INDEX_FILE = "model_index.json"
MARKER_FILE = "zimage_ui.json"

_QWEN_TOKENIZERS = {"Qwen2Tokenizer", "Qwen2TokenizerFast"}
# Two names of one class: a tokenizer that is read from its tokenizer.json as it stands.
_PLAIN_TOKENIZERS = {"PreTrainedTokenizerFast", "TokenizersBackend"}
# What each part has to be. The published text encoder calls itself Qwen3ForCausalLM in its own configuration; its last
# matrix, which makes words of states, is not among the weights.
_PART_CLASSES = {
    "scheduler": {"FlowMatchEulerDiscreteScheduler"},
    "tokenizer": _QWEN_TOKENIZERS | _PLAIN_TOKENIZERS,
    "text_encoder": {"Qwen3Model", "Qwen3ForCausalLM"},
    "transformer": {"ZImageTransformer2DModel"},
    "vae": {"AutoencoderKL"},
}
_WEIGHT_STEMS = {
    "text_encoder": "model",
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
_CONFIG_FILES = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth")


@dataclass(frozen=True, slots=True)
class WeightedPart:
    """A part with weights: "text_encoder", "transformer" or "vae"."""

    name: str
    folder: Path
    config: dict[str, Any]
    weights: tuple[WeightFile, ...]

    @property
    def title(self) -> str:
        """Its name for people."""
        return self.name.replace("_", " ")

    @property
    def parameter_count(self) -> int:
        """How many numbers its weight files hold."""
        return sum(math.prod(stored.shape) for weight in self.weights for stored in weight.tensors.values())


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A folder in diffusers layout whose files are all there.

    Attributes:
        folder: where it lies.
        marker: what its `zimage_ui.json` holds; empty without one.
        tokenizer_class: what the tokenizer is, "Qwen2Tokenizer" or another that is wholly in its `tokenizer.json`.
        scheduler: the scheduler's configuration.
        text_encoder, transformer, vae: the parts with weights.
    """

    folder: Path
    marker: dict[str, Any]
    tokenizer_class: str
    scheduler: dict[str, Any]
    text_encoder: WeightedPart
    transformer: WeightedPart
    vae: WeightedPart

    @property
    def parts(self) -> tuple[WeightedPart, ...]:
        """All parts with weights, in the order in which they are loaded: the largest that must fit comes first."""
        return self.transformer, self.vae, self.text_encoder

    @property
    def weights(self) -> tuple[WeightFile, ...]:
        """All weight files, in that order."""
        return tuple(weight for part in self.parts for weight in part.weights)


def is_model_folder(folder: Path) -> bool:
    """Whether `folder` looks like a model in diffusers layout."""
    return (folder / INDEX_FILE).is_file()


def open_model_folder(folder: Path) -> ModelFolder:
    """Read everything but the weights.

    Raises:
        ModelNotFoundError: there is no such folder, or no model in it.
        ModelDamagedError: a file is missing, cut short, not what it should be, or of another kind of model.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"There is no folder {folder}.", "Check ZIMAGE_MODEL.")
    if not is_model_folder(folder):
        raise ModelNotFoundError(
            f"{folder} holds no model: it has no {INDEX_FILE}.",
            "ZIMAGE_MODEL takes a folder in diffusers layout (single-file checkpoints cannot be read), "
            "a hub id such as Tongyi-MAI/Z-Image-Turbo, or auto.",
        )
    classes = _check_classes(folder / INDEX_FILE)
    _check_tokenizer(folder / "tokenizer", classes["tokenizer"])
    marker = folder / MARKER_FILE
    return ModelFolder(
        folder=folder,
        marker=read_json(marker) if marker.is_file() else {},
        tokenizer_class=classes["tokenizer"],
        scheduler=read_json(folder / "scheduler" / _CONFIG_FILES["scheduler"]),
        text_encoder=_open_part(folder / "text_encoder"),
        transformer=_open_part(folder / "transformer"),
        vae=_open_part(folder / "vae"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelDamagedError: the file is missing, cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelDamagedError(f"{path} is missing.", FETCH_AGAIN) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelDamagedError(f"{path} cannot be read: {error}.", FETCH_AGAIN) from error
    if not isinstance(content, dict):
        raise ModelDamagedError(f"{path} holds {type(content).__name__} where an object should be.", FETCH_AGAIN)
    return content


def _check_classes(path: Path) -> dict[str, str]:
    """The class of each part."""
    index = read_json(path)
    pipeline = index.get("_class_name")
    if pipeline != "ZImagePipeline":
        raise ModelDamagedError(
            f"{path} describes a {pipeline}; only ZImagePipeline can be run.", "Choose a Z-Image model."
        )
    found = {}
    for part, classes in _PART_CLASSES.items():
        entry = index.get(part)
        named = entry[1] if isinstance(entry, list) and len(entry) == 2 else entry
        found[part] = str(named)
        if found[part] not in classes:
            raise ModelDamagedError(
                f"{path} names {named} as the {part.replace('_', ' ')}; it has to be {' or '.join(sorted(classes))}.",
                "Choose a Z-Image model.",
            )
    return found


def is_qwen_tokenizer(tokenizer_class: str) -> bool:
    """Whether a tokenizer of that class is Qwen's, which may also be in its older files."""
    return tokenizer_class in _QWEN_TOKENIZERS


def _check_tokenizer(folder: Path, tokenizer_class: str) -> None:
    """Transformers makes an empty tokenizer, without a word, of a folder without these."""
    read_json(folder / _CONFIG_FILES["tokenizer"])
    if not is_qwen_tokenizer(tokenizer_class):
        if not (folder / "tokenizer.json").is_file():
            raise ModelDamagedError(f"{folder} has no tokenizer.json: words are missing.", FETCH_AGAIN)
        return
    vocabulary = ("tokenizer.json",) if (folder / "tokenizer.json").exists() else ("vocab.json", "merges.txt")
    if not all((folder / name).is_file() for name in vocabulary):
        raise ModelDamagedError(
            f"{folder} has neither tokenizer.json nor vocab.json and merges.txt: words are missing.", FETCH_AGAIN
        )


def _open_part(folder: Path) -> WeightedPart:
    config = read_json(folder / "config.json")
    if config.get("quantization_config"):
        raise ModelDamagedError(
            f"{folder} holds quantised weights; these cannot be read yet.",
            "Choose the model in bf16, fp16 or fp32; it is cast to what the hardware computes in.",
        )
    stem = _WEIGHT_STEMS[folder.name]
    index_path = folder / f"{stem}.safetensors.index.json"
    if index_path.is_file():
        weights = _open_shards(index_path)
    elif (folder / f"{stem}.safetensors").exists():
        weights = (open_weight_file(folder / f"{stem}.safetensors"),)
    else:
        raise _no_weights(folder, stem)
    return WeightedPart(folder.name, folder, config, weights)


def _open_shards(index_path: Path) -> tuple[WeightFile, ...]:
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ModelDamagedError(f"{index_path} has no weight_map.", FETCH_AGAIN)
    names = sorted({str(name) for name in weight_map.values()})
    strange = next((name for name in names if Path(name).name != name or not name.endswith(".safetensors")), None)
    if strange is not None:
        raise ModelDamagedError(f"{index_path} names {strange!r}, which is no safetensors file beside it.", FETCH_AGAIN)
    weights = tuple(open_weight_file(index_path.parent / name) for name in names)
    for weight in weights:
        promised = {key for key, name in weight_map.items() if name == weight.path.name}
        lacking = sorted(promised - weight.tensors.keys())
        if lacking:
            raise ModelDamagedError(
                f"{weight.path} lacks {lacking[0]}, which {index_path.name} says it has.", FETCH_AGAIN
            )
    return weights


def _no_weights(folder: Path, stem: str) -> ModelDamagedError:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        return ModelDamagedError(
            f"{folder} has weights only as pickle ({pickles[0]}), which is never read: "
            "a pickle can run any program hidden in it.",
            "Convert the model to safetensors, or choose one that has them.",
        )
    return ModelDamagedError(f"{folder} has no {stem}.safetensors and no index of shards.", FETCH_AGAIN)
