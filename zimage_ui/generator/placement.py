"""Which device, which dtype, which memory plan; each choice with the reason that is shown to people.

Everything here but `read_device` is arithmetic over a frozen `Device`, so that every card can be tried without one.
`read_device` is the only reader of torch.cuda; which card it sees is `CUDA_VISIBLE_DEVICES`' affair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.components import ROUNDED_MULTIPLE, STREAM_SLOTS, MemoryPlan
from zimage_ui.generator.units import data_size
from zimage_ui.request import Precision

# NVIDIA cards compute in bf16 since Ampere; before that torch only emulates it.
_BF16_CAPABILITY = (8, 0)
# Their tensor cores multiply in eight bits since Ada and Turing. Advice names the first of these that a card has.
EIGHT_BIT_CAPABILITIES = {Precision.FP8: (8, 9), Precision.INT8: (7, 5)}

# Left free on a GPU: the workspaces of cuBLAS and cuDNN, fragmentation, and what the desktop takes in the meantime.
_GPU_RESERVE_BYTES = 600_000_000

# See memory_need. H100, torch 2.11: 187, 560, 1182 and 2053 MB for the transformer at 512, 1024, 1536 and 2048 squared
# with 512 caption tokens; 639, 2552, 5741 and 10204 MB for the VAE.
_TRANSFORMER_FACTOR = 16.0
_VAE_FACTOR = 4.8
# Uncompiled, the largest product of a block and its copies on the way to eight bits stand beside each other. Counted on
# torch's meta device, not measured; what is prepared has no such copies and is reckoned as in bf16.
_UNCOMPILED_FACTORS = {Precision.FP8: 31.0, Precision.INT8: 38.0}
# Bits of a value in NF4, with its share of a scale.
_NF4_BITS = 4.5
_PIXELS_A_TOKEN = 256
_MAX_CAPTION_TOKENS = 512
# Of a tile, in pixels; and the tiles are put together in three colours and a weight, in fp32.
_TILE_SIDE = 512
_MOSAIC_BYTES_A_PIXEL = 16
# The share of the working memory by which the reckoning may be too high.
_UNSURE = 0.3
# What PCIe 4.0 with 16 lanes moves from page-locked memory, bytes a second; only for the reason that people read.
_BUS_BYTES_A_S = 25e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a model would run on.

    Attributes:
        torch_name: "cuda:0" or "cpu".
        name: for people.
        free_bytes, total_bytes: its memory; a CPU's is the host's.
        capability: of an NVIDIA GPU, as (major, minor); None on a CPU.
        host_free_bytes: for what a GPU leaves in host memory; None where nobody has looked.
    """

    torch_name: str
    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int] | None = None
    host_free_bytes: int | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.capability is not None

    def computes_in(self, precision: Precision) -> bool:
        """Whether it is worth computing in `precision` on it; everything computes exactly.

        Eight bits need tensor cores for them. Four are unpacked by any GPU; a CPU would only be slower for it.
        """
        if precision is Precision.EXACT:
            return True
        return self.capability is not None and self.capability >= EIGHT_BIT_CAPABILITIES.get(precision, (0, 0))


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """The type that a model computes in.

    Attributes:
        name: "bf16", "fp16" or "fp32".
        itemsize: bytes of one number.
        reason: why, for people; reads on after "<name>: ".
    """

    name: str
    itemsize: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """What decides how much memory a model takes.

    Attributes:
        text_encoder, transformer, vae: their numbers of parameters.
        transformer_width: values of one token.
        vae_width: channels of the VAE's largest activations, those at full resolution.
        transformer_layers: main layers, those that can be streamed.
        transformer_refiners: the layers before them that every step runs, too; they are rounded, but never streamed.
    """

    text_encoder: int
    transformer: int
    vae: int
    transformer_width: int
    vae_width: int
    transformer_layers: int = 0
    transformer_refiners: int = 0

    @property
    def layer(self) -> int:
        """Parameters of one layer's matrix products: four of the attention, three of the feed-forward."""
        return sum(outputs * inputs for outputs, inputs in self._matrices)

    def layer_bytes(self, itemsize: int, precision: Precision) -> int:
        """What one layer's matrix products take; in eight bits with a scale of four bytes a row (FP8 needs fewer)."""

        def size_bytes(outputs: int, inputs: int) -> int:
            if precision is Precision.EXACT or outputs % ROUNDED_MULTIPLE or inputs % ROUNDED_MULTIPLE:
                return outputs * inputs * itemsize
            if precision is Precision.NF4:
                return round(outputs * inputs * _NF4_BITS / 8)
            return outputs * (inputs + 4)

        return sum(size_bytes(*matrix) for matrix in self._matrices)

    def transformer_bytes(self, itemsize: int, precision: Precision) -> int:
        """What all of the transformer's weights take."""
        saved_bytes = self.layer_bytes(itemsize, Precision.EXACT) - self.layer_bytes(itemsize, precision)
        return self.transformer * itemsize - (self.transformer_layers + self.transformer_refiners) * saved_bytes

    def unpacked_bytes(self, itemsize: int, precision: Precision) -> int:
        """What the largest matrix takes that is unpacked to be multiplied with."""
        if precision is not Precision.NF4:
            return 0
        return max(outputs * inputs for outputs, inputs in self._matrices) * itemsize

    @property
    def _matrices(self) -> tuple[tuple[int, int], ...]:
        """(outputs, inputs) of one layer's four products."""
        dim, hidden = self.transformer_width, int(self.transformer_width / 3 * 8)
        return (3 * dim, dim), (dim, dim), (2 * hidden, dim), (dim, hidden)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a model takes of its device, in bytes.

    Attributes:
        text_encoder_bytes, transformer_bytes, vae_bytes: weights, in the dtype that is computed in, but for the
            transformer's matrices, which are in `precision`.
        working_bytes: beside the weights, for one picture of the default size.
        tiled_working_bytes: the same when the picture is decoded in tiles.
        layer_bytes, layers: the weights of each of the transformer's layers that can be streamed, and how many.
        precision: of the transformer's matrices.
        others: the same model exact, in eight bits and in four, but for what this one is; none where nobody has
            reckoned. Eight bits are those of int8.
    """

    text_encoder_bytes: int
    transformer_bytes: int
    vae_bytes: int
    working_bytes: int
    tiled_working_bytes: int
    layer_bytes: int = 0
    layers: int = 0
    precision: Precision = Precision.EXACT
    others: Mapping[Precision, MemoryNeed] = field(default_factory=dict)

    def of(self, plan: MemoryPlan, streamed_layers: int = 0) -> int:
        """What `plan` takes at its peak with so many layers streamed."""
        weights = self.transformer_bytes + self.vae_bytes
        weights += self.text_encoder_bytes if plan.keeps_text_encoder else 0
        weights -= self.layer_bytes * max(streamed_layers - STREAM_SLOTS, 0)
        return weights + (self.tiled_working_bytes if plan.tiles_decode else self.working_bytes)

    def on_host(self, plan: MemoryPlan, streamed_layers: int = 0) -> int:
        """What `plan` leaves in host memory."""
        return self.layer_bytes * streamed_layers + (0 if plan.keeps_text_encoder else self.text_encoder_bytes)

    @property
    def least(self) -> tuple[MemoryPlan, int]:
        """The smallest plan, and how many layers it streams."""
        return MemoryPlan.SMALLEST, MemoryPlan.SMALLEST.streamed_layers(self.layers)


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """A memory plan and why it was chosen, for people; and how many of the transformer's layers it streams."""

    plan: MemoryPlan
    reason: str
    streamed_layers: int = 0


