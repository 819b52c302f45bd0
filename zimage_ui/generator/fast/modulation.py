"""What the time step does to the blocks, as a table: one row of factors for each norm, computed once for each schedule.

The stock blocks derive scales and gates from the time embedding in every step, and multiply by them after each norm
has multiplied by its own weight. Both factors are known beforehand, and their product is one: so a norm followed by a
modulation is just a norm with another weight. Everything is fp32, whatever the model computes in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from zimage_ui.generator.fast.recently_used import RecentlyUsed
from zimage_ui.generator.fast.shapes import PATCH_KEY

if TYPE_CHECKING:
    from diffusers import ZImageTransformer2DModel
    from diffusers.models.normalization import RMSNorm
    from diffusers.models.transformers.transformer_z_image import TimestepEmbedder, ZImageTransformerBlock

# Norms of a block that have a factor: before and after the attention, before and after the feed-forward.
ROWS_A_BLOCK = 4

# Tables of 8 steps of the full-size model take 17 MB. People change steps and solver now and then, not all the time.
_KEPT_TABLES = 4
# The scheduler's time runs from 1000 to 0, the model's from 0 to 1.
_TIMESTEPS = 1000


class ModulationTables:
    """The tables of a transformer for the schedules used last.

    The rows of a step, in the order in which a pass meets them: for each block of the noise refiner and then of the
    main layers (1 + scale) * norm before the attention, tanh(gate) * norm after it, and the same two of the
    feed-forward; at last the final layer's 1 + scale.
    """

    def __init__(self, transformer: ZImageTransformer2DModel) -> None:
        self._transformer = transformer
        self._tables: RecentlyUsed[tuple[float, ...], torch.Tensor] = RecentlyUsed(_KEPT_TABLES)

    def rows(self, timesteps: Sequence[float]) -> torch.Tensor:
        """(steps, rows, dim), fp32, on the model's device.

        Args:
            timesteps: as the scheduler counts them, 1000 (noise) to 0 (picture), one for each step.
        """
        key = tuple(timesteps)
        table = self._tables.get(key)
        if table is None:
            table = self._compute(key)
            self._tables.put(key, table)
        return table

    def _compute(self, timesteps: tuple[float, ...]) -> torch.Tensor:
        model = self._transformer
        time = (_TIMESTEPS - torch.tensor(timesteps, dtype=torch.float32)) / _TIMESTEPS
        embedding = _time_embedding(model.t_embedder, (time * model.t_scale).to(model.device))
        rows = [row for block in (*model.noise_refiner, *model.layers) for row in _block_rows(block, embedding)]
        to_scale = model.all_final_layer[PATCH_KEY].adaLN_modulation[-1]
        rows.append(1 + _linear_fp32(to_scale, functional.silu(embedding)))
        return torch.stack(rows, dim=1)


def plain_rows(block: ZImageTransformerBlock) -> torch.Tensor:
    """(4, dim) in the same order, for a block that no time step modulates: the norms' own weights."""
    return torch.stack([norm.weight.float() for norm in _norms(block)])


def _block_rows(block: ZImageTransformerBlock, embedding: torch.Tensor) -> Iterable[torch.Tensor]:
    modulation = _linear_fp32(block.adaLN_modulation[0], embedding).chunk(ROWS_A_BLOCK, dim=-1)
    attention_scale, attention_gate, feed_forward_scale, feed_forward_gate = modulation
    factors = (1 + attention_scale, attention_gate.tanh(), 1 + feed_forward_scale, feed_forward_gate.tanh())
    return (factor * norm.weight.float() for factor, norm in zip(factors, _norms(block), strict=True))


def _norms(block: ZImageTransformerBlock) -> tuple[RMSNorm, ...]:
    return block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2


def _time_embedding(embedder: TimestepEmbedder, time: torch.Tensor) -> torch.Tensor:
    waves = embedder.timestep_embedding(time, embedder.frequency_embedding_size)
    first, _, second = embedder.mlp
    return _linear_fp32(second, functional.silu(_linear_fp32(first, waves)))


def _linear_fp32(linear: torch.nn.Linear, values: torch.Tensor) -> torch.Tensor:
    return functional.linear(values, linear.weight.float(), linear.bias.float())
