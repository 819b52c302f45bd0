"""What a pass through the transformer is specialised for: the sizes of what comes in, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

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
class PictureShape:
    """What the speed of a request depends on, as people ask for it.

    Attributes:
        width, height: in pixels.
        caption_tokens: of the prompt, padded to a multiple of 32.
        num_images: made at once.
    """

    width: int
    height: int
    caption_tokens: int
    num_images: int = 1

    @property
    def promptless(self) -> PictureShape:
        """The same whatever the prompt."""
        return replace(self, caption_tokens=0)

    def is_sized_like(self, other: PictureShape) -> bool:
        """Whether single pictures are as wide and as high."""
        return (self.width, self.height) == (other.width, other.height)

    def __str__(self) -> str:
        pictures = "" if self.num_images == 1 else f"{self.num_images} of "
        return f"{pictures}{self.width} x {self.height} with prompts of up to {self.caption_tokens} tokens"


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

    @property
    def product_rows(self) -> tuple[int, int]:
        """Rows of a block's matrix products, of all pictures: in the main layers, and before the captions join."""
        return self.pictures * self.tokens, self.pictures * self.padded_image_tokens

    def __str__(self) -> str:
        pictures = "" if self.pictures == 1 else f"{self.pictures} of "
        return f"{pictures}{self.height} x {self.width} latents with captions of {self.caption_tokens} tokens"
