"""Doubling a picture and convolving it, as one transposed convolution: 2.25 times less work and no doubled picture.

After doubling by nearest neighbours, the nine taps of a 3 x 3 kernel fall on four different pixels only. Adding up the
taps that meet the same pixel gives four 2 x 2 kernels, one for each place within a doubled pixel. Side by side they are
one 4 x 4 kernel of a transposed convolution with stride 2, exact up to rounding, edges included:

    doubled[y] = small[y // 2],    out[y] = sum over r of kernel[r] * doubled[y + r - 1]
               = sum over i of small[i] * folded[y - 2 i + 1],    folded[t] = kernel[2 - t] + kernel[3 - t]

and the same along x, with kernel[-1] = kernel[3] = 0. In the full-size decoder at 1024 x 1024 this is 1.2 TFLOP in
place of 2.8, of 10.5 in all.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def folded_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """The 4 x 4 kernel that stands for doubling and then convolving with `kernel` (outputs, inputs, 3, 3), padding 1.

    Returns:
        (inputs, outputs, 4, 4), in the dtype of `kernel`: added up in fp32, rounded once.
    """
    flipped = kernel.float().flip(2, 3)
    corners = [(left, 1 - left, top, 1 - top) for left in (0, 1) for top in (0, 1)]
    folded = sum(functional.pad(flipped, corner) for corner in corners)
    assert isinstance(folded, torch.Tensor)
    return folded.transpose(0, 1).to(kernel.dtype).contiguous(memory_format=torch.channels_last)


def double_and_convolve(small: torch.Tensor, folded: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(pictures, inputs, height, width) -> (pictures, outputs, 2 * height, 2 * width), by a `folded_kernel`."""
    return functional.conv_transpose2d(small, folded, bias, stride=2, padding=1)
