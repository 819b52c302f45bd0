"""Which precisions a device can compute in, and what is said when it cannot; arithmetic over a `Device`."""

from __future__ import annotations

from zimage_ui.errors import SettingsError
from zimage_ui.generator.placement import EIGHT_BIT_CAPABILITIES, Device, choose_dtype
from zimage_ui.request import Precision

# The cards whose tensor cores were the first to multiply so.
_FIRST_CARDS = {Precision.FP8: "Ada (RTX 40)", Precision.INT8: "Turing (RTX 20)"}
_PRODUCTS = {
    Precision.FP8: "matrix products in FP8 on {card}; faster, in half the memory, and not quite exact",
    Precision.INT8: "matrix products in INT8 on {card}; in half the memory, and not quite exact",
    Precision.NF4: "matrices kept in four bits (NF4) and unpacked on {card} for each product; in a third of the "
    "memory, slower than bf16, and further from exact than eight bits",
}


def check_precision(precision: Precision, device: Device) -> str:
    """Why pictures are made in `precision` on `device`, for people; reads on after "<precision>: ".

    Raises:
        SettingsError: the device cannot, or would only be slower for it.
    """
    if precision is Precision.EXACT:
        return f"matrix products in {choose_dtype(device).name}, as the stock pipeline computes them"
    if device.computes_in(precision):
        return f"asked for: {_PRODUCTS[precision].format(card=device.name)}"
    other = next((each for each in EIGHT_BIT_CAPABILITIES if device.computes_in(each)), None)
    hint = f"Set it to {Precision.EXACT}" + (f", or to {other}, which this card has." if other else ".")
    if device.capability is None:
        raise SettingsError(
            f"ZIMAGE_PRECISION = {precision} needs an NVIDIA GPU; on {device.name} it would be slower than exact.", hint
        )
    first, card = EIGHT_BIT_CAPABILITIES[precision], _FIRST_CARDS[precision]
    raise SettingsError(
        f"ZIMAGE_PRECISION = {precision} cannot be used on {device.name}: it has compute capability "
        f"{_version(device.capability)}, and {precision.upper()} came with {_version(first)}, {card}.",
        hint,
    )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
