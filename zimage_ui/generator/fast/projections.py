"""The matrix products of a block: queries, keys and values in one, gate and up of the feed-forward in one.

One large product keeps a GPU busier than three small ones, and reads its input once. The loader puts the matrices of
one product below each other as it reads them (`fused_names`), so that fusing them moves nothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import torch
from torch import nn
from torch.nn import functional

from zimage_ui.generator.fast.quantised_rows import Activations, Product, QuantisedRows

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock

# The matrices of a stock block by product, as in `BlockProjections`; those of one product in the order of its outputs.
PRODUCTS = (
    ("attention.to_q.weight", "attention.to_k.weight", "attention.to_v.weight"),
    ("attention.to_out.0.weight",),
    ("feed_forward.w1.weight", "feed_forward.w3.weight"),
    ("feed_forward.w2.weight",),
)
# Those of which several are one product's.
FUSED = tuple(names for names in PRODUCTS if len(names) > 1)

# On a CPU packed weights stand beside the plain ones, which the stock modules still need: for small models only.
_PACKING_LIMIT_BYTES = 2**30

# Rounded at once, and unpacked. On the way each value is there three times in fp32.
VALUES_AT_ONCE = 2**23


class Projection(Protocol):
    """A linear map of the last axis; what it is stored and computed in is its own affair."""

    @property
    @abstractmethod
    def form(self) -> torch.dtype:
        """The dtype of what the product reads; of eight bits with a scale for each row."""

    @abstractmethod
    def read(self, values: torch.Tensor) -> Activations:
        """`values` (..., inputs), of any dtype, in the form in which the product reads them."""

    @abstractmethod
    def __call__(self, activations: Activations) -> Product:
        """(..., inputs), in the model's dtype or as `read` answers, -> (..., outputs), maybe still to be scaled."""


@dataclass(frozen=True, slots=True)
class PlainProjection:
    """The matrix as it is, (outputs, inputs)."""

    weight: torch.Tensor

    @property
    def form(self) -> torch.dtype:
        """The matrix's dtype."""
        return self.weight.dtype

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """`values` in the matrix's dtype."""
        return values.to(self.weight.dtype)

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by the device's own library."""
        return functional.linear(unquantised(activations), self.weight)


@dataclass(frozen=True, slots=True)
class PackedProjection:
    """A matrix in oneDNN's own order, on a CPU: the product takes 10 to 25 % less time than with the plain one."""

    packed: torch.Tensor

    @property
    def form(self) -> torch.dtype:
        """The matrix's dtype."""
        return self.packed.dtype

    def read(self, values: torch.Tensor) -> torch.Tensor:
        """`values` in the matrix's dtype."""
        return values.to(self.packed.dtype)

    def __call__(self, activations: Activations) -> torch.Tensor:
        """One matrix product by oneDNN."""
        return torch.ops.mkldnn._linear_pointwise(unquantised(activations), self.packed, None, "none", [], "")


@dataclass(frozen=True, slots=True)
class RoundedProjection(Projection):
    """A matrix whose values were rounded; to what, and how it multiplies, is its kind's affair.

    Attributes:
        weight: the rounded values, as the kind has them.
        scales: fp32, what they are to be multiplied by, likewise.
        dtype: of the product.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: torch.Tensor, parts: int = 1) -> Self:
        """The projection by `weight`, (outputs, inputs), whose dtype the product will have.

        Args:
            weight: of `parts` matrices of one shape, below each other.
            parts: how many.
        """
        outputs, inputs = weight.shape
        projection = cls.unfilled(outputs, inputs, parts, weight.dtype, weight.device)
        for part, matrix in enumerate(weight.chunk(parts)):
            projection.fill(part, matrix)
        return projection

    @classmethod
    @abstractmethod
    def unfilled(cls, outputs: int, inputs: int, parts: int, dtype: torch.dtype, device: torch.device) -> Self:
        """The same for a matrix whose values are anything yet."""

    @abstractmethod
    def fill(self, part: int, matrix: torch.Tensor) -> None:
        """Round `matrix`, (outputs / parts, inputs), on its own device, to its place."""


class BlockProjections(NamedTuple):
    """The four matrix products of a block.

    Attributes:
        query_key_value: dim -> 3 * dim.
        output: dim -> dim, of the attention.
        gate_up: dim -> 2 * hidden; the gate first.
        down: hidden -> dim.
    """

    query_key_value: Projection
    output: Projection
    gate_up: Projection
    down: Projection


def block_projections(block: ZImageTransformerBlock) -> BlockProjections:
    """The projections of a stock block, whose own weights become views of the fused ones."""
    query_key_value, gate_up = fused(block, FUSED)
    output, down = block.attention.to_out[0].weight.data, block.feed_forward.w2.weight.data
    return BlockProjections(*map(PlainProjection, (query_key_value, output, gate_up, down)))


def fused_names(model: nn.Module, groups: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """The names in `model` of all matrices that `fused` puts together, by product, for a loader to read them so.

    Args:
        model: with or without memory.
        groups: the names of one product's matrices within a block, as for `fused`.
    """
    names = [name for name, _ in model.named_parameters()]
    return [
        tuple(name.removesuffix(group[0]) + each for each in group)
        for group in groups
        for name in names
        if name.endswith(group[0])
    ]


def fused(block: nn.Module, groups: Sequence[Sequence[str]]) -> list[torch.Tensor]:
    """For each of `groups`, the parameters of `block` of these names below each other: views of the whole from now on.

    So no memory is used twice. Those that are so already, because they were loaded so or fused before, stay in place;
    others move, and what they leave goes back to torch's allocator.
    """
    return [_fused([block.get_parameter(name) for name in group]) for group in groups]


def _fused(matrices: Sequence[nn.Parameter]) -> torch.Tensor:
    weights = [matrix.data for matrix in matrices]
    whole = _already_fused(weights)
    if whole is None:
        with torch.inference_mode(False), torch.no_grad():
            whole = torch.cat(weights)
            for matrix, view in zip(matrices, whole.split([len(weight) for weight in weights]), strict=True):
                matrix.data = view
    return whole


def _already_fused(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    first = weights[0]
    place = first.storage_offset()
    for weight in weights:
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        if weight.storage_offset() != place or not weight.is_contiguous():
            return None
        place += weight.numel()
    whole = first.as_strided((sum(map(len, weights)), first.shape[1]), (first.shape[1], 1), first.storage_offset())
    return whole.data  # a compiler is to see a tensor, not a view of its own first rows


def packed(projections: BlockProjections) -> BlockProjections:
    """The same projections in oneDNN's order, where torch has oneDNN for their dtype; otherwise as they are."""
    return BlockProjections(*map(_packed, projections))


def packing_pays(module: nn.Module) -> bool:
    """Whether `module` computes on a CPU, in fp32, and is small enough for its matrices to be kept twice."""
    first = next(module.parameters())
    size_bytes = sum(parameter.nbytes for parameter in module.parameters())
    computes_in_onednn = first.device.type == "cpu" and first.dtype == torch.float32
    return computes_in_onednn and torch.backends.mkldnn.is_available() and size_bytes <= _PACKING_LIMIT_BYTES


def unquantised(activations: Activations) -> torch.Tensor:
    """`activations`, for a product that reads the model's dtype."""
    assert not isinstance(activations, QuantisedRows), "blocks of one network are of one kind"
    return activations


def _packed(projection: Projection) -> Projection:
    if not isinstance(projection, PlainProjection):
        return projection
    return PackedProjection(torch.ops.mkldnn._reorder_linear_weight(projection.weight))
