"""Tiles into which a product of a very size falls with little left over, among those that cuBLASLt has.

A card computes one tile on each of its processors at a time. What the last round leaves idle, and what tiles at the
edges multiply for nothing, can be a fifth of all: 3840 outputs of 1088 tokens are 135 tiles of 256 x 128, one round of
an H100's 132 processors and a second for three. The library has tiles for nearly every size, and proposes them for few:
of the products of 1088 tokens it named none of 136, which divide them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

# As many tiles are worth measuring.
_MOST_TILES = 4
# Registers hold no larger ones.
_LARGEST = 256 * 208
# How fast tiles are, all alike filled, was fitted to forty that an H100 was timed with: numbers have to be read before
# they are multiplied, and a tile that is too large for one group of warps is computed by two that wait for each other.
_READING = 20
_OF_ONE_GROUP, _TOGETHER = 128 * 184, 0.92


class Tile(NamedTuple):
    """One of cuBLASLt's tiles.

    Attributes:
        number: of `cublasLtMatmulTile_t`.
        outputs: that it computes.
        tokens: for so many.
    """

    number: int
    outputs: int
    tokens: int

    @property
    def speed(self) -> float:
        """Of a processor that computes such tiles, as a share of what it could multiply."""
        products_per_number = self.outputs * self.tokens / (self.outputs + self.tokens)
        fed = products_per_number / (products_per_number + _READING)
        return fed if self.outputs * self.tokens <= _OF_ONE_GROUP else fed * _TOGETHER

    @property
    def settings(self) -> tuple[tuple[int, int], ...]:
        """Numbers of cluster and custom option worth measuring: the pairs that the library proposes with such tiles.

        What the options mean is not documented. It proposes odd ones for tiles whose tokens may be any multiple of
        eight, and even ones where the outputs may; two more with clusters along the other side; and four more for the
        larger tiles, which two groups of warps seem to share.
        """
        first = 1 if self.outputs % 64 == 0 else 0
        return (_TALL, first), (_WIDE, first + 2), (_TALL, first + 4), (_WIDE, first + 6)


# cublasLtClusterShape_t: 2x1x1 and 1x2x1.
_TALL, _WIDE = 3, 5


def suited_tiles(tokens: int, outputs: int, processors: int) -> list[Tile]:
    """The tiles that promise the most for so many tokens times a matrix of so many outputs, the best first."""

    def promise(tile: Tile) -> float:
        return filled(tile, tokens, outputs, processors) * tile.speed

    return sorted(_tiles(), key=promise, reverse=True)[:_MOST_TILES]


def filled(tile: Tile, tokens: int, outputs: int, processors: int) -> float:
    """The share of what all processors could multiply, in as many rounds as it takes, that is asked for."""
    tiles = math.ceil(outputs / tile.outputs) * math.ceil(tokens / tile.tokens)
    rounds = math.ceil(tiles / processors)
    return tokens * outputs / (rounds * processors * tile.outputs * tile.tokens)


@cache
def _tiles() -> tuple[Tile, ...]:
    """Those that came with CUDA 12.6, and 128 x 160: other old ones are proposed where they suit."""
    return tuple(tile for tile in _numbered() if tile.outputs * tile.tokens <= _LARGEST)


def _numbered() -> Iterator[Tile]:
    """By `cublasLt.h`, where numbers go up with the tokens, but for those that had a number before."""
    yield Tile(29, 128, 160)
    yield from _family(393, 128, {32, 64, 96, 128, 160, 192, 256, 320, 384})
    yield from _family(448, 192, {64, 128, 192, 256})
    yield from _family(486, 256, {32, 64, 128, 192})
    for number, outputs in ((180, 136), (185, 144), (190, 152), (194, 160), (198, 168), (202, 176), (206, 184)):
        yield Tile(number, outputs, 192)


def _family(first: int, outputs: int, numbered_before: set[int]) -> Iterator[Tile]:
    several = (tokens for tokens in range(8, 337, 8) if tokens not in numbered_before)
    for number, tokens in enumerate(several, first):
        yield Tile(number, outputs, tokens)
