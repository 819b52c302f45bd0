"""What `ZIMAGE_MODEL` means: a folder, a hub id, or `auto`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from zimage_ui.errors import DeviceMemoryError, ModelNotFoundError
from zimage_ui.generator.base import ProgressListener
from zimage_ui.generator.hub import HubId, fetch_model, parse_hub_id
from zimage_ui.generator.layout import is_model_folder
from zimage_ui.generator.placement import Device, ModelSizes, choose_dtype, choose_plan, memory_need
from zimage_ui.generator.profiles import TURBO
from zimage_ui.request import Precision

_log = logging.getLogger(__name__)

TURBO_ID = HubId("Tongyi-MAI/Z-Image-Turbo")
BUNDLED_FOLDER = Path(__file__).parents[1] / "mini"

# Of Z-Image-Turbo, its Qwen3-4B text encoder and its VAE, for judging a card before anything is fetched.
TURBO_SIZES = ModelSizes(
    text_encoder=4_022_468_096,
    transformer=6_154_908_736,
    vae=83_819_683,
    transformer_width=3840,
    vae_width=256,
    transformer_layers=30,
    transformer_refiners=2,
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's folder and where it came from.

    Attributes:
        folder: in diffusers layout, on this machine.
        name: for people, unless the model has one of its own.
        source: the folder, or the hub id as it was given.
        reason: why it is this one, for people; empty when it was asked for by name.
    """

    folder: Path
    name: str
    source: str
    reason: str = ""


def find_model(
    model: str, device: Device, progress: ProgressListener, precision: Precision = Precision.EXACT
) -> ModelSource:
    """The folder of the model that `model` names, fetched if need be.

    A folder of that name weighs more than a hub id.

    Args:
        model: the setting.
        device: where the model will run; it decides what `auto` is.
        progress: hears of a download (0..1 of it).
        precision: that it will compute in; `auto` is a question of memory.

    Raises:
        ModelNotFoundError: there is no such folder or hub id, or the package lacks its small model.
        ModelDownloadError: the hub did not give it.
    """
    if model == "auto":
        return _choose(device, progress, precision)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return ModelSource(folder.absolute(), folder.absolute().name, str(folder.absolute()))
    hub_id = parse_hub_id(model)
    if hub_id is None or model.startswith((".", "/", "~")):
        raise ModelNotFoundError(
            f"There is no model {model!r}: no such folder, and not a hub id either.",
            "ZIMAGE_MODEL takes a folder in diffusers layout, a hub id such as Tongyi-MAI/Z-Image-Turbo, or auto.",
        )
    return ModelSource(fetch_model(hub_id, progress), hub_id.name, str(hub_id))


def _choose(device: Device, progress: ProgressListener, precision: Precision) -> ModelSource:
    """The best model that `device` can run: Z-Image-Turbo, or the bundled one."""
    if not device.is_gpu:
        return _bundled("there is no NVIDIA GPU that torch can use")
    need = memory_need(TURBO_SIZES, TURBO.sizes[0], choose_dtype(device).itemsize, precision=precision)
    try:
        plan = choose_plan(device, need)
    except DeviceMemoryError as error:
        return _bundled(f"Z-Image-Turbo does not fit: {error.message}")
    reason = f"{device.name} can run Z-Image-Turbo: {plan.reason}"
    _log.info("auto is %s: %s", TURBO_ID, reason)
    return ModelSource(fetch_model(TURBO_ID, progress), TURBO_ID.name, str(TURBO_ID), reason)


def _bundled(reason: str) -> ModelSource:
    """The small model that comes with the package."""
    if not is_model_folder(BUNDLED_FOLDER):
        raise ModelNotFoundError(
            f"The small model is missing from {BUNDLED_FOLDER}.",
            "It comes with the package: install that again, or set ZIMAGE_MODEL to a folder or a hub id.",
        )
    _log.info("auto is the small model in %s: %s", BUNDLED_FOLDER, reason)
    return ModelSource(BUNDLED_FOLDER, BUNDLED_FOLDER.name, str(BUNDLED_FOLDER), reason)