def memory_need(
    sizes: ModelSizes,
    size: tuple[int, int],
    itemsize: int,
    pictures: int = 1,
    precision: Precision = Precision.EXACT,
) -> MemoryNeed:
    """What a model takes for `pictures` of `size` (width, height) at once, computed at `itemsize` bytes a number.

    The factors are measured: torch's peak over one forward of the full-size parts in bf16, less their weights, divided
    by tokens x width x 2 bytes and by pixels x width x 2 bytes; the same from 512 x 512 to 2048 x 2048.
    Sampling and decoding do not happen at once, but what is recorded for each keeps its memory. What is sampled
    uncompiled keeps none.
    """
    reckon = partial(_memory_need, sizes, size, itemsize, pictures)
    others = {each: reckon(each) for each in (Precision.EXACT, Precision.INT8, Precision.NF4) if each is not precision}
    return replace(reckon(precision), others=others)


def _memory_need(
    sizes: ModelSizes, size: tuple[int, int], itemsize: int, pictures: int, precision: Precision
) -> MemoryNeed:
    width, height = size
    tokens = width * height // _PIXELS_A_TOKEN + _MAX_CAPTION_TOKENS
    a_factor = pictures * tokens * sizes.transformer_width * itemsize
    sampling = round(_TRANSFORMER_FACTOR * a_factor) + sizes.unpacked_bytes(itemsize, precision)
    uncompiled = round(_UNCOMPILED_FACTORS.get(precision, 0.0) * a_factor)

    def decoding(pixels: int) -> int:
        return round(_VAE_FACTOR * pixels * sizes.vae_width * itemsize)

    tile_pixels = min(width, _TILE_SIDE) * min(height, _TILE_SIDE)
    tiled = decoding(tile_pixels) + _MOSAIC_BYTES_A_PIXEL * width * height
    return MemoryNeed(
        text_encoder_bytes=sizes.text_encoder * itemsize,
        transformer_bytes=sizes.transformer_bytes(itemsize, precision),
        vae_bytes=sizes.vae * itemsize,
        working_bytes=max(sampling + decoding(width * height), uncompiled),
        tiled_working_bytes=max(sampling + tiled, uncompiled),
        layer_bytes=sizes.layer_bytes(itemsize, precision),
        layers=sizes.transformer_layers,
        precision=precision,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryBudget:
    """What there was for a model when it was loaded, to judge requests by before they are begun.

    Attributes:
        sizes: of the model.
        itemsize: bytes of one number.
        free_bytes: of the device.
        precision: of the transformer's matrices.
    """

    sizes: ModelSizes
    itemsize: int
    free_bytes: int
    precision: Precision = Precision.EXACT

    def may_do(self, plan: MemoryPlan, streamed_layers: int, size: tuple[int, int], pictures: int) -> bool:
        """Whether it is worth trying `pictures` of `size` (width, height) with `plan`.

        Generous: a plan that would have done and is not tried is lost for good, one that fails is remembered.
        """
        need = _memory_need(self.sizes, size, self.itemsize, pictures, self.precision)
        working_bytes = need.tiled_working_bytes if plan.tiles_decode else need.working_bytes
        return need.of(plan, streamed_layers) - _UNSURE * working_bytes <= self.free_bytes


def read_device() -> Device:
    """The first NVIDIA GPU that torch can use, otherwise the CPU.

    What this process was told to keep to (`torch.cuda.set_per_process_memory_fraction`) counts like a smaller card.
    """
    import psutil
    import torch

    memory = psutil.virtual_memory()
    if torch.cuda.is_available():
        free_bytes, total_bytes = torch.cuda.mem_get_info(0)
        allowed_bytes = int(torch.cuda.get_per_process_memory_fraction(0) * total_bytes)
        if allowed_bytes < total_bytes:
            free_bytes = min(free_bytes, allowed_bytes - torch.cuda.memory_reserved(0))
            total_bytes = allowed_bytes
        return Device(
            torch_name="cuda:0",
            name=torch.cuda.get_device_name(0),
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            capability=torch.cuda.get_device_capability(0),
            host_free_bytes=memory.available,
        )
    threads = torch.get_num_threads()
    return Device(
        torch_name="cpu",
        name=f"CPU, {threads} thread{'' if threads == 1 else 's'}",
        free_bytes=memory.available,
        total_bytes=memory.total,
    )


def choose_dtype(device: Device) -> DtypeChoice:
    """bf16 where the hardware has it, fp16 on older GPUs, fp32 on a CPU."""
    if device.capability is None:
        return DtypeChoice("fp32", 4, "a CPU computes fastest and most exactly in fp32")
    if device.capability >= _BF16_CAPABILITY:
        return DtypeChoice("bf16", 2, f"{device.name} computes in bf16 natively")
    major, minor = device.capability
    return DtypeChoice("fp16", 2, f"{device.name} (compute capability {major}.{minor}) has no bf16")


def choose_plan(device: Device, need: MemoryNeed) -> PlanChoice:
    """The fastest memory plan that fits into what is free, in the precision that `need` was reckoned for.

    The precision is the person's choice. Where another one would help, the reason or the hint says so.

    Raises:
        DeviceMemoryError: not even the smallest one fits.
    """
    if not device.is_gpu:
        if need.of(MemoryPlan.RESIDENT) > device.free_bytes:
            raise DeviceMemoryError(
                f"The model needs {data_size(need.of(MemoryPlan.RESIDENT))} of memory on the CPU; "
                f"there is {data_size(device.free_bytes)} free.",
                "Close other programs, use a machine with an NVIDIA GPU, or set ZIMAGE_MODEL=auto for the small model.",
            )
        reason = "the CPU works on the host's memory: there is nothing to move"
        return PlanChoice(MemoryPlan.RESIDENT, _of_precision(need) + reason)
    fitting = _fastest_fitting(device, need)
    if fitting is None:
        raise _too_small(device, need)
    fits = f"{data_size(need.of(*fitting))} needed, {data_size(device.free_bytes)} free"
    advice = _advice(device, need, fitting)
    reason = f"{_of_precision(need)}{_reason(*fitting, need)}: {fits}" + (f". {advice}" if advice else "")
    return PlanChoice(fitting[0], reason, fitting[1])


def _fastest_fitting(device: Device, need: MemoryNeed) -> tuple[MemoryPlan, int] | None:
    usable_bytes = device.free_bytes - _GPU_RESERVE_BYTES
    for plan, streamed in _from_fastest(need):
        if need.of(plan, streamed) <= usable_bytes and _fits_host(device, need.on_host(plan, streamed)):
            return plan, streamed
    return None


def _too_small(device: Device, need: MemoryNeed) -> DeviceMemoryError:
    least_bytes = need.of(*need.least) + _GPU_RESERVE_BYTES
    advice = _advice(device, need, None)
    hint = "or set ZIMAGE_MODEL=auto for the small model." + (f" {advice}." if advice else "")
    if least_bytes <= device.free_bytes and device.host_free_bytes is not None:
        return DeviceMemoryError(
            f"{device.name} has {data_size(device.free_bytes)} free, and the host {data_size(device.host_free_bytes)}; "
            f"the smallest plan needs {data_size(least_bytes)} on the GPU and {data_size(need.on_host(*need.least))} "
            "of host memory.",
            f"Close other programs, {hint}",
        )
    return DeviceMemoryError(
        f"{device.name} has {data_size(device.free_bytes)} free of {data_size(device.total_bytes)}; "
        f"the smallest plan needs {data_size(least_bytes)}.",
        f"Close other programs that use the GPU, {hint}",
    )


def _of_precision(need: MemoryNeed) -> str:
    """What a lossy precision saves, to be read before the rest of a plan's reason; nothing in exact mode."""
    exact = need.others.get(Precision.EXACT)
    if exact is None:
        return ""
    return (
        f"the transformer's matrices are kept in {need.precision}: "
        f"{_instead(need.transformer_bytes, exact.transformer_bytes)}; "
    )


def _advice(device: Device, need: MemoryNeed, fitting: tuple[MemoryPlan, int] | None) -> str:
    """What fewer bits would do for an exact model that has to be streamed or does not fit; empty where nothing.

    Eight before four, which are slower and further from exact, and are named where eight are not to be had.
    """
    if need.precision is not Precision.EXACT or (fitting is not None and not fitting[0].streams_transformer):
        return ""
    eight_bit = (each for each in EIGHT_BIT_CAPABILITIES if device.computes_in(each))
    for precision in (*eight_bit, Precision.NF4):
        other = need.others.get(Precision.NF4 if precision is Precision.NF4 else Precision.INT8)
        lossy = _fastest_fitting(device, other) if other else None
        if other and lossy and device.computes_in(precision):
            return _gain(precision, need, other, fitting, lossy)
    return ""


def _gain(
    precision: Precision,
    need: MemoryNeed,
    other: MemoryNeed,
    fitting: tuple[MemoryPlan, int] | None,
    lossy: tuple[MemoryPlan, int],
) -> str:
    """What `precision` would do, whose need is `other` and whose plan is `lossy`."""
    far = precision is Precision.NF4
    picture = f"a picture that is {'further from exact than in eight bits' if far else 'not quite exact'}"
    less = f"{_instead(other.transformer_bytes, need.transformer_bytes)}, and {picture}"
    if not lossy[0].streams_transformer:
        return f"ZIMAGE_PRECISION={precision} would keep the whole transformer on the card ({less})"
    if fitting is None:
        return f"ZIMAGE_PRECISION={precision} would fit ({less})"
    copied = _instead(lossy[1] * other.layer_bytes, fitting[1] * need.layer_bytes)
    return f"ZIMAGE_PRECISION={precision} would copy {copied} in each step, for {picture}"


def _instead(size_bytes: int, of_bytes: int) -> str:
    """Reads "6.7 GB instead of 12.3 GB"."""
    return f"{data_size(size_bytes)} instead of {data_size(of_bytes)}"


def _from_fastest(need: MemoryNeed) -> Iterator[tuple[MemoryPlan, int]]:
    """The plans that a load may begin with, and how many layers they stream; each takes less than the one before.

    Streaming changes no pixel and tiles do, so all that streaming can save is saved first.
    """
    yield MemoryPlan.RESIDENT, 0
    yield MemoryPlan.TEXT_ENCODER_OFFLOADED, 0
    for streamed in range(STREAM_SLOTS + 1, need.layers + 1):
        yield MemoryPlan.STREAMED, streamed
    yield need.least


def _fits_host(device: Device, size_bytes: int) -> bool:
    return device.host_free_bytes is None or size_bytes <= device.host_free_bytes


def _reason(plan: MemoryPlan, streamed: int, need: MemoryNeed) -> str:
    if plan is MemoryPlan.RESIDENT:
        return "everything fits"
    encoder = f"the text encoder ({data_size(need.text_encoder_bytes)})"
    if plan is MemoryPlan.TEXT_ENCODER_OFFLOADED:
        return f"{encoder} does not fit beside the rest"
    moved_bytes = streamed * need.layer_bytes
    reason = (
        f"neither {encoder} nor {streamed} of the transformer's {need.layers} layers ({data_size(moved_bytes)}) fit "
        "beside the rest and both stay in host memory; copying the layers takes "
        f"{moved_bytes / _BUS_BYTES_A_S:.2f} s a step at {_BUS_BYTES_A_S / 1e9:.0f} GB/s, unless computing takes longer"
    )
    if plan is MemoryPlan.STREAMED:
        return reason
    return f"{reason}; and pictures are decoded in tiles, since one piece does not fit either"
