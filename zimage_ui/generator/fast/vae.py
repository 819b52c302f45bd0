"""The VAE's decoder made fast: the same pictures as the stock module's, up to rounding.

On a CPU its layers are those of `cpu_decoder`, from the first picture on. On a GPU they are those of `gpu_decoder`,
once a size has been prepared: preparing makes the kernels that run between the convolutions (once, for all sizes), lets
cuDNN measure which of its kernels is the quickest for each convolution, and records a CUDA graph of that size. Other
sizes then run the same layers without a graph. The kernels are our own (`triton_decoder`); where those do not work, a
compiler's. Before, and whenever anything goes wrong, the stock module decodes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.cpu_decoder import CpuLayers
from zimage_ui.generator.fast.decoder_layers import Layer, LayerMaker, decoder_layers
from zimage_ui.generator.fast.gpu_decoder import GpuLayers, compiled_functions
from zimage_ui.generator.fast.graphs import RecordedFunction, Recorder, Recordings, recorder_for
from zimage_ui.generator.fast.parts import has_triton

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

_log = logging.getLogger(__name__)

# Sizes of picture that are in use at a time: as many as `preparation` asks for at the most. All graphs share memory.
_KEPT_SIZES = 16


class _PassKind(NamedTuple):
    """What a pass through the layers was prepared for: a size of latents, and whether as a graph."""

    height: int
    width: int
    recorded: bool


class FastDecoder:
    """Stands in for an `AutoencoderKL` wherever pictures are decoded.

    Attributes:
        config, dtype: the VAE's.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        device: torch.device,
        recorder: Recorder | None = None,
        ways: Sequence[Callable[[], LayerMaker]] | None = None,
    ) -> None:
        """Lay out the weights of `vae`.

        Args:
            vae: on `device`, for inference. On a GPU its decoder's kernels become channels_last in place.
            device: where it computes.
            recorder: records graphs; None is CUDA graphs on a GPU and nothing elsewhere.
            ways: of making the layers, tried in this order for each size that is prepared until one works; where
                nothing is recorded, the first. None is with kernels of our own, where there are any, then compiled.
        """
        self.config, self.dtype = vae.config, vae.dtype
        self._vae = vae
        self._device = device
        # Each makes its layers once, when they are first needed: they take memory.
        makers = tuple(cache(partial(_layers_of, vae, way)) for way in ways or _ways_on(device))
        layers = makers[0]()
        self._passes: Recordings[_PassKind, Callable[[], list[Layer] | None]] = Recordings(
            _KEPT_SIZES, recorder or recorder_for(device), makers
        )
        self._is_supported = layers is not None
        # Those that have worked here.
        self._layers = None if self._passes.can_record else layers

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> tuple[torch.Tensor]:
        """What the VAE makes of scaled and shifted `latents`, as `AutoencoderKL.decode` answers without `return_dict`.

        Raises:
            torch.OutOfMemoryError: there is too little memory.
        """
        assert not return_dict
        if self._layers is None or len(latents) > 1:
            return self._vae.decode(latents, return_dict=False)
        height, width = latents.shape[-2:]
        recorded = self._passes.get(_PassKind(height, width, recorded=True))
        if recorded is not None:
            return (recorded(latents),)
        if not self._passes.can_record:
            return (self._run(latents),)
        picture = attempt(
            partial(self._run, latents), "the stock VAE decodes from now on", but=(torch.OutOfMemoryError,)
        )
        if picture is None:
            self._layers, self._is_supported = None, False
            self.release()
            return self._vae.decode(latents, return_dict=False)
        return (picture,)

    @torch.inference_mode()
    def prepare(self, height: int, width: int, *, record: bool = True) -> bool:
        """Make the kernels that latents of `height` x `width` need, and record them. Costs nothing when it is done.

        A failure is logged, and pictures of that size are decoded as if nobody had prepared it.

        Args:
            height: of the latents.
            width: of the latents.
            record: False only makes the kernels. What is recorded keeps its memory (2.6 GB for a megapixel in full
                size), which a small card has better uses for.

        Returns:
            Whether that size is prepared; a CPU prepares nothing.
        """
        kind, what = _PassKind(height, width, record), f"decoding {height} x {width} latents"
        if not self._is_supported:
            return False
        with _measuring_convolutions():
            return self._passes.prepare(kind, partial(self._record, kind), what)

    def is_prepared(self, height: int, width: int) -> bool:
        """Whether latents of `height` x `width` are decoded by what was prepared for them."""
        return any(_PassKind(height, width, recorded) in self._passes for recorded in (True, False))

    def keep_only(self, sizes: Collection[tuple[int, int]]) -> None:
        """Drop what was prepared for latents of all other sizes, (height, width): nobody asks for them any more."""
        self._passes.keep_only(lambda kind: (kind.height, kind.width) in sizes)

    def release(self) -> bool:
        """Drop what was prepared, because memory ran out.

        Returns:
            Whether anything was recorded, so that there is more memory now.
        """
        return self._passes.release()

    def _record(self, kind: _PassKind, way: Callable[[], list[Layer] | None], recorder: Recorder) -> Layer:
        layers = way()
        assert layers is not None  # one maker of layers was given this decoder, and served it
        shape = (1, self.config.latent_channels, kind.height, kind.width)
        example = torch.zeros(shape, device=self._device, dtype=self.dtype)
        run: Layer = partial(_through, layers)
        if kind.recorded:
            run = RecordedFunction(run, (example,), recorder)
        else:
            run(example)
        self._layers = layers
        return run

    def _run(self, latents: torch.Tensor) -> torch.Tensor:
        assert self._layers is not None
        return _through(self._layers, latents)


def _layers_of(vae: AutoencoderKL, way: Callable[[], LayerMaker]) -> list[Layer] | None:
    """None when the decoder is not of the kind that this is made for."""
    if vae.post_quant_conv is not None:
        _log.info("the stock VAE decodes: it has a convolution before its decoder")
        return None
    maker = way()
    try:
        with torch.no_grad():
            return decoder_layers(vae.decoder, maker)
    except (ValueError, AttributeError) as error:
        _log.warning("the stock VAE decodes: %s", error)
        return None


def _through(layers: Sequence[Layer], latents: torch.Tensor) -> torch.Tensor:
    picture = latents.contiguous(memory_format=torch.channels_last)
    for layer in layers:
        picture = layer(picture)
    return picture


def _ways_on(device: torch.device) -> tuple[Callable[[], LayerMaker], ...]:
    if device.type != "cuda":
        return (CpuLayers,)
    by_triton = attempt(_with_triton, "decoding does without kernels of our own") if has_triton(device) else None
    return (_compiled,) if by_triton is None else (lambda: by_triton, _compiled)


def _with_triton() -> LayerMaker:
    from zimage_ui.generator.fast.triton_decoder import triton_functions

    return GpuLayers(triton_functions())


def _compiled() -> LayerMaker:
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
