"""Patches as the stock transformer cuts them, and back."""

import pytest
import torch

from zimage_ui.generator.fast.patches import from_patches, to_patches

pytestmark = pytest.mark.model


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10), (14, 6)])
def test_they_are_the_stock_transformers(transformer, noise, height, width):
    latents = noise(3, 16, height, width)
    for patches, picture in zip(to_patches(latents), latents, strict=True):
        expected, _, _ = transformer._patchify_image(picture.unsqueeze(1), 2, 1)
        assert torch.equal(patches, expected)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10), (14, 6)])
def test_putting_them_together_undoes_it(transformer, noise, height, width):
    latents = noise(2, 16, height, width)
    patches = to_patches(latents)
    assert torch.equal(from_patches(patches, height, width), latents)
    stock = transformer.unpatchify([patches[0]], [(1, height, width)], 2, 1)[0]
    assert torch.equal(stock.squeeze(1), latents[0])


def test_only_part_of_a_longer_sequence_can_be_put_together(noise):
    patches = noise(2, 20, 64)
    assert torch.equal(from_patches(patches[:, :12], 6, 8), from_patches(patches[:, :12].contiguous(), 6, 8))
