"""What a pass does between its matrix products, in torch's own operations, for any device and for a compiler.

`triton_parts` does the same in kernels of our own.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Protocol

import torch
from torch.nn import functional

from zimage_ui.generator.fast.four_bits import unpacked
from zimage_ui.generator.fast.projections import Projection
from zimage_ui.generator.fast.quantised_rows import Activations, Product, scaled
from zimage_ui.generator.fast.rotary import rotate

# Queries, keys and values; each (pictures, tokens, heads, head_dim).
Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Parts(Protocol):
    """What is common to this module and `triton_parts`."""

    def turned_heads(
        self, product: Product, query_norm: torch.Tensor, key_norm: torch.Tensor, eps: float, rotary: torch.Tensor
    ) -> Heads:
        """Queries and keys, normed and turned, and values.

        Args:
            product: (pictures, tokens, 3 * dim): queries, keys and values of each token, head by head.
            query_norm: (head_dim,), fp32: the weights of the queries' norm.
            key_norm: the same of the keys.
            eps: of both.
            rotary: the rotation of each token (`rotation_table`).
        """

    def add_and_norm(
        self,
        stream: torch.Tensor,
        change: Product,
        gate: torch.Tensor,
        scale: torch.Tensor,
        eps: float,
        reader: Projection,
    ) -> tuple[torch.Tensor, Activations]:
        """`stream` plus the normed and gated `change`; and that sum normed and scaled, as `reader` reads it.

        Args:
            stream: (pictures, tokens, dim), the residual stream.
            change: of the same shape.
            gate: (dim,), fp32: what the normed change is multiplied by.
            scale: the same for the normed sum.
            eps: of both norms.
            reader: comes next.
        """

    def rms_normed(self, values: torch.Tensor, scale: torch.Tensor, eps: float, reader: Projection) -> Activations:
        """The root mean square norm of each token, scaled, as `reader` reads it.

        Args:
            values: (pictures, tokens, dim), strided but for the values of a token.
            scale: (dim,), fp32: what is normed is multiplied by.
            eps: of the norm.
            reader: comes next.
        """

    def layer_normed(self, values: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
        """The same of each token less its mean, in the dtype of `values`, dense."""

    def gated(self, product: Product, reader: Projection) -> Activations:
        """`silu(gate) * up` of (..., 2 * hidden), the gate first, as `reader` reads it."""

    def plain(self, projection: Projection) -> Projection:
        """`projection` with its matrix unpacked, if that is kept in four bits (`four_bits`); others as they are."""

    def read(self, values: torch.Tensor, reader: Projection) -> Activations:
        """`values` (..., inputs) as `reader` reads them."""


def parts_by(*, triton: bool) -> Parts:
    """`triton_parts`, or this module.

    Raises:
        ImportError: there is no Triton.
    """
    if not triton:
        return sys.modules[__name__]
    from zimage_ui.generator.fast import triton_parts

    return triton_parts


def has_triton_parts(form: torch.dtype, dtype: torch.dtype, head_dim: int, device: torch.device) -> bool:
    """Whether `triton_parts` serves a model here: bf16, with products that read bf16 or FP8.

    Products in int8 are left to the compiler, which scales their sums in the kernel that reads them.

    Args:
        form: that the blocks' products read.
        dtype: of the model.
        head_dim: of queries and keys; kernels take powers of two.
        device: that computes.
    """
    fits = form in (torch.bfloat16, torch.float8_e4m3fn) and dtype == torch.bfloat16 and head_dim.bit_count() == 1
    return fits and has_triton(device)


def has_triton(device: torch.device) -> bool:
    """Whether Triton, which comes with torch's builds for GPUs, can make kernels for `device`."""
    return device.type == "cuda" and importlib.util.find_spec("triton") is not None


def turned_heads(
    product: Product, query_norm: torch.Tensor, key_norm: torch.Tensor, eps: float, rotary: torch.Tensor
) -> Heads:
    """See `Parts`; the values are a view of the product."""
    query, key, value = scaled(product).unflatten(-1, (3, -1, len(query_norm))).unbind(2)
    query, key = rotate(norm(query, query_norm, eps), rotary), rotate(norm(key, key_norm, eps), rotary)
    return query.to(value.dtype), key.to(value.dtype), value


def add_and_norm(
    stream: torch.Tensor, change: Product, gate: torch.Tensor, scale: torch.Tensor, eps: float, reader: Projection
) -> tuple[torch.Tensor, Activations]:
    """See `Parts`."""
    stream = torch.addcmul(stream.float(), _unit(scaled(change), eps), gate).to(stream.dtype)
    # Normed from its rounded values, as the stock block does: kept in fp32 the sum would be written to memory, too.
    return stream, rms_normed(stream, scale, eps, reader)


def rms_normed(values: torch.Tensor, scale: torch.Tensor, eps: float, reader: Projection) -> Activations:
    """See `Parts`."""
    return reader.read(norm(values, scale, eps))


def layer_normed(values: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """See `Parts`."""
    return functional.layer_norm(values.float(), scale.shape, scale, None, eps).to(values.dtype)


def gated(product: Product, reader: Projection) -> Activations:
    """See `Parts`."""
    gate, up = scaled(product).chunk(2, dim=-1)
    hidden = functional.silu(gate).mul_(up)
    del product, gate, up  # the largest of a block, and rounding `hidden` takes several times its own memory
    return reader.read(hidden)


def plain(projection: Projection) -> Projection:
    """See `Parts`."""
    return unpacked(projection)


def read(values: torch.Tensor, reader: Projection) -> Activations:
    """See `Parts`."""
    return reader.read(values)


def norm(values: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The root mean square norm of the last axis, times `weight`; fp32."""
    return _unit(values, eps) * weight


def _unit(values: torch.Tensor, eps: float) -> torch.Tensor:
    exact = values.float()
    return exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + eps)
