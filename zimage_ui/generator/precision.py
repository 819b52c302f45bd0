"""Which precisions a device can compute in, and what is said when it cannot; arithmetic over a `Device`."""

from __future__ import annotations

from zimage_ui.errors import SettingsError
from zimage_ui.generator.placement import Device, choose_dtype
from zimage_ui.request import Precision

# The compute capabilities whose tensor cores multiply in eight bits, and the cards that brought them.
_FIRST = {Precision.FP8: ((8, 9), "Ada (RTX 40)"), Precision.INT8: ((7, 5), "Turing (RTX 20)")}
_WHOLE_NAMES = {Precision.FP8: "FP8", Precision.INT8: "INT8"}


def check_precision(precision: Precision, device: Device) -> str:
    """Why pictures are made in `precision` on `device`, for people; reads on after "<precision>: ".

    Raises:
        SettingsError: the device cannot, or would only be slower for it.
    """
    if precision is Precision.EXACT:
        return f"matrix products in {choose_dtype(device).name}, as the stock pipeline computes them"
    if can_compute(precision, device):
        return f"asked for: matrix products in {_WHOLE_NAMES[precision]} on {device.name}; faster, and not quite exact"
    other = next((each for each in _FIRST if can_compute(each, device)), None)
    hint = f"Set it to {Precision.EXACT}" + (f", or to {other}, which this card has." if other else ".")
    if device.capability is None:
        raise SettingsError(
            f"ZIMAGE_PRECISION = {precision} needs an NVIDIA GPU; on {device.name} it would be slower than exact.", hint
        )
    (first, card), name = _FIRST[precision], _WHOLE_NAMES[precision]
    raise SettingsError(
        f"ZIMAGE_PRECISION = {precision} cannot be used on {device.name}: it has compute capability "
        f"{_version(device.capability)}, and {name} came with {_version(first)}, {card}.",
        hint,
    )


def can_compute(precision: Precision, device: Device) -> bool:
    """Whether `device` has tensor cores for `precision`; everything computes exactly."""
    if precision is Precision.EXACT:
        return True
    return device.capability is not None and device.capability >= _FIRST[precision][0]


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
