"""Kernels of two optional libraries: FlashAttention 4's attention and quack's matrix products (the extra `flash4`).

Each is an operator of torch here, so a compiler takes it as a whole. Both libraries launch on torch's current stream
and wait for nothing, so a CUDA graph records them. They compile a kernel at its first call, in one or two seconds and
without CUDA's toolkit, and it serves every number of tokens.
"""

# No `from __future__ import annotations`: torch reads the signatures of operators.
import importlib.util
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch

from zimage_ui.generator.fast.attempts import attempt

# The architecture of H100 and H200.
HOPPER = 9
_DTYPES = (torch.bfloat16, torch.float16)
_importing = threading.Lock()
_COPIED_VALUES = 8  # of 2 bytes, in the 16 that Hopper's copy engine moves at least


class _Tile(NamedTuple):
    """What one thread block computes at a time; with `pingpong`, two halves of it take turns at the tensor cores.

    Two neighbours, which share what they read, are above each other in `cluster` (2, 1) and side by side in (1, 2).
    """

    rows: int
    columns: int
    pingpong: bool
    cluster: tuple[int, int] = (2, 1)


_TILES = {
    "192x128": _Tile(192, 128, pingpong=True),
    "192x128 cluster 1x2": _Tile(192, 128, pingpong=True, cluster=(1, 2)),
    "128x192": _Tile(128, 192, pingpong=True),
    "192x192": _Tile(192, 192, pingpong=False),
}
# The kernels of the gated product, by name: which is the fastest depends on the number of tokens.
GATE_TILES = ("192x128", "192x128 cluster 1x2", "128x192")
# Those of the plain product that are a match for CUDA's own library anywhere: 1088 tokens are 120 of these tiles in
# 3840 columns, one for nearly each of an H100's 132 processors.
PRODUCT_TILES = ("192x192",)


