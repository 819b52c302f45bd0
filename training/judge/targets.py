"""What the network should have said, and how far off it was."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from training.judge.examples import LABELS, Column, Layer
from training.judge.network import STRIDES, Output

# Of the Gaussian around a centre, in cells: a share of the radius, within bounds.
_SIGMA_SHARE, _SIGMA_BOUNDS = 0.25, (0.7, 2.0)
_COLOUR_WEIGHT, _RADIUS_WEIGHT, _BACKGROUND_WEIGHT = 1.0, 0.5, 1.0


@dataclass(frozen=True, slots=True)
class LayerTargets:
    """The objects of one layer, each by its picture, its cell and what it is; `heat` as the network should give it."""

    heat: Tensor
    picture: Tensor
    row: Tensor
    column: Tensor
    colour: Tensor
    log_radius: Tensor


def layer_targets(objects: Tensor, layer: Layer, height: int, width: int) -> LayerTargets:
    """The targets of `layer` for pictures of that size in pixels.

    Args:
        objects: (pictures, MAX_OBJECTS, columns), on the device where the targets are wanted.
        layer: which of them.
        height: of the pictures.
        width: of the pictures.
    """
    stride = STRIDES[layer]
    rows, columns = height // stride, width // stride
    picture, place = (objects[..., Column.LAYER] == layer).nonzero(as_tuple=True)
    found = objects[picture, place]
    row = (found[:, Column.Y] * rows).long().clamp(0, rows - 1)
    column = (found[:, Column.X] * columns).long().clamp(0, columns - 1)
    sigma = (found[:, Column.RADIUS] * min(rows, columns) * _SIGMA_SHARE).clamp(*_SIGMA_BOUNDS)
    down = torch.arange(rows, device=objects.device) - row[:, None]
    across = torch.arange(columns, device=objects.device) - column[:, None]
    squares = down[:, :, None] ** 2 + across[:, None, :] ** 2
    bumps = torch.exp(-squares / (2 * sigma[:, None, None] ** 2))
    labels = len(LABELS[layer])
    heat = torch.zeros((len(objects) * labels, rows, columns), device=objects.device)
    map_of = (picture * labels + found[:, Column.LABEL].long())[:, None, None].expand_as(bumps)
    heat.scatter_reduce_(0, map_of, bumps, "amax")
    return LayerTargets(
        heat.view(len(objects), labels, rows, columns),
        picture,
        row,
        column,
        found[:, Column.COLOUR].long(),
        found[:, Column.RADIUS].log(),
    )


def loss_of(output: Output, objects: Tensor, backgrounds: Tensor, height: int, width: int) -> Tensor:
    """How far `output` is from what stands on the pictures; sum of focal, colour, radius and background terms."""
    total = _BACKGROUND_WEIGHT * functional.cross_entropy(output.background.float(), backgrounds)
    for layer in LABELS:
        target = layer_targets(objects, layer, height, width)
        total = total + focal_loss(output.heat[layer].float(), target.heat)
        if layer in output.colours:
            total = total + _object_loss(output.colours[layer], output.log_radii[layer], target)
    return total


def focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of "Objects as Points" (alpha 2, beta 4), per centre; around a centre errors count less."""
    present = functional.logsigmoid(logits)
    absent = present - logits  # log(1 - p)
    centre = target == 1.0
    at_centre = (2 * absent).exp() * present
    elsewhere = (1 - target) ** 4 * (2 * present).exp() * absent
    return -torch.where(centre, at_centre, elsewhere).sum() / centre.sum().clamp(min=1)


def _object_loss(colours: Tensor, log_radii: Tensor, target: LayerTargets) -> Tensor:
    """Colour and radius, read a cell beside the centre as often as in it: a peak may be found there."""
    rows, columns = colours.shape[-2:]
    moved = torch.randint(-1, 2, (2, len(target.row)), device=colours.device)
    row = (target.row + moved[0]).clamp(0, rows - 1)
    column = (target.column + moved[1]).clamp(0, columns - 1)
    count = max(1, len(row))
    colour = functional.cross_entropy(colours[target.picture, :, row, column].float(), target.colour, reduction="sum")
    radius = (log_radii[target.picture, row, column].float() - target.log_radius).abs().sum()
    return (_COLOUR_WEIGHT * colour + _RADIUS_WEIGHT * radius) / count
