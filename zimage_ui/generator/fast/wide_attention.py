"""Attention of all positions of a picture with each other, by one head that is wider than attention kernels go.

A VAE's head has 512 features. FlashAttention and cuDNN stop at 256 (`check_head_dim_size_flash` and
`check_cudnn_tensor_shapes` in PyTorch's sdp_utils.cpp), so PyTorch takes its memory-efficient kernel, written for the
tensor cores of two generations before an H100 and with its sums in memory when a head is wide. At 16,384 positions
(1024 x 1024 pixels) three plain steps are quicker: a matrix product, a softmax, a matrix product, for as many queries
at a time as fit in a bounded piece of memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Scores at a time: 2**26 in fp32 are 268 MB.
_SCORES = 2**26


def probabilities(scores: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    """Softmax of `scale` * `scores` (fp32) along the last axis, rounded to `dtype`."""
    return torch.softmax(scores * scale, -1).to(dtype)


def wide_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    probabilities: Callable[[torch.Tensor, float, torch.dtype], torch.Tensor] = probabilities,
) -> torch.Tensor:
    """softmax(query @ key^T / sqrt(features)) @ value, each (positions, features); scores are kept in fp32.

    Args:
        query: of one dtype with `key` and `value`.
        key: see `query`.
        value: see `query`.
        probabilities: the function of that name here, compiled or not, or that of `triton_decoder`.
    """
    scale = query.shape[-1] ** -0.5
    slices = query.split(max(_SCORES // len(key), 1))
    return torch.cat([probabilities(_in_fp32(part, key.T), scale, value.dtype) @ value for part in slices])


def _in_fp32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The matrix product, its fp32 sums unrounded."""
    if left.device.type == "cuda" and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()
