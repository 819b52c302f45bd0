"""The transformer's main layers, some of them streamed: at home in host memory, on the device only while they compute.

A card with 12 or 8 GB cannot hold 12.3 GB of weights. Of each layer the four matrix products (354 MB in bf16) are
nearly all, and a pass meets the layers one after the other, so two slots on the device are enough for those that have
no place of their own. The streamed ones are spread evenly among those that stay, so that computing with those hides
copies. A step takes as long as the slower of both. Copying all layers over a bus of 25 GB/s takes 0.42 s: an RTX 3060,
of which 3 s a step are published at 1024 x 1024, hides it; an H100, which computes a step in 0.09 s, waits for it.

The pixels are the same: what computes, and in which order, does not change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from zimage_ui.generator.fast.block import BlockWeights
from zimage_ui.generator.fast.flat import FlatLayout
from zimage_ui.generator.fast.projections import PRODUCTS
from zimage_ui.generator.fast.slots import CudaTransfer, SlotRing, Transfer
from zimage_ui.generator.page_locked import HostBuffer

_log = logging.getLogger(__name__)


def spread(count: int, among: int) -> list[int]:
    """`count` of the places 0..`among` - 1, in order, with even gaps between them."""
    return [(2 * number + 1) * among // (2 * count) for number in range(count)]


def streamed_names(count: int, among: int) -> frozenset[str]:
    """The names of a stock transformer's weights that are not on the device while `count` of `among` layers stream."""
    return frozenset(f"layers.{place}.{name}" for place in spread(count, among) for names in PRODUCTS for name in names)


class StreamedLayers:
    """A sequence of blocks to be run through in order, over and over; `settle` says how many of them are streamed.

    Work with a block is enqueued between its turn and the next one's; afterwards its weights may be others'.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        weights: Sequence[BlockWeights],
        device: torch.device,
        transfer: Transfer[Any] | None = None,
        homes: Mapping[int, HostBuffer] | None = None,
    ) -> None:
        """Leave everything where it is.

        Args:
            blocks: the stock ones; their parameters move along with the weights that are made of them.
            weights: of each of them, on the device or on the host. Those that are on the host have to be streamed.
            device: where they compute.
            transfer: copies; None is CUDA's own.
            homes: host memory of the blocks whose weights were laid out in it (`FlatLayout`) from the start.
        """
        self._blocks = blocks
        self._weights = list(weights)
        self._device = device
        self._transfer: Transfer[Any] | None = transfer
        self._homes: dict[int, HostBuffer] = dict(homes or {})
        self._ring: SlotRing | None = None
        self._in_slots: list[BlockWeights] = []

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def streamed(self) -> int:
        """How many blocks are streamed."""
        return len(self._homes)

    def __iter__(self) -> Iterator[BlockWeights]:
        """The weights of each block, on the device.

        Of a streamed block only the products are: nothing else of it is large. Not to be stopped before the end,
        unless by an error.
        """
        place_in_round = 0
        for place, weights in enumerate(self._weights):
            if place not in self._homes:
                yield weights
                continue
            assert self._ring is not None, "streamed without slots: settle() failed and nobody called it again"
            slot = self._ring.acquire(place_in_round)
            yield weights._replace(projections=self._in_slots[slot].projections)
            self._ring.release()
            place_in_round += 1

    def is_settled(self, streamed: int) -> bool:
        """Whether so many blocks are streamed, and their slots ready."""
        return set(spread(streamed, len(self))) == self._homes.keys() and (streamed == 0 or self._ring is not None)

    def settle(self, streamed: int) -> None:
        """Let `streamed` blocks live on the host, and all others on the device. Costs nothing when it is so already.

        What was recorded with the weights before is worthless once any has moved. The memory of what left goes back to
        torch's allocator.

        Raises:
            torch.OutOfMemoryError: the device has no room. The next call puts right what is left half done.
            RuntimeError: the host has no room.
        """
        if self.is_settled(streamed):
            return
        begun, wanted = time.perf_counter(), set(spread(streamed, len(self)))
        self._ring, self._in_slots = None, []
        leaving, coming = wanted - self._homes.keys(), self._homes.keys() - wanted
        with torch.inference_mode(False), torch.no_grad():  # what is made here becomes the data of parameters
            for place in sorted(leaving):
                self._send_home(place)
            for place in sorted(coming):
                self._bring(place)
            if wanted:
                self._fill_slots()
        _log.info(
            "%d of %d transformer blocks are streamed; settled in %.1f s",
            streamed, len(self), time.perf_counter() - begun,
        )  # fmt: skip

    def _send_home(self, place: int) -> None:
        projections = self._weights[place].projections
        layout = FlatLayout(projections)
        home = self._copies().home(layout.size_bytes)
        self._move(place, layout, home.bytes)
        self._homes[place] = home

    def _bring(self, place: int) -> None:
        layout = FlatLayout(self._weights[place].projections)
        memory = torch.empty(layout.size_bytes, dtype=torch.uint8, device=self._device)
        self._move(place, layout, memory)
        del self._homes[place]

    def _move(self, place: int, layout: FlatLayout, memory: torch.Tensor) -> None:
        moved = layout.moved(self._weights[place].projections, memory, self._blocks[place])
        self._weights[place] = self._weights[place]._replace(projections=moved)

    def _copies(self) -> Transfer[Any]:
        if self._transfer is None:
            self._transfer = CudaTransfer(self._device)
        return self._transfer

    def _fill_slots(self) -> None:
        homes = [self._homes[place] for place in sorted(self._homes)]
        streamed = [self._weights[place] for place in sorted(self._homes)]
        layout = FlatLayout(streamed[0].projections)
        kinds = [FlatLayout(weights.projections).places for weights in streamed]
        assert all(places == layout.places for places in kinds), "blocks of different kinds"
        ring = SlotRing([home.bytes for home in homes], self._copies())
        self._in_slots = [
            streamed[0]._replace(projections=layout.placed(streamed[0].projections, slot)) for slot in ring.slots
        ]
        self._ring = ring
