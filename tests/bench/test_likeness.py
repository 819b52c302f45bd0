import math

import numpy as np
import pytest

from bench.likeness import psnr_db, ssim
from bench.pictures import flat, noise, painted


def test_equal_pictures():
    picture = painted(64)
    assert psnr_db(picture, picture) == math.inf
    assert ssim(picture, picture) == pytest.approx(1)


def test_psnr_of_a_known_error():
    assert psnr_db(flat(16), flat(16) + np.uint8(1)) == pytest.approx(48.1308, abs=1e-4)  # 20 log10 255
    assert psnr_db(np.zeros((4, 4, 3), np.uint8), np.full((4, 4, 3), 255, np.uint8)) == pytest.approx(0)


def test_ssim_of_flat_pictures_is_the_formula_of_their_means():
    one, other = 77.0, 80.0
    expected = (2 * one * other + 6.5025) / (one**2 + other**2 + 6.5025)
    assert ssim(flat(20), flat(20) + np.uint8(3)) == pytest.approx(expected, abs=1e-9)


def test_ssim_of_one_window_is_the_formula_of_its_weighted_moments():
    one, other = noise(11, 1)[..., :1], noise(11, 2)[..., :1]
    line = np.exp(-((np.arange(11) - 5.0) ** 2) / 4.5)
    weights = np.outer(line, line) / line.sum() ** 2
    x, y = one[..., 0].astype(float), other[..., 0].astype(float)
    mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
    variances = (weights * (x - mean_x) ** 2).sum() + (weights * (y - mean_y) ** 2).sum()
    covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
    means = (2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025)
    assert ssim(one, other) == pytest.approx(means * (2 * covariance + 58.5225) / (variances + 58.5225))


def test_more_noise_is_less_alike_and_what_is_unrelated_is_not_alike():
    picture, grain = painted(64), np.random.default_rng(0).normal(size=(64, 64, 3))
    noisy = [(picture + strength * grain).clip(0, 255).astype(np.uint8) for strength in (2, 8, 32)]
    for measure in (ssim, psnr_db):
        values = [measure(picture, each) for each in noisy]
        assert values == sorted(values, reverse=True)
        assert measure(picture, noisy[0]) == pytest.approx(measure(noisy[0], picture))
    assert abs(ssim(noise(64, 1), noise(64, 2))) < 0.05


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(flat(10), flat(10))
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(flat(16), flat(20))
