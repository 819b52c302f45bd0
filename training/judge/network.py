"""The judge's network: a small convolutional detector of centre points, as in "Objects as Points" (arXiv:1904.07850).

Things are found at stride 8, letters, which stand close together, at stride 4. Everything is convolutional or pooled:
any size that is a multiple of 32 will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from training.judge.examples import COLOUR_NAMES, LABELS, Layer
from training.world.vocabulary import BACKGROUNDS

STRIDES = {Layer.THING: 8, Layer.CONTAINER: 8, Layer.GLYPH: 4}
_WIDTHS = (32, 64, 96, 128)
# A hundredth of the cells or fewer hold something: to begin with, believe in nothing.
_HEAT_BIAS = -math.log(1 / 0.01 - 1)


@dataclass(frozen=True, slots=True)
class Output:
    """What the network says of a batch.

    Attributes:
        heat: for each layer, logits (pictures, labels, height / stride, width / stride): a centre of that label here.
        colours: for things and containers, logits (pictures, colours, ...) of what has its centre here.
        log_radii: for things and containers, (pictures, ...): the radius' natural logarithm; unit: the shorter side.
        background: logits (pictures, backgrounds).
    """

    heat: dict[Layer, Tensor]
    colours: dict[Layer, Tensor]
    log_radii: dict[Layer, Tensor]
    background: Tensor


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True)
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions around which the input passes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), _conv(width, width))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)


class JudgeNetwork(nn.Module):
    """Pictures (n, 3, height, width) in -1..1 to an `Output`; 1.3 million parameters."""

    def __init__(self) -> None:
        super().__init__()
        stem, fine, middle, coarse = _WIDTHS
        self.fine = nn.Sequential(_conv(3, stem, 2), _conv(stem, fine, 2), _Residual(fine))
        self.middle = nn.Sequential(_conv(fine, middle, 2), _Residual(middle))
        self.coarse = nn.Sequential(_conv(middle, coarse, 2), _Residual(coarse))
        self.whole = _conv(coarse, coarse, 2)
        self.coarse_to_middle = nn.Conv2d(coarse, middle, 1)
        self.whole_to_middle = nn.Conv2d(coarse, middle, 1)
        self.context_to_middle = nn.Linear(coarse, middle)
        self.middle_to_fine = nn.Conv2d(middle, fine, 1)
        self.middle_out = nn.Sequential(nn.BatchNorm2d(middle), _Residual(middle))
        self.fine_out = nn.Sequential(nn.BatchNorm2d(fine), _Residual(fine))
        object_channels = len(LABELS[Layer.THING]) + len(LABELS[Layer.CONTAINER]) + 2 * (len(COLOUR_NAMES) + 1)
        self.objects = nn.Conv2d(middle, object_channels, 1)
        self.glyphs = nn.Conv2d(fine, len(LABELS[Layer.GLYPH]), 1)
        self.background = nn.Linear(2 * coarse, len(BACKGROUNDS))
        nn.init.constant_(self.glyphs.bias, _HEAT_BIAS)  # type: ignore[arg-type]
        with torch.no_grad():
            heats = len(LABELS[Layer.THING]) + len(LABELS[Layer.CONTAINER])
            self.objects.bias[:heats] = _HEAT_BIAS  # type: ignore[index]

    def forward(self, pictures: Tensor) -> Output:
        """What is on `pictures`."""
        fine = self.fine(pictures)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        whole = self.whole(coarse)
        context = whole.mean((2, 3))
        size = middle.shape[-2:]
        middle = middle + functional.interpolate(self.coarse_to_middle(coarse), size, mode="nearest")
        middle = middle + functional.interpolate(self.whole_to_middle(whole), size, mode="nearest")
        middle = self.middle_out(middle + self.context_to_middle(context)[:, :, None, None])
        fine = fine + functional.interpolate(self.middle_to_fine(middle), fine.shape[-2:], mode="nearest")
        things, containers, *rest = self.objects(middle).split(
            [len(LABELS[Layer.THING]), len(LABELS[Layer.CONTAINER]), len(COLOUR_NAMES), len(COLOUR_NAMES), 1, 1], 1
        )
        return Output(
            heat={
                Layer.THING: things,
                Layer.CONTAINER: containers,
                Layer.GLYPH: self.glyphs(self.fine_out(fine)),
            },
            colours={Layer.THING: rest[0], Layer.CONTAINER: rest[1]},
            log_radii={Layer.THING: rest[2][:, 0], Layer.CONTAINER: rest[3][:, 0]},
            background=self.background(torch.cat([context, whole.amax((2, 3))], 1)),
        )


def save_network(network: JudgeNetwork, path: Path) -> None:
    """Write the weights in bf16."""
    state = {
        name: value.detach().to("cpu", torch.bfloat16).contiguous()
        for name, value in network.state_dict().items()
        if value.is_floating_point()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path, metadata={"format": "pt"})


def load_network(path: Path, device: torch.device) -> JudgeNetwork:
    """The network stored at `path`, to look through, in fp32 on `device`."""
    network = JudgeNetwork()
    state = {name: value.float() for name, value in load_file(path).items()}
    counters = {name for name, _ in network.named_buffers() if name.endswith("num_batches_tracked")}
    missing, unexpected = network.load_state_dict(state, strict=False)
    if unexpected or set(missing) - counters:
        raise ValueError(f"{path} holds other weights than the judge's: {sorted(unexpected) or sorted(missing)}")
    return network.eval().requires_grad_(False).to(device)
