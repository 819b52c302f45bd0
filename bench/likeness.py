"""How alike two pictures are, in the field's two usual numbers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

# Of the paper: a window of 11 pixels, Gaussian with a deviation of 1.5, and two constants for flat and dark places.
_WINDOW, _DEVIATION = 11, 1.5
_K1, _K2, _RANGE = 0.01, 0.03, 255.0


def psnr_db(one: Pixels, other: Pixels) -> float:
    """The peak signal to noise ratio of two pictures of 8-bit values; infinite for equal ones."""
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * math.log10(_RANGE**2 / error))


def ssim(one: Pixels, other: Pixels) -> float:
    """The structural similarity, (height, width, channels) each: 1 for equal pictures, about 0 for unrelated ones.

    The mean over all channels and all whole windows (Wang, Bovik, Sheikh and Simoncelli, 2004, in IEEE Transactions on
    Image Processing 13).

    Raises:
        ValueError: they are not of one size, or smaller than a window.
    """
    if one.shape != other.shape or min(one.shape[:2]) < _WINDOW:
        raise ValueError(f"Pictures of {one.shape} and {other.shape} cannot be compared in windows of {_WINDOW}.")
    x, y = one.astype(np.float64), other.astype(np.float64)
    mean_x, mean_y = _blurred(x), _blurred(y)
    variance_x, variance_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))


def _blurred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Weighted means over all whole windows."""
    offsets = np.arange(_WINDOW) - _WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * _DEVIATION**2))
    weights /= weights.sum()
    for axis in (0, 1):
        windows = np.lib.stride_tricks.sliding_window_view(values, _WINDOW, axis=axis)
        values = windows @ weights
    return values
