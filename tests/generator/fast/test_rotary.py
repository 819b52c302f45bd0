"""Rotations: the stock transformer's positions and angles, in complex and in real numbers."""

import pytest
import torch

from zimage_ui.generator.fast.rotary import caption_positions, image_positions, rotate, rotation_table, shape_rotary
from zimage_ui.generator.fast.shapes import DenoiserShape

pytestmark = pytest.mark.model

CPU, META = torch.device("cpu"), torch.device("meta")


def stock_positions(transformer, height, width, caption):
    latents = torch.zeros(16, 1, height, width)
    _, _, _, image, captions, _, _ = transformer.patchify_and_embed([latents], [torch.zeros(caption, 24)], 2, 1)
    return image[0], captions[0]


@pytest.mark.parametrize("caption", [1, 32, 40])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (10, 14), (4, 6)])
def test_positions_are_the_stock_transformers(transformer, height, width, caption):
    image, captions = stock_positions(transformer, height, width, caption)
    shape = DenoiserShape(height, width, caption_tokens=caption + -caption % 32)
    assert torch.equal(image_positions(shape), image)
    assert torch.equal(caption_positions(shape.caption_tokens), captions[: shape.caption_tokens])


def test_the_main_layers_see_the_image_first_and_then_the_caption(transformer):
    shape = DenoiserShape(10, 14, 64)
    rotary = shape_rotary(transformer.rope_embedder, shape, CPU)
    assert len(rotary.whole) == shape.tokens
    assert torch.equal(rotary.whole[: shape.padded_image_tokens], rotary.image)
    caption = rotation_table(transformer.rope_embedder, caption_positions(64), CPU)
    assert torch.equal(rotary.whole[shape.padded_image_tokens :], caption)


def stock_rotated(values, rotation):
    """As ZSingleStreamAttnProcessor does it."""
    turned = torch.view_as_complex(values.reshape(*values.shape[:-1], -1, 2)) * rotation[:, None]
    return torch.view_as_real(turned).flatten(-2)


def real_table(transformer, positions):
    """The table that a GPU gets, made on the CPU."""

    class Elsewhere:
        type = "cuda"

    def embedder(_):
        return transformer.rope_embedder(positions)

    class Positions:
        def to(self, _device):
            return positions

    return rotation_table(embedder, Positions(), Elsewhere())


@pytest.mark.parametrize("kind", ["complex", "real"])
def test_values_are_turned_as_the_stock_processor_turns_them(transformer, noise, kind):
    positions = image_positions(DenoiserShape(10, 14, 32))
    values = noise(2, len(positions), 2, 48)
    rotation = transformer.rope_embedder(positions)
    table = rotation_table(transformer.rope_embedder, positions, CPU)
    if kind == "real":
        table = real_table(transformer, positions)
        assert table.shape == (2, len(positions), 1, 48)
        assert table.dtype == torch.float32
    assert torch.allclose(rotate(values, table), stock_rotated(values, rotation), atol=1e-6)


def test_a_rotation_keeps_lengths_and_undoes_itself(transformer, noise):
    table = rotation_table(transformer.rope_embedder, caption_positions(32), CPU)
    values = noise(1, 32, 2, 48)
    turned = rotate(values, table)
    assert torch.allclose(turned.norm(dim=-1), values.norm(dim=-1), rtol=1e-5)
    assert torch.allclose(rotate(turned, table.conj().resolve_conj()), values, atol=1e-5)
