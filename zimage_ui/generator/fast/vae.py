"""The VAE's decoder made fast: the same pictures as the stock module's, up to rounding.

On a CPU its layers are those of `cpu_decoder`, from the first picture on. On a GPU they are those of `gpu_decoder`,
once a size has been prepared: preparing compiles what runs between the convolutions (once, for all sizes), lets cuDNN
measure which of its kernels is the quickest for each convolution, and records a CUDA graph of that size. Other sizes
then run the same layers without a graph. Before, and whenever anything goes wrong, the stock module decodes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.cpu_decoder import CpuLayers
from zimage_ui.generator.fast.decoder_layers import Layer, LayerMaker, decoder_layers
from zimage_ui.generator.fast.gpu_decoder import GpuLayers, compiled_functions
from zimage_ui.generator.fast.graphs import CudaRecorder, RecentlyUsed, RecordedFunction, Recorder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_log = logging.getLogger(__name__)

# Sizes of picture that are in use at a time: more than `preparation` asks for. All graphs share memory.
_KEPT_SIZES = 16


class FastDecoder:
    """Stands in for an `AutoencoderKL` wherever pictures are decoded.

    Attributes:
        config, dtype: the VAE's.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        device: torch.device,
        make_recorder: Callable[[], Recorder] | None = None,
        layers: Callable[[], LayerMaker] | None = None,
    ) -> None:
        """Lay out the weights of `vae`.

        Args:
            vae: on `device`, for inference. On a GPU its decoder's kernels become channels_last in place.
            device: where it computes.
            make_recorder: makes what records graphs; None is CUDA graphs on a GPU and nothing elsewhere.
            layers: makes the maker of the layers; None is the one for the device.
        """
        self.config, self.dtype = vae.config, vae.dtype
        self._vae = vae
        self._device = device
        if make_recorder is None and device.type == "cuda":
            make_recorder = partial(CudaRecorder, device)
        self._make_recorder = make_recorder
        self._recorder = make_recorder() if make_recorder else None
        self._layers = _layers_of(vae, (layers or _maker_for(device))())
        self._runs_layers = self._recorder is None
        self._recorded: RecentlyUsed[tuple[int, int], RecordedFunction] = RecentlyUsed(_KEPT_SIZES)
        self._unrecorded: set[tuple[int, int]] = set()

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """What the VAE makes of scaled and shifted `latents`, as `AutoencoderKL.decode` answers without `return_dict`.

        Raises:
            torch.OutOfMemoryError: there is too little memory.
        """
        assert not return_dict
        if self._layers is None or not self._runs_layers or len(latents) > 1:
            return self._vae.decode(latents, return_dict=False)
        recorded = self._recorded.get(_size(latents))
        if recorded is not None:
            return (recorded(latents),)
        if self._recorder is None:
            return (self._run(latents),)
        picture = attempt(
            partial(self._run, latents), "the stock VAE decodes from now on", but=(torch.OutOfMemoryError,)
        )
        if picture is None:
            self._layers = None
            self._recorded.clear()
            return self._vae.decode(latents, return_dict=False)
        return (picture,)

    @torch.inference_mode()
    def prepare(self, height: int, width: int, *, record: bool = True) -> bool:
        """Compile and record what latents of `height` x `width` need. Costs nothing when it is done.

        A failure is logged, and pictures of that size are decoded as if nobody had prepared it.

        Args:
            height: of the latents.
            width: of the latents.
            record: False only compiles. What is recorded keeps its memory (2.6 GB for a megapixel in full size), which
                a small card has better uses for.

        Returns:
            Whether that size is prepared; a CPU prepares nothing.
        """
        if self._recorder is None or self._layers is None:
            return False
        if (height, width) in (self._recorded if record else self._unrecorded):
            return True
        begun, what = time.perf_counter(), f"decoding {height} x {width} latents"
        shape = (1, self.config.latent_channels, height, width)
        example = torch.zeros(shape, device=self._device, dtype=self.dtype)
        with _measuring_convolutions():
            prepared = attempt(partial(self._prepare, example, self._recorder, record), f"{what} is not prepared")
        if prepared is None:
            self._renew_recorder()  # a pool that a failed capture wrote to cannot be written to again
            return False
        self._runs_layers = True
        _log.info("%s is prepared in %.1f s", what, time.perf_counter() - begun)
        return True

    def is_prepared(self, height: int, width: int) -> bool:
        """Whether latents of `height` x `width` are decoded by what was prepared for them."""
        return (height, width) in self._recorded or (height, width) in self._unrecorded

    def release(self) -> bool:
        """Drop what was prepared, because memory ran out.

        Returns:
            Whether anything was recorded, so that there is more memory now.
        """
        held_memory = len(self._recorded) > 0
        self._recorded.clear()
        self._unrecorded.clear()
        self._renew_recorder()  # with a pool that holds nothing
        return held_memory

    def _prepare(self, example: torch.Tensor, recorder: Recorder, record: bool) -> bool:
        if record:
            self._recorded.put(_size(example), RecordedFunction(self._run, (example,), recorder))
        else:
            self._run(example)
            self._unrecorded.add(_size(example))
        return True

    def _renew_recorder(self) -> None:
        if self._make_recorder:
            self._recorder = self._make_recorder()

    def _run(self, latents: torch.Tensor) -> torch.Tensor:
        assert self._layers is not None
        picture = latents.contiguous(memory_format=torch.channels_last)
        for layer in self._layers:
            picture = layer(picture)
        return picture


def _layers_of(vae: AutoencoderKL, maker: LayerMaker) -> list[Layer] | None:
    """None when the decoder is not of the kind that this is made for."""
    if vae.post_quant_conv is not None:
        _log.info("the stock VAE decodes: it has a convolution before its decoder")
        return None
    try:
        with torch.no_grad():
            return decoder_layers(vae.decoder, maker)
    except (ValueError, AttributeError) as error:
        _log.warning("the stock VAE decodes: %s", error)
        return None


def _maker_for(device: torch.device) -> Callable[[], LayerMaker]:
    return _gpu_layers if device.type == "cuda" else CpuLayers


def _gpu_layers() -> LayerMaker:
    return GpuLayers(compiled_functions())


@contextmanager
def _measuring_convolutions() -> Iterator[None]:
    """Let cuDNN try its kernels at each new size of convolution, and keep to the quickest."""
    cudnn: Any = torch.backends.cudnn
    before, cudnn.benchmark = cudnn.benchmark, True
    try:
        yield
    finally:
        cudnn.benchmark = before


def _size(latents: torch.Tensor) -> tuple[int, int]:
    height, width = latents.shape[-2:]
    return height, width
