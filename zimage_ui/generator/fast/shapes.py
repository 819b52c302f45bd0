"""What a pass through the transformer is specialised for: the sizes of what comes in, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

# The model pads captions and images to a multiple of this, with learned tokens that are attended like any other.
TOKEN_MULTIPLE = 32
# The published models have one size of patches, 2 x 2 latent positions of one frame, under this name.
PATCH_KEY = "2-1"
# Latent positions along one side of an image token.
PATCH = 2


def padded(tokens: int) -> int:
    """`tokens` rounded up to what the model pads to."""
    return tokens + -tokens % TOKEN_MULTIPLE


@dataclass(frozen=True, slots=True)
class DenoiserShape:
    """The sizes of one pass through the transformer.

    Attributes:
        height, width: of the latents, in latent positions; even.
        caption_tokens: of each caption, padded to a multiple of 32.
        pictures: in one batch.
    """

    height: int
    width: int
    caption_tokens: int
    pictures: int = 1

    @property
    def rows(self) -> int:
        """Rows of image tokens."""
        return self.height // PATCH

    @property
    def columns(self) -> int:
        """Columns of image tokens."""
        return self.width // PATCH

    @property
    def image_tokens(self) -> int:
        """Tokens that show the picture, without those that pad it."""
        return self.rows * self.columns

    @property
    def padded_image_tokens(self) -> int:
        """Image tokens as the transformer sees them."""
        return padded(self.image_tokens)

    @property
    def tokens(self) -> int:
        """Image and caption together, as the main layers see them."""
        return self.padded_image_tokens + self.caption_tokens
