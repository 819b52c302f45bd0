"""Attention through torch's kernels, FlashAttention 4 or one of our own, and which of them is fastest here.

Every kernel takes queries, keys and values as strided views of what the projections wrote and answers in the same
order, so nothing is copied to bring heads before tokens. Which kernel wins depends on the card, the library's version
and the number of tokens, into how many tiles that falls above all: so it is measured, under load, and remembered.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zimage_ui.generator.fast import cute_kernels
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.choices import kernel_choices
from zimage_ui.generator.fast.cute_kernels import HOPPER, architecture, has_flash_attention_4
from zimage_ui.generator.fast.giving_way import give_way
from zimage_ui.generator.fast.parts import has_triton
from zimage_ui.generator.fast.timing import in_turns_ms

_log = logging.getLogger(__name__)

# Of the kernels of our own; and what FlashAttention 4 was measured with in other tiles than its own.
_HEAD_DIM = 128


class AttentionBackend(StrEnum):
    """Attention kernels, by the name that people know them by: torch's, those of a library that may be there, and ours.

    FLASH4 is FlashAttention 4, in tiles of its own choice or of so many queries and keys; TRITON is `triton_attention`.
    FP8 is `fp8_attention`, which belongs to that mode and is none to choose otherwise.
    """

    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"
    FLASH4 = "flash4"
    FLASH4_128X160 = "flash4 128x160"
    FLASH4_192X80 = "flash4 192x80"
    TRITON = "triton"
    FP8 = "fp8"

    @property
    def kernel(self) -> SDPBackend | None:
        """The name that torch has for it; None for those that are not torch's."""
        return _KERNELS.get(self)


_KERNELS = {
    AttentionBackend.CUDNN: SDPBackend.CUDNN_ATTENTION,
    AttentionBackend.FLASH: SDPBackend.FLASH_ATTENTION,
    AttentionBackend.EFFICIENT: SDPBackend.EFFICIENT_ATTENTION,
    AttentionBackend.MATH: SDPBackend.MATH,
}
# Queries and keys of a tile of each that is FlashAttention 4, for heads of 128 on Hopper; its own are 128 x 128 there.
# 4160 tokens are 26 times 160; and in tiles of 192 queries, 30 heads of them are 660, five for each of 132 processors.
_FLASH4_TILES = {
    AttentionBackend.FLASH4: None,
    AttentionBackend.FLASH4_128X160: (128, 160),
    AttentionBackend.FLASH4_192X80: (192, 80),
}


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, backend: AttentionBackend | None = None
) -> torch.Tensor:
    """Softmax attention of every token to every token.

    Args:
        query: (pictures, tokens, heads, head_dim).
        key: the same, of all tokens that are looked at.
        value: of the same tokens.
        backend: TRITON, or one that is FlashAttention 4. Any other leaves it to torch, which takes the kernel that
            `attention_by` says.

    Returns:
        Of the query's shape, dense in that order with every kernel that is worth choosing.
    """
    if backend in _FLASH4_TILES:
        return cute_kernels.flash_attention_4(query, key, value, _FLASH4_TILES[backend])
    if backend is AttentionBackend.TRITON:
        from zimage_ui.generator.fast.triton_attention import triton_attention  # where there is Triton

        return triton_attention(query, key, value)
    heads_first = (query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return functional.scaled_dot_product_attention(*heads_first).transpose(1, 2)


def attention_by(backend: AttentionBackend | None) -> AbstractContextManager[None]:
    """A context in which attention is computed, and functions are compiled to compute it, by `backend`.

    None leaves the choice to torch, and so do those that are not torch's: of them a block is told (`BlockKernels`).
    What was compiled within a context keeps its backend outside of it.
    """
    kernel = None if backend is None else backend.kernel
    return nullcontext() if kernel is None else sdpa_kernel(kernel)


def has_fp8_attention(head_dim: int, device: torch.device) -> bool:
    """Whether `fp8_attention` serves here: on Hopper, where it is faster at every size, if there is Triton."""
    return head_dim == _HEAD_DIM and architecture(device) == HOPPER and has_triton(device)


def has_triton_attention(head_dim: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether `triton_attention` serves here: bf16 on Hopper, if there is Triton."""
    return dtype == torch.bfloat16 and has_fp8_attention(head_dim, device)


def fastest_backend(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> AttentionBackend | None:
    """The fastest backend for (pictures, tokens, heads, head_dim); None, torch's choice, where none can be timed."""
    if device.type != "cuda":
        return None
    pictures, tokens, heads, head_dim = shape
    question = f"attention of {pictures} x {tokens} tokens, {heads} heads of {head_dim}, {dtype}"
    measure = partial(backend_times_ms, shape, dtype, device)
    return kernel_choices().choose(question, candidates(head_dim, dtype, device), measure, device)


def backend_times_ms(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[AttentionBackend, float]:
    """The time under load of each backend that takes this shape and dtype, and is near the fastest, in milliseconds.

    Queries, keys and values lie as a block's projections leave them on a CUDA `device`. See `in_turns_ms`.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
        GaveWayError: somebody waits.
    """
    pictures, tokens, heads, head_dim = shape
    query, key = torch.randn(pictures, tokens, 2, heads, head_dim, dtype=dtype, device=device).unbind(2)
    value = torch.randn(pictures, tokens, 3, heads, head_dim, dtype=dtype, device=device)[:, :, 2]
    there = candidates(head_dim, dtype, device)
    runs = {backend: partial(_attention_within, backend, query, key, value) for backend in there}
    with warnings.catch_warnings():
        # torch warns of every reason why a kernel is not for this shape, FlashAttention 4's compiler of its own code
        warnings.simplefilter("ignore")
        return in_turns_ms({backend: run for backend, run in runs.items() if _serves(backend, run)}, device)


def candidates(head_dim: int, dtype: torch.dtype, device: torch.device) -> list[AttentionBackend]:
    """Those that there are here, though maybe not for every shape; MATH is none: it writes every score to memory."""
    backends = [AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.EFFICIENT]
    if has_flash_attention_4(dtype, device):
        in_any_tile = head_dim == _HEAD_DIM and architecture(device) == HOPPER
        backends += _FLASH4_TILES if in_any_tile else [AttentionBackend.FLASH4]
    return [*backends, AttentionBackend.TRITON] if has_triton_attention(head_dim, dtype, device) else backends


def _attention_within(
    backend: AttentionBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    with attention_by(backend):
        return attention(query, key, value, backend)


def _serves(backend: AttentionBackend, run: Callable[[], torch.Tensor]) -> bool:
    """Whether it works at all. That one of torch's is not for a shape is no news; that another fails is."""
    give_way()
    if backend.kernel is None:
        return attempt(run, f"attention by {backend} is left out", but=(torch.OutOfMemoryError,)) is not None
    try:
        run()
    except torch.OutOfMemoryError:
        raise  # a RuntimeError, too
    except RuntimeError as error:
        _log.debug("attention by %s: %s", backend, str(error))
        return False
    return True
