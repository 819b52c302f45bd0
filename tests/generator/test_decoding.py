"""Decoding: the stock pipeline's pixels, in host memory; in tiles without a seam; cancelled between two pictures."""

import threading
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from zimage_ui.errors import GenerationError, JobCancelledError
from zimage_ui.generator import decoding
from zimage_ui.generator.decoding import TILE, TILE_OVERLAP, decode, decode_tensor, tile_starts, to_rgb8

pytestmark = pytest.mark.model


def latents_of(pictures: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((pictures, 16, height, width), generator=torch.Generator().manual_seed(seed))


def stock_pixels(stock: Any, latents: torch.Tensor) -> list[np.ndarray]:
    with torch.inference_mode():
        scaled = latents.to(stock.vae.dtype) / stock.vae.config.scaling_factor + stock.vae.config.shift_factor
        pictures = stock.vae.decode(scaled, return_dict=False)[0]
    return [np.asarray(picture) for picture in stock.image_processor.postprocess(pictures, output_type="pil")]


def decoded(
    vae: Any,
    latents: torch.Tensor,
    *,
    tiled: bool = False,
    cancel: threading.Event | None = None,
    settle: Callable[[], object] = lambda: None,
):
    with torch.inference_mode():
        return decode(vae, latents, range(len(latents)), tiled=tiled, cancel=cancel or threading.Event(), settle=settle)


def test_pixels_are_the_stock_pipelines(stock, as_array):
    latents = latents_of(1, 8, 12)
    (image,) = decoded(stock.vae, latents)
    assert np.array_equal(as_array(image), stock_pixels(stock, latents)[0])


def test_a_batch_is_the_same_as_each_alone(stock, as_array):
    latents = latents_of(3, 8, 8)
    together = decoded(stock.vae, latents)
    assert [(image.index, image.seed) for image in together] == [(0, 0), (1, 1), (2, 2)]
    for image, alone in zip(together, latents.split(1), strict=True):
        assert image.pixels == decoded(stock.vae, alone)[0].pixels
    for image, expected in zip(together, stock_pixels(stock, latents), strict=True):
        assert np.abs(as_array(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("ahead", "order"), [(False, "settled one two"), (True, "one settled two")])
@pytest.mark.parametrize("pictures", [1, 2])
def test_the_latents_are_waited_for_once_and_a_gpu_has_work_meanwhile(stock, monkeypatch, ahead, order, pictures):
    met = []

    def decode_tensor(vae, latents, *, tiled):
        met.append(("one", "two")[sum(each != "settled" for each in met)])
        return torch.zeros(1, 3, 8, 8)

    monkeypatch.setattr(decoding, "works_meanwhile", lambda device: ahead)
    monkeypatch.setattr(decoding, "decode_tensor", decode_tensor)
    decoded(stock.vae, latents_of(pictures, 8, 8), settle=lambda: met.append("settled"))
    assert met == [each for each in order.split() if pictures == 2 or each != "two"]


def test_bfloat16_pixels_are_within_one_of_the_stock_pipelines(stock, tiny_folder, as_array):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(tiny_folder, subfolder="vae", dtype=torch.bfloat16)
    latents = latents_of(1, 8, 12)
    pipe = SimpleNamespace(vae=vae, image_processor=stock.image_processor)
    (image,) = decoded(vae, latents)
    assert np.abs(as_array(image).astype(int) - stock_pixels(pipe, latents)[0]).max() <= 1


def test_values_beyond_the_range_are_clipped():
    values = torch.tensor([-9.0, -1.0, 0.0, 1.0, 9.0]).expand(1, 3, 1, 5)
    assert to_rgb8(values)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_pixels_are_a_flat_read_only_buffer_of_the_right_size(stock):
    (image,) = decoded(stock.vae, latents_of(1, 8, 12))
    assert isinstance(image.pixels, memoryview)
    assert image.pixels.readonly
    assert image.pixels.format == "B"
    assert image.pixels.nbytes == len(image.pixels) == image.width * image.height * 3
    assert (image.width, image.height) == (96, 64)


def test_cancel_stops_before_the_next_picture(stock):
    cancel, calls = threading.Event(), []

    def count(*_: Any) -> None:
        calls.append(1)
        cancel.set()

    handle = stock.vae.decoder.register_forward_hook(count)
    try:
        with pytest.raises(JobCancelledError):
            decoded(stock.vae, latents_of(3, 8, 8), cancel=cancel)
    finally:
        handle.remove()
    assert len(calls) == 1


def test_numbers_that_are_not_finite_make_an_error_not_a_black_picture(stock):
    latents = latents_of(2, 8, 8)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(GenerationError, match="VAE"):
        decoded(stock.vae, latents)


class TestTiles:
    @pytest.mark.parametrize("length", [1, 63, 64, 65, 80, 112, 113, 160, 256])
    def test_are_whole_and_overlap_and_cover_everything(self, length):
        starts = tile_starts(length, TILE, TILE_OVERLAP)
        assert starts[0] == 0
        assert starts[-1] + min(TILE, length) == length
        assert all(later - earlier <= TILE - TILE_OVERLAP for earlier, later in pairwise(starts))
        assert starts == sorted(set(starts))

    def test_a_small_picture_is_decoded_in_one_piece(self, stock):
        latents = latents_of(1, 8, TILE)
        assert decoded(stock.vae, latents, tiled=True)[0].pixels == decoded(stock.vae, latents)[0].pixels

    def test_no_piece_is_larger_than_a_tile(self, stock):
        shapes = []
        handle = stock.vae.decoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[-2:]))
        try:
            (image,) = decoded(stock.vae, latents_of(1, 80, 120), tiled=True)
        finally:
            handle.remove()
        assert (image.width, image.height) == (960, 640)
        assert shapes == [(TILE, TILE)] * 6

    def test_of_a_decoder_that_looks_only_nearby_join_without_a_trace(self):
        class Nearby:
            """Doubles each position, so that whole and tiles must agree up to the rounding of the blend."""

            dtype = torch.float32
            config = SimpleNamespace(scaling_factor=1.0, shift_factor=0.0, block_out_channels=[1, 1, 1, 1])

            def decode(self, latents: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
                return (torch.nn.functional.interpolate(latents[:, :3], scale_factor=8),)

        latents = latents_of(1, 100, 130)
        whole, tiles = (decode_tensor(Nearby(), latents, tiled=tiled) for tiled in (False, True))
        assert torch.allclose(whole, tiles, atol=1e-5)

    def test_show_the_same_picture_as_the_whole(self, stock, as_array):
        # every tile is normalised by itself, so this cannot be exact; random weights are the hardest case
        latents = torch.nn.functional.interpolate(latents_of(1, 10, 10), size=(80, 80), mode="bilinear")
        whole, tiles = (as_array(decoded(stock.vae, latents, tiled=tiled)[0]).astype(float) for tiled in (False, True))
        assert np.corrcoef(whole.ravel(), tiles.ravel())[0, 1] > 0.9
