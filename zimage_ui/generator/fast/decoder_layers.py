"""A VAE decoder taken apart: which layers it has, in order, whoever computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

Layer = Callable[[torch.Tensor], torch.Tensor]


class LayerMaker(Protocol):
    """Makes the layers of a decoder for one kind of device, from the stock modules' weights.

    A layer takes one picture (1, channels, height, width) in channels_last and may use its memory up.
    """

    def convolution(self, stock: nn.Conv2d) -> Layer:
        """The decoder's first convolution."""

    def resnet(self, stock: Any) -> Layer:
        """A diffusers ResnetBlock2D."""

    def attention(self, stock: Any) -> Layer:
        """A diffusers Attention over all positions of a picture, with its norm and its residual."""

    def upsampler(self, stock: nn.Conv2d) -> Layer:
        """Doubling by nearest neighbours, and the convolution after it."""

    def head(self, norm: nn.GroupNorm, stock: nn.Conv2d) -> Layer:
        """The last norm, SiLU and the convolution to colours."""


def decoder_layers(decoder: Any, make: LayerMaker) -> list[Layer]:
    """The layers of a diffusers `Decoder`, in order.

    Raises:
        ValueError: it has something that no Z-Image VAE has.
    """
    return list(_layers(decoder, make))


def _layers(decoder: Any, make: LayerMaker) -> Iterator[Layer]:
    yield make.convolution(decoder.conv_in)
    first, *others = decoder.mid_block.resnets
    yield make.resnet(_checked(first))
    for attention, resnet in zip(decoder.mid_block.attentions, others, strict=True):
        if attention is not None:
            yield make.attention(attention)
        yield make.resnet(_checked(resnet))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            yield make.resnet(_checked(resnet))
        for upsampler in block.upsamplers or ():
            yield make.upsampler(upsampler.conv)
    yield make.head(decoder.conv_norm_out, decoder.conv_out)


def _checked(resnet: Any) -> Any:
    plain = (
        isinstance(resnet.nonlinearity, nn.SiLU)
        and resnet.time_emb_proj is None
        and resnet.output_scale_factor == 1
        and resnet.upsample is None
        and resnet.downsample is None
    )
    if not plain:
        raise ValueError(f"not a VAE's resnet block: {resnet}")
    return resnet
