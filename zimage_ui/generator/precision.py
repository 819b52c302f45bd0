"""Which precisions a device can compute in, and what is said when it cannot; arithmetic over a `Device`."""

from __future__ import annotations

from zimage_ui.errors import SettingsError
from zimage_ui.generator.placement import EIGHT_BIT_CAPABILITIES, Device, choose_dtype
from zimage_ui.request import Precision

# The cards whose tensor cores were the first to multiply so.
_FIRST_CARDS = {Precision.FP8: "Ada (RTX 40)", Precision.INT8: "Turing (RTX 20)"}
_WHOLE_NAMES = {Precision.FP8: "FP8", Precision.INT8: "INT8"}
_GAINS = {Precision.FP8: "faster, in half the memory", Precision.INT8: "in half the memory"}


def check_precision(precision: Precision, device: Device) -> str:
    """Why pictures are made in `precision` on `device`, for people; reads on after "<precision>: ".

    Raises:
        SettingsError: the device cannot, or would only be slower for it.
    """
    if precision is Precision.EXACT:
        return f"matrix products in {choose_dtype(device).name}, as the stock pipeline computes them"
    if device.computes_in(precision):
        products = f"matrix products in {_WHOLE_NAMES[precision]} on {device.name}"
        return f"asked for: {products}; {_GAINS[precision]}, and not quite exact"
    other = next((each for each in EIGHT_BIT_CAPABILITIES if device.computes_in(each)), None)
    hint = f"Set it to {Precision.EXACT}" + (f", or to {other}, which this card has." if other else ".")
    if device.capability is None:
        raise SettingsError(
            f"ZIMAGE_PRECISION = {precision} needs an NVIDIA GPU; on {device.name} it would be slower than exact.", hint
        )
    first, card, name = EIGHT_BIT_CAPABILITIES[precision], _FIRST_CARDS[precision], _WHOLE_NAMES[precision]
    raise SettingsError(
        f"ZIMAGE_PRECISION = {precision} cannot be used on {device.name}: it has compute capability "
        f"{_version(device.capability)}, and {name} came with {_version(first)}, {card}.",
        hint,
    )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