def has_flash_attention_4(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether FlashAttention 4 is installed and takes `dtype` on `device`: Hopper or newer."""
    return dtype in _DTYPES and architecture(device) >= HOPPER and _is_installed("flash_attn", "cute")


def has_gated_product(weight: torch.Tensor) -> bool:
    """Whether quack is installed and `GATE_TILES` take `weight`, as `gated_product` does.

    On Hopper alone, whose tiles they are; and its copy engine begins and ends rows at multiples of 16 bytes only.
    """
    return _has_quack_for(weight, weight.shape[0] // 2)


def has_tiled_product(weight: torch.Tensor) -> bool:
    """Whether quack is installed and `PRODUCT_TILES` take `weight`; see `has_gated_product`."""
    return _has_quack_for(weight, weight.shape[0])


@torch.library.custom_op("zimage_ui::flash_attention_4", mutates_args=(), device_types="cuda")
def flash_attention_4(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tile: Sequence[int] | None = None
) -> torch.Tensor:
    """Softmax attention of (pictures, tokens, heads, head_dim), strided as they may be; dense in that order.

    Args:
        query: of the tokens that look.
        key: of those that are looked at.
        value: of the same.
        tile: queries and keys; None is the library's choice. Its public function takes none, so that is the one below,
            which another version may not have, or not so.
    """
    from flash_attn.cute import interface

    if tile is None:
        attended: torch.Tensor = interface.flash_attn_func(query, key, value)[0]
    else:
        attended = interface._flash_attn_fwd(query, key, value, tile_mn=tuple(tile))[0]
    return attended


@flash_attention_4.register_fake
def _(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tile: Sequence[int] | None = None) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


@torch.library.custom_op("zimage_ui::gated_product", mutates_args=(), device_types="cuda")
def gated_product(values: torch.Tensor, weight: torch.Tensor, tile: str) -> torch.Tensor:
    """`silu(gate) * up` of one matrix product, rounded once at the end.

    Args:
        values: (..., inputs).
        weight: (2 * outputs, inputs), the gate's rows first: the kernel reads both halves in turns where they are.
        tile: one of `GATE_TILES`.

    Returns:
        (..., outputs).
    """
    _, gated = _gemm_act()(
        values.flatten(0, -2),
        weight.t(),
        activation="swiglu",
        store_preact=False,
        tuned=False,
        config=_configuration(tile),
        concat_layout=("B",),
    )
    return gated.view(*values.shape[:-1], -1)


@gated_product.register_fake
def _(values: torch.Tensor, weight: torch.Tensor, tile: str) -> torch.Tensor:
    return values.new_empty((*values.shape[:-1], weight.shape[0] // 2))


@torch.library.custom_op("zimage_ui::tiled_product", mutates_args=(), device_types="cuda")
def tiled_product(values: torch.Tensor, weight: torch.Tensor, tile: str) -> torch.Tensor:
    """`values` (..., inputs) times `weight` (outputs, inputs), (..., outputs), in tiles of `PRODUCT_TILES`."""
    _, product = _gemm_act()(
        values.flatten(0, -2), weight.t(), activation=None, store_preact=False, tuned=False, config=_configuration(tile)
    )
    return product.view(*values.shape[:-1], -1)


@tiled_product.register_fake
def _(values: torch.Tensor, weight: torch.Tensor, tile: str) -> torch.Tensor:
    return values.new_empty((*values.shape[:-1], weight.shape[0]))


@contextmanager
def imported_meanwhile(device: torch.device) -> Iterator[None]:
    """While it is entered, what `device` has of both libraries is imported on another thread.

    With CUTLASS below them that takes seconds, in which a start reads weights. Left is it when that is done. What fails
    fails again where it is needed, and is told there.
    """
    if architecture(device) < HOPPER:
        yield
        return
    thread = threading.Thread(target=_import_all, args=(device,), name="import-kernels", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _import_all(device: torch.device) -> None:
    if architecture(device) == HOPPER and _is_installed("quack", "gemm_interface"):
        attempt(_gemm_act, "quack is not imported ahead")
    if _is_installed("flash_attn", "cute"):
        attempt(partial(importlib.import_module, "flash_attn.cute"), "FlashAttention 4 is not imported ahead")


def _gemm_act() -> Any:
    """The product with an activation of quack."""
    with _importing:  # one at a time: whoever came second would keep what stands in for the compiler for its own
        module = sys.modules.get("quack.gemm_interface") or _imported_uncompiled("quack.gemm_interface")
    return module.gemm_act


def _imported_uncompiled(name: str) -> Any:
    """A module whose calls of torch.compile do nothing while it is imported.

    quack compiles helpers then, for formats that are none of ours, and torch imports its compiler for that, which takes
    two seconds. Other threads have the compiler all the while.
    """
    compiler, importing = torch.compile, [threading.get_ident()]

    def compile_elsewhere(model: Any = None, **options: Any) -> Any:
        if threading.get_ident() not in importing:
            return compiler(model, **options)
        return (lambda decorated: decorated) if model is None else model

    torch.compile = compile_elsewhere
    try:
        return importlib.import_module(name)
    finally:
        torch.compile = compiler
        importing.clear()


@cache  # quack knows a configuration again by its identity
def _configuration(tile: str) -> Any:
    from quack.gemm_config import GemmConfig

    rows, columns, pingpong, (cluster_m, cluster_n) = _TILES[tile]
    return GemmConfig(
        tile_m=rows,
        tile_n=columns,
        pingpong=pingpong,
        cluster_m=cluster_m,
        cluster_n=cluster_n,
        is_dynamic_persistent=False,
        device_capacity=HOPPER,
    )


def architecture(device: torch.device) -> int:
    """The first number of a GPU's compute capability; 0 elsewhere."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def _has_quack_for(weight: torch.Tensor, outputs: int) -> bool:
    whole_copies = outputs % _COPIED_VALUES == 0 == weight.shape[1] % _COPIED_VALUES
    fits = weight.dtype in _DTYPES and whole_copies
    return fits and architecture(weight.device) == HOPPER and _is_installed("quack", "gemm_interface")


@cache
def _is_installed(package: str, module: str) -> bool:
    """Whether `package` has `module`; it runs to be looked into, and may fail in any way."""
    return bool(attempt(partial(_is_found, package, module), f"{package} is left out"))


def _is_found(package: str, module: str) -> bool:
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(f"{package}.{module}") is not None
