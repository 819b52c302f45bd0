"""Which of cuBLASLt's tiles suit a product, by counting."""

import pytest

from zimage_ui.generator.fast.product_tiles import Tile, filled, suited_tiles

H100 = 132
OF_136, WIDE, OF_176 = Tile(405, 128, 136), Tile(499, 256, 136), Tile(202, 176, 192)


def test_what_is_filled_is_the_share_of_the_last_round_and_of_the_edges():
    assert filled(Tile(0, 128, 128), 128 * 4, 128 * 33, H100) == 1.0
    assert filled(Tile(0, 128, 128), 128 * 4, 128 * 34, H100) == pytest.approx(136 / 264)
    assert filled(Tile(0, 128, 128), 64, 128 * H100, H100) == 0.5


@pytest.mark.parametrize(("outputs", "tile"), [(3840, OF_176), (3840, OF_136), (20480, OF_136), (20480, WIDE)])
def test_of_1088_tokens_those_are_named_that_an_h100_was_fastest_with(outputs, tile):
    assert tile in suited_tiles(1088, outputs, H100)


@pytest.mark.parametrize("tokens", [32, 1056, 4160, 65536])
def test_there_are_few_for_any_size_and_the_first_promises_the_most(tokens):
    tiles = suited_tiles(tokens, 3840, H100)
    promised = [filled(tile, tokens, 3840, H100) * tile.speed for tile in tiles]
    assert len(set(tiles)) == len(tiles) == 4
    assert promised == sorted(promised, reverse=True)


@pytest.mark.parametrize(
    ("number", "outputs", "tokens"),
    [(393, 128, 8), (405, 128, 136), (420, 128, 280), (448, 192, 8), (468, 192, 184), (486, 256, 8), (507, 256, 208)],
)
def test_numbers_are_those_of_the_header(number, outputs, tokens):
    """cublasLt.h of CUDA 12.6: each number is the next one, but tiles that had one before are left out."""
    from zimage_ui.generator.fast.product_tiles import _tiles

    assert Tile(number, outputs, tokens) in _tiles()


def test_large_tiles_are_slower_than_their_reading_alone_would_say():
    assert Tile(0, 128, 184).speed > Tile(0, 256, 136).speed > Tile(0, 256, 48).speed


def test_settings_are_those_that_the_library_proposes_with_such_tiles():
    assert OF_136.settings == ((3, 1), (5, 3), (3, 5), (5, 7))
    assert OF_176.settings == ((3, 0), (5, 2), (3, 4), (5, 6))
