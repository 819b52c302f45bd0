"""Which device, which dtype, which memory plan; each choice with the reason that is shown to people.

Everything here but `read_device` is arithmetic over a frozen `Device`, so that every card can be tried without one.
`read_device` is the only reader of torch.cuda; which card it sees is `CUDA_VISIBLE_DEVICES`' affair.
"""

from __future__ import annotations

from dataclasses import dataclass

from zimage_ui.errors import DeviceMemoryError
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.units import data_size

# NVIDIA cards compute in bf16 since Ampere; before that torch only emulates it.
_BF16_CAPABILITY = (8, 0)

# Left free on a GPU: the workspaces of cuBLAS and cuDNN, fragmentation, and what the desktop takes in the meantime.
_GPU_RESERVE_BYTES = 600_000_000

# See memory_need. H100, torch 2.11: 187, 560, 1182 and 2053 MB for the transformer at 512, 1024, 1536 and 2048 squared
# with 512 caption tokens; 639, 2552, 5741 and 10204 MB for the VAE.
_TRANSFORMER_FACTOR = 16.0
_VAE_FACTOR = 4.8
_PIXELS_A_TOKEN = 256
_MAX_CAPTION_TOKENS = 512
# Of a tile, in pixels; and the tiles are put together in three colours and a weight, in fp32.
_TILE_SIDE = 512
_MOSAIC_BYTES_A_PIXEL = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What a model would run on.

    Attributes:
        torch_name: "cuda:0" or "cpu".
        name: for people.
        free_bytes, total_bytes: its memory; a CPU's is the host's.
        capability: of an NVIDIA GPU, as (major, minor); None on a CPU.
    """

    torch_name: str
    name: str
    free_bytes: int
    total_bytes: int
    capability: tuple[int, int] | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether it is an NVIDIA GPU."""
        return self.capability is not None


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
    """

    text_encoder: int
    transformer: int
    vae: int
    transformer_width: int
    vae_width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What a model takes of its device, in bytes.

    Attributes:
        text_encoder_bytes, transformer_bytes, vae_bytes: weights, in the dtype that is computed in.
        working_bytes: beside the weights, at the peak of one picture of the default size.
        tiled_working_bytes: the same when the picture is decoded in tiles.
    """

    text_encoder_bytes: int
    transformer_bytes: int
    vae_bytes: int
    working_bytes: int
    tiled_working_bytes: int

    def of(self, plan: MemoryPlan) -> int:
        """What `plan` takes at its peak."""
        weights = self.transformer_bytes + self.vae_bytes
        weights += self.text_encoder_bytes if plan.keeps_text_encoder else 0
        return weights + (self.tiled_working_bytes if plan.tiles_decode else self.working_bytes)


@dataclass(frozen=True, slots=True)
class PlanChoice:
    """A memory plan and why it was chosen, for people."""

    plan: MemoryPlan
    reason: str


def memory_need(sizes: ModelSizes, size: tuple[int, int], itemsize: int) -> MemoryNeed:
    """What a model takes for one picture of `size` (width, height), computed at `itemsize` bytes a number.

    The factors are measured: torch's peak over one forward of the full-size parts in bf16, less their weights, divided
    by tokens x width x 2 bytes and by pixels x width x 2 bytes; the same from 512 x 512 to 2048 x 2048.
    """
    width, height = size
    tokens = width * height // _PIXELS_A_TOKEN + _MAX_CAPTION_TOKENS
    sampling = round(_TRANSFORMER_FACTOR * tokens * sizes.transformer_width * itemsize)

    def decoding(pixels: int) -> int:
        return round(_VAE_FACTOR * pixels * sizes.vae_width * itemsize)

    tile_pixels = min(width, _TILE_SIDE) * min(height, _TILE_SIDE)
    return MemoryNeed(
        text_encoder_bytes=sizes.text_encoder * itemsize,
        transformer_bytes=sizes.transformer * itemsize,
        vae_bytes=sizes.vae * itemsize,
        working_bytes=max(sampling, decoding(width * height)),
        tiled_working_bytes=max(sampling, decoding(tile_pixels) + _MOSAIC_BYTES_A_PIXEL * width * height),
    )


def read_device() -> Device:
    """The first NVIDIA GPU that torch can use, otherwise the CPU."""
    import psutil
    import torch

    if torch.cuda.is_available():
        free_bytes, total_bytes = torch.cuda.mem_get_info(0)
        return Device(
            torch_name="cuda:0",
            name=torch.cuda.get_device_name(0),
            free_bytes=free_bytes,
            total_bytes=total_bytes,
            capability=torch.cuda.get_device_capability(0),
        )
    memory = psutil.virtual_memory()
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
    """The fastest memory plan that fits into what is free.

    Raises:
        DeviceMemoryError: not even the smallest one fits.
    """
    free = f"{data_size(device.free_bytes)} free"
    if not device.is_gpu:
        if need.of(MemoryPlan.RESIDENT) > device.free_bytes:
            raise DeviceMemoryError(
                f"The model needs {data_size(need.of(MemoryPlan.RESIDENT))} of memory on the CPU; there is {free}.",
                "Close other programs, use a machine with an NVIDIA GPU, or set ZIMAGE_MODEL=auto for the small model.",
            )
        return PlanChoice(MemoryPlan.RESIDENT, "the CPU works on the host's memory: there is nothing to move")
    usable_bytes = device.free_bytes - _GPU_RESERVE_BYTES
    reasons = {
        MemoryPlan.RESIDENT: "everything fits",
        MemoryPlan.TEXT_ENCODER_OFFLOADED: (
            f"the text encoder ({data_size(need.text_encoder_bytes)}) does not fit beside the rest"
        ),
        MemoryPlan.SMALLEST: (
            f"the text encoder ({data_size(need.text_encoder_bytes)}) does not fit beside the rest, "
            "and neither does decoding a picture in one piece"
        ),
    }
    for plan, reason in reasons.items():
        if need.of(plan) <= usable_bytes:
            return PlanChoice(plan, f"{reason}: {data_size(need.of(plan))} needed, {free}")
    raise DeviceMemoryError(
        f"{device.name} has {free} of {data_size(device.total_bytes)}; "
        f"the smallest plan needs {data_size(need.of(MemoryPlan.SMALLEST) + _GPU_RESERVE_BYTES)}.",
        "Close other programs that use the GPU, or set ZIMAGE_MODEL=auto for the small model.",
    )
