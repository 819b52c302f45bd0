"""Attention through torch's kernels or FlashAttention 4, and which of them is fastest here.

Every kernel takes queries, keys and values as strided views of what the projections wrote and answers in the same
order, so nothing is copied to bring heads before tokens. Which kernel wins depends on the card, the library's version
and the number of tokens, so it is measured, and remembered.
"""

from __future__ import annotations

import logging
import warnings
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
from zimage_ui.generator.fast.parts import has_triton
from zimage_ui.generator.fast.timing import median_ms

_log = logging.getLogger(__name__)

_FP8_HEAD_DIM = 128


class AttentionBackend(StrEnum):
    """Attention kernels, by the name that people know them by: torch's, one of a library that may be there, and ours.

    FP8 is `fp8_attention`, which belongs to that mode and is none to choose otherwise.
    """

    CUDNN = "cudnn"
    FLASH = "flash"
    EFFICIENT = "efficient"
    MATH = "math"
    FLASH4 = "flash4"
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


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, by_flash_attention_4: bool = False
) -> torch.Tensor:
    """Softmax attention of every token to every token, by torch's choice of a kernel or within `attention_by`.

    Args:
        query: (pictures, tokens, heads, head_dim).
        key: the same, of all tokens that are looked at.
        value: of the same tokens.
        by_flash_attention_4: instead of torch's kernels.

    Returns:
        Of the query's shape, dense in that order with every kernel that is worth choosing.
    """
    if by_flash_attention_4:
        return cute_kernels.flash_attention_4(query, key, value)
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
    return head_dim == _FP8_HEAD_DIM and architecture(device) == HOPPER and has_triton(device)


def fastest_backend(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> AttentionBackend | None:
    """The fastest backend for (pictures, tokens, heads, head_dim); None, torch's choice, where none can be timed."""
    if device.type != "cuda":
        return None
    pictures, tokens, heads, head_dim = shape
    question = f"attention of {pictures} x {tokens} tokens, {heads} heads of {head_dim}, {dtype}"
    measure = partial(backend_times_ms, shape, dtype, device)
    return kernel_choices().choose(question, _candidates(dtype, device), measure, device)


def backend_times_ms(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[AttentionBackend, float]:
    """The time of each backend that takes this shape and dtype on a CUDA `device`, in milliseconds, median of 10.

    Queries, keys and values lie as a block's projections leave them.

    Raises:
        torch.OutOfMemoryError: there is no room to measure.
    """
    pictures, tokens, heads, head_dim = shape
    query, key = torch.randn(pictures, tokens, 2, heads, head_dim, dtype=dtype, device=device).unbind(2)
    value = torch.randn(pictures, tokens, 3, heads, head_dim, dtype=dtype, device=device)[:, :, 2]
    times_ms = {backend: _time_ms(backend, query, key, value) for backend in _candidates(dtype, device)}
    return {backend: taken for backend, taken in times_ms.items() if taken is not None}


def _candidates(dtype: torch.dtype, device: torch.device) -> list[AttentionBackend]:
    """Those that there are here, though maybe not for every shape; MATH is none: it writes every score to memory."""
    backends = [AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.EFFICIENT]
    return [*backends, AttentionBackend.FLASH4] if has_flash_attention_4(dtype, device) else backends


def _time_ms(backend: AttentionBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> float | None:
    with warnings.catch_warnings():
        # torch warns of every reason why a kernel is not for this shape, FlashAttention 4's compiler of its own code
        warnings.simplefilter("ignore")
        if backend is AttentionBackend.FLASH4:
            run = partial(attention, query, key, value, by_flash_attention_4=True)
            timed = partial(median_ms, run, query.device)
            return attempt(timed, "FlashAttention 4 is left out", but=(torch.OutOfMemoryError,))
        try:
            with attention_by(backend):
                return median_ms(partial(attention, query, key, value), query.device)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError, too
        except RuntimeError as error:
            _log.debug("attention by %s: %s", backend, str(error))
            return None
