"""The captions of prompts as the main layers read them: refined once for a request, since no step changes them.

Two blocks over a few dozen tokens are 0.3 ms of an H100's time, but launching their hundred small kernels took the host
4 ms, in which the card stood idle before the first step. So they are recorded for the lengths in use.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from zimage_ui.generator.fast.graphs import RecordedFunction, Recorder, Recordings
from zimage_ui.generator.fast.parts import has_triton_parts
from zimage_ui.generator.fast.recently_used import RecentlyUsed
from zimage_ui.generator.fast.rotary import caption_rotary
from zimage_ui.generator.fast.shapes import padded
from zimage_ui.generator.fast.step import StepNetwork

if TYPE_CHECKING:
    from diffusers.models.transformers.transformer_z_image import RopeEmbedder

# All lengths up to 512 tokens, in steps of 32, and some.
_KEPT_LENGTHS = 24


class Captions:
    """Refines captions by the context blocks of a network."""

    def __init__(
        self,
        network: StepNetwork,
        embedder: RopeEmbedder,
        device: torch.device,
        dtype: torch.dtype,
        recorder: Recorder | None,
    ) -> None:
        """Nothing is prepared yet.

        Args:
            network: whose context blocks are plain, whatever its precision.
            embedder: of positions.
            device: where it computes.
            dtype: in what it computes.
            recorder: records graphs; None is where nothing is ever prepared.
        """
        self._network = network
        self._embedder = embedder
        self._device = device
        self._dtype = dtype
        head_dim = network.heads_shape[1]
        # Whether by kernels of our own.
        ways = (True, False) if has_triton_parts(dtype, dtype, head_dim, device) else (False,)
        self._recordings: Recordings[int, bool] = Recordings(_KEPT_LENGTHS, recorder, ways)
        self._refused: set[int] = set()
        self._rotaries: RecentlyUsed[int, torch.Tensor] = RecentlyUsed(_KEPT_LENGTHS)

    def refined(self, prompt_embeds: torch.Tensor) -> torch.Tensor:
        """The caption (1, padded tokens, dim) of `prompt_embeds`, (tokens, features) of the text encoder."""
        count, tokens = len(prompt_embeds), padded(len(prompt_embeds))
        embeds = functional.pad(prompt_embeds.to(self._dtype), (0, 0, 0, tokens - count))
        is_real = (torch.arange(tokens, device=self._device) < count)[:, None]
        return (self._recordings.get(tokens) or self._refining(tokens, triton=False))(embeds, is_real)

    def prepare(self, tokens: int, *, record: bool = True) -> bool:
        """Have captions of `tokens`, a multiple of 32, refined by kernels of our own where they serve, and record it.

        Costs nothing when it is done. A failure is logged, and such captions are refined as if nobody had prepared for
        them.

        Args:
            tokens: of the caption, padded.
            record: False only makes the kernels, which then compute the same. What is recorded keeps memory.

        Returns:
            Whether that length is prepared.
        """
        if tokens in self._refused:
            return False
        what = f"refining captions of {tokens} tokens"
        prepared = self._recordings.prepare(tokens, partial(self._record, tokens, record), what)
        if not prepared:
            self._refused.add(tokens)
        return prepared

    def release(self) -> bool:
        """Drop what was prepared; as `Recordings.release`."""
        self._rotaries.clear()
        self._refused.clear()
        return self._recordings.release()

    def _record(
        self, tokens: int, record: bool, triton: bool, recorder: Recorder
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        embeds = torch.zeros(tokens, self._network.caption_features, dtype=self._dtype, device=self._device)
        is_real = torch.ones(tokens, 1, dtype=torch.bool, device=self._device)
        run = self._refining(tokens, triton=triton)
        if record:
            return RecordedFunction(run, (embeds, is_real), recorder)
        run(embeds, is_real)
        return run

    def _refining(self, tokens: int, *, triton: bool) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        rotary = self._rotaries.get(tokens)
        if rotary is None:
            rotary = caption_rotary(self._embedder, tokens, self._device)
            self._rotaries.put(tokens, rotary)
        return partial(self._network.refine, rotary, triton=triton)
