"""All tensors of a block's matrix products in one piece of memory, so that one copy brings a block.

A projection is a frozen dataclass whose tensors are fields; whatever it is stored in (plain, quantised with scales),
its tensors are laid one after the other, and views of the whole take their places.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from zimage_ui.generator.fast.projections import BlockProjections

# What CUDA's own allocator aligns to: kernels read vectors, and compiled ones copy what is less than 16-aligned.
_ALIGNMENT_BYTES = 256


class _Place(NamedTuple):
    """Where a tensor lies: `field` of projection number `projection`, from `begin` to `end` bytes."""

    projection: int
    field: str
    begin: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class FlatLayout:
    """How the tensors of `BlockProjections` lie in one piece of memory; blocks of one kind share a layout.

    Attributes:
        places: of the tensors.
        size_bytes: of that piece.
    """

    def __init__(self, projections: BlockProjections) -> None:
        self.places: list[_Place] = []
        self.size_bytes = 0
        for number, projection in enumerate(projections):
            for field, tensor in _tensors(projection):
                begin = math.ceil(self.size_bytes / _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
                self.size_bytes = begin + tensor.numel() * tensor.itemsize
                place = _Place(
                    number, field, begin, self.size_bytes, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride())
                )
                self.places.append(place)

    def placed(self, projections: BlockProjections, memory: torch.Tensor) -> BlockProjections:
        """The same `projections`, their tensors views of `memory`, (size_bytes or more,) uint8; nothing is copied."""
        changed: list[dict[str, torch.Tensor]] = [{} for _ in projections]
        for place in self.places:
            view = memory[place.begin : place.end].view(place.dtype).as_strided(place.shape, place.stride)
            # .data: a compiler is to see a tensor, not a view of bytes that it would have to follow to their owner.
            changed[place.projection][place.field] = view.data
        moved = (_with_tensors(projection, new) for projection, new in zip(projections, changed, strict=True))
        return BlockProjections(*moved)

    def moved(self, projections: BlockProjections, memory: torch.Tensor, owner: nn.Module) -> BlockProjections:
        """`projections` copied into `memory`; parameters of `owner` that were views of theirs are views of it now.

        Called without gradients, outside of inference mode. Returns once the copy is complete.
        """
        target = self.placed(projections, memory)
        for old, new in zip(_all_tensors(projections), _all_tensors(target), strict=True):
            new.copy_(old)
            _rebind(owner, old, new)
        return target


def _rebind(owner: nn.Module, old: torch.Tensor, new: torch.Tensor) -> None:
    storage = old.untyped_storage().data_ptr()
    begin, end = old.storage_offset(), old.storage_offset() + old.numel()
    for parameter in owner.parameters():
        offset = parameter.storage_offset()
        if parameter.untyped_storage().data_ptr() == storage and begin <= offset < end:
            parameter.data = new.as_strided(parameter.shape, parameter.stride(), new.storage_offset() + offset - begin)


def _all_tensors(projections: BlockProjections) -> Iterable[torch.Tensor]:
    return (tensor for projection in projections for _, tensor in _tensors(projection))


def _tensors(projection: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for field in dataclasses.fields(projection):
        value = getattr(projection, field.name)
        if isinstance(value, torch.Tensor):
            yield field.name, value


def _with_tensors(projection: Any, tensors: dict[str, torch.Tensor]) -> Any:
    return dataclasses.replace(projection, **tensors)
