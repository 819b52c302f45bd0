"""The arithmetic of tokens."""

import pytest

from zimage_ui.generator.fast.shapes import DenoiserShape, padded


@pytest.mark.parametrize(("tokens", "expected"), [(1, 32), (31, 32), (32, 32), (33, 64), (4096, 4096)])
def test_tokens_are_padded_to_whole_buckets(tokens, expected):
    assert padded(tokens) == expected


def test_a_megapixel():
    shape = DenoiserShape(128, 128, 64)
    assert (shape.rows, shape.columns) == (64, 64)
    assert (shape.image_tokens, shape.padded_image_tokens, shape.tokens) == (4096, 4096, 4160)


def test_an_image_that_has_to_be_padded():
    shape = DenoiserShape(height=10, width=14, caption_tokens=32)
    assert (shape.image_tokens, shape.padded_image_tokens, shape.tokens) == (35, 64, 96)
