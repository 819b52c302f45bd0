"""The fast decoder: the stock decoder's picture by either kind of layers, prepared or not, and whatever fails."""

import logging
import sys
from copy import deepcopy
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder
from zimage_ui.generator.fast import vae as vae_module
from zimage_ui.generator.fast.cpu_decoder import CpuLayers
from zimage_ui.generator.fast.decoder_layers import decoder_layers
from zimage_ui.generator.fast.gpu_decoder import Functions, GpuLayers
from zimage_ui.generator.fast.vae import FastDecoder

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
MAKERS = {"cpu": CpuLayers, "gpu": lambda: GpuLayers(Functions())}


@pytest.fixture(scope="module")
def bundled_vae() -> Any:
    from diffusers import AutoencoderKL

    from zimage_ui.generator.sources import BUNDLED_FOLDER

    vae = AutoencoderKL.from_pretrained(BUNDLED_FOLDER / "vae", local_files_only=True)
    return vae.eval().requires_grad_(False)


def copied(model: Any) -> Any:
    """A model as it is loaded: not made in inference mode, where it is used."""
    with torch.inference_mode(False):
        return deepcopy(model)


@pytest.fixture(params=["tiny", "bundled"])
def vae(request, stock, bundled_vae) -> Any:
    """With attention and without; a copy, because kernels are laid out anew in place."""
    return copied(stock.vae if request.param == "tiny" else bundled_vae)


def by_stock(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    return vae.decode(latents, return_dict=False)[0]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


class TestLayers:
    @pytest.mark.parametrize("maker", MAKERS)
    @pytest.mark.parametrize("size", [(8, 8), (6, 14)], ids=str)
    def test_decode_what_the_stock_decoder_decodes(self, vae, noise, distance, maker, size):
        latents = noise(1, 16, *size)
        expected = by_stock(vae, latents)
        decoder = FastDecoder(vae, CPU, ways=[MAKERS[maker]])
        picture = decoder._run(latents)
        assert distance(picture, expected) < 1e-5
        assert (picture - expected).abs().max() < 1 / 255 / 10

    @pytest.mark.parametrize("maker", MAKERS)
    def test_leave_the_latents_alone_and_the_stock_decoder_working(self, vae, noise, maker):
        latents = noise(1, 16, 8, 8)
        kept, expected = latents.clone(), by_stock(vae, latents)
        FastDecoder(vae, CPU, ways=[MAKERS[maker]]).decode(latents)
        assert torch.equal(latents, kept)
        assert torch.allclose(by_stock(vae, latents), expected, atol=1e-4)

    @pytest.mark.parametrize("maker", MAKERS)
    def test_are_all_of_the_decoders(self, vae, maker):
        resnets = sum(type(module).__name__ == "ResnetBlock2D" for module in vae.decoder.modules())
        attentions = sum(type(module).__name__ == "Attention" for module in vae.decoder.modules())
        layers = decoder_layers(vae.decoder, MAKERS[maker]())
        assert len(layers) == 1 + resnets + attentions + 3 + 1  # three of the four blocks double the picture

    def test_of_a_gpu_in_16_bit_are_no_further_from_exact_than_stock(self, vae, noise, distance):
        latents = noise(1, 16, 16, 16)
        exact = by_stock(vae, latents)
        rounded = vae.to(torch.bfloat16)
        theirs = by_stock(rounded, latents.bfloat16()).float()
        ours = FastDecoder(rounded, CPU, ways=[MAKERS["gpu"]])._run(latents.bfloat16()).float()
        assert distance(ours, exact) < 1.05 * distance(theirs, exact)

    def test_of_a_gpu_leave_a_doubled_pictures_bias_to_whatever_comes_next(self, bundled_vae, noise, distance):
        """To a block without a shortcut of its own, to one with it, and to the head: in the VAE no head comes next."""
        blocks = copied(bundled_vae).decoder.up_blocks
        double, plain, narrowing = blocks[0].upsamplers[0], blocks[0].resnets[1], blocks[1].resnets[0]
        double.conv.bias.data.copy_(2 * noise(len(double.conv.bias)))
        channels = double.conv.out_channels
        norm, colours = torch.nn.GroupNorm(8, channels), torch.nn.Conv2d(channels, 3, 3, padding=1)
        picture, make = noise(1, channels, 4, 6), GpuLayers(Functions())
        nexts = [
            (plain(double(picture), None), lambda: make.resnet(plain)),
            (narrowing(double(picture), None), lambda: make.resnet(narrowing)),
            (colours(torch.nn.functional.silu(norm(double(picture)))), lambda: make.head(norm, colours)),
        ]
        for expected, following in nexts:
            doubled, last = make.upsampler(double.conv), following()
            assert distance(last(doubled(picture)), expected) < 1e-5

    def test_share_the_stock_kernels_on_a_gpu(self, bundled_vae):
        vae = copied(bundled_vae)
        resnet = vae.decoder.up_blocks[-1].resnets[-1]
        addresses = resnet.conv1.weight.data_ptr()
        GpuLayers(Functions()).resnet(resnet)
        assert resnet.conv1.weight.is_contiguous(memory_format=torch.channels_last)
        assert resnet.conv1.weight.data_ptr() != addresses  # once, and then never again
        addresses = resnet.conv1.weight.data_ptr()
        GpuLayers(Functions()).resnet(resnet)
        assert resnet.conv1.weight.data_ptr() == addresses


class TestWithARecorder:
    """As on a GPU, but for what records."""

    @pytest.fixture
    def recorder(self) -> ReplayingRecorder:
        return ReplayingRecorder()

    @pytest.fixture
    def decoder(self, stock, recorder) -> FastDecoder:
        return FastDecoder(copied(stock.vae), CPU, recorder, [MAKERS["gpu"]])

    @pytest.fixture
    def stock_calls(self, decoder) -> list[int]:
        calls: list[int] = []
        decoder._vae.decoder.register_forward_hook(lambda *_: calls.append(1))
        return calls

    def test_the_stock_module_decodes_until_something_is_prepared(self, decoder, stock_calls, noise):
        decoder.decode(noise(1, 16, 8, 8))
        assert stock_calls == [1]
        assert decoder.prepare(8, 8)
        decoder.decode(noise(1, 16, 8, 8))
        decoder.decode(noise(1, 16, 6, 6))  # not prepared, but its functions are compiled
        assert stock_calls == [1]

    def test_what_is_prepared_is_replayed_and_right(self, decoder, recorder, noise):
        latents = noise(2, 16, 8, 12).split(1)
        expected = [by_stock(decoder._vae, one) for one in latents]
        assert decoder.prepare(8, 12)
        assert decoder.prepare(8, 12)
        assert (recorder.recorded, decoder.is_prepared(8, 12), decoder.is_prepared(12, 8)) == (1, True, False)
        pictures = [decoder.decode(one)[0] for one in latents]
        for picture, wanted in zip(pictures, expected, strict=True):
            assert torch.allclose(picture, wanted, atol=1e-5)

    def test_a_batch_is_the_stock_modules(self, decoder, stock_calls, noise):
        decoder.prepare(8, 8)
        assert len(decoder.decode(noise(2, 16, 8, 8))[0]) == 2
        assert stock_calls == [1]

    def test_released_it_is_prepared_anew(self, decoder, recorder):
        decoder.prepare(8, 8)
        decoder.release()
        assert not decoder.is_prepared(8, 8)
        assert decoder.prepare(8, 8)
        assert recorder.recorded == 2

    def test_without_recording_it_compiles_and_keeps_no_memory(self, decoder, recorder, stock_calls, noise):
        expected = by_stock(decoder._vae, noise(1, 16, 8, 8))
        stock_calls.clear()
        assert decoder.prepare(8, 8, record=False)
        assert decoder.prepare(8, 8, record=False)
        assert (recorder.recorded, decoder.is_prepared(8, 8)) == (0, True)
        assert torch.allclose(decoder.decode(noise(1, 16, 8, 8))[0], expected, atol=1e-5)
        assert stock_calls == []
        assert not decoder.release()
        assert not decoder.is_prepared(8, 8)

    def test_what_was_recorded_gives_memory_back(self, decoder):
        assert not decoder.release()
        assert decoder.prepare(8, 8)
        assert decoder.release()

    def test_a_failed_preparation_is_logged_and_loses_no_picture(self, stock, noise, caplog):
        class Broken:
            def record(self, work: Any) -> Any:
                raise RuntimeError("no compiler here")

        decoder = FastDecoder(copied(stock.vae), CPU, Broken(), [MAKERS["gpu"]])
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert not decoder.prepare(8, 8)
        assert "no compiler here" in caplog.text
        assert torch.equal(decoder.decode(noise(1, 16, 8, 8))[0], by_stock(decoder._vae, noise(1, 16, 8, 8)))

    def test_what_fails_later_is_decoded_by_the_stock_module(self, decoder, stock_calls, noise, caplog, monkeypatch):
        decoder.prepare(8, 8)

        def fail(latents: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("cannot compile anew")

        monkeypatch.setattr(decoder, "_run", fail)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            decoder.decode(noise(1, 16, 6, 6))
            decoder.decode(noise(1, 16, 8, 8))
        assert caplog.text.count("decodes from now on") == 1
        assert stock_calls == [1, 1]

    def test_full_memory_is_not_hidden(self, decoder, noise, monkeypatch):
        decoder.prepare(8, 8)

        def fail(latents: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(decoder, "_run", fail)
        with pytest.raises(torch.OutOfMemoryError):
            decoder.decode(noise(1, 16, 6, 6))


def broken_layers() -> GpuLayers:
    """Made like any others; their kernels fail when they first run."""

    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel of our own here")

    return GpuLayers(Functions(join=fail))


class TestWays:
    """Of making the layers on a GPU: the first that works, for each size that is prepared."""

    @pytest.fixture
    def made(self) -> list[str]:
        return []

    @pytest.fixture
    def decoder_by(self, stock, made) -> Any:
        def way(name: str, make: Any) -> Any:
            def layers() -> Any:
                made.append(name)
                return make()

            return layers

        def decoder(**makers: Any) -> FastDecoder:
            ways = [way(name, make) for name, make in makers.items()]
            return FastDecoder(copied(stock.vae), CPU, ReplayingRecorder(), ways)

        return decoder

    def test_what_is_not_needed_is_not_made(self, decoder_by, made):
        decoder = decoder_by(triton=MAKERS["gpu"], compiled=MAKERS["gpu"])
        assert decoder.prepare(8, 8)
        assert decoder.prepare(6, 6)
        assert made == ["triton"]

    @pytest.mark.parametrize("record", [True, False])
    def test_where_one_fails_the_next_is_taken(self, decoder_by, made, noise, caplog, record):
        decoder = decoder_by(triton=broken_layers, compiled=MAKERS["gpu"])
        expected = [by_stock(decoder._vae, noise(1, 16, *size)) for size in ((8, 8), (6, 6))]
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert decoder.prepare(8, 8, record=record)
        assert "no kernel of our own here" in caplog.text
        stock_calls: list[int] = []
        decoder._vae.decoder.register_forward_hook(lambda *_: stock_calls.append(1))
        for size, picture in zip(((8, 8), (6, 6)), expected, strict=True):  # the second was not prepared
            assert torch.allclose(decoder.decode(noise(1, 16, *size))[0], picture, atol=1e-5)
        assert (stock_calls, made) == ([], ["triton", "compiled"])

    def test_each_makes_its_layers_once_for_all_sizes(self, decoder_by, made):
        decoder = decoder_by(triton=broken_layers, compiled=MAKERS["gpu"])
        assert all(decoder.prepare(*size) for size in ((8, 8), (6, 6), (6, 8)))
        assert made == ["triton", "compiled"]

    def test_one_that_cannot_even_be_made_is_passed_over(self, decoder_by, made, noise):
        def missing() -> Any:
            raise ImportError("no compiler here")

        decoder = decoder_by(triton=broken_layers, compiled=missing, eager=MAKERS["gpu"])
        assert decoder.prepare(8, 8)
        assert made == ["triton", "compiled", "eager"]

    def test_where_all_fail_the_stock_module_decodes(self, decoder_by, noise):
        decoder = decoder_by(triton=broken_layers, compiled=broken_layers)
        assert not decoder.prepare(8, 8)
        assert not decoder.is_prepared(8, 8)
        latents = noise(1, 16, 8, 8)
        assert torch.equal(decoder.decode(latents)[0], by_stock(decoder._vae, latents))


class TestUsualWays:
    """On a device that is not here."""

    CUDA = torch.device("cuda")

    @pytest.fixture
    def triton(self, monkeypatch) -> Any:
        """A stand-in for our own kernels' module: Triton itself comes with torch's builds for GPUs alone."""
        functions = Functions()
        module = ModuleType("triton_decoder")
        module.triton_functions = lambda: functions  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "zimage_ui.generator.fast.triton_decoder", module)
        monkeypatch.setattr(vae_module, "has_triton", lambda device: device.type == "cuda")
        return functions

    def test_kernels_of_our_own_come_before_compiled_ones(self, triton):
        first, second = vae_module._ways_on(self.CUDA)
        assert first()._functions is triton
        assert second is vae_module._compiled

    def test_without_triton_all_is_compiled(self, monkeypatch):
        monkeypatch.setattr(vae_module, "has_triton", lambda _: False)
        assert vae_module._ways_on(self.CUDA) == (vae_module._compiled,)

    def test_a_triton_that_cannot_be_loaded_is_none(self, triton, monkeypatch, caplog):
        monkeypatch.setitem(sys.modules, "zimage_ui.generator.fast.triton_decoder", None)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert vae_module._ways_on(self.CUDA) == (vae_module._compiled,)
        assert "decoding does without kernels of our own" in caplog.text

    def test_a_cpu_has_its_own_layers(self, triton):
        assert vae_module._ways_on(CPU) == (CpuLayers,)


def test_another_kind_of_decoder_is_left_to_the_stock_module(stock, noise, caplog):
    vae = copied(stock.vae)
    vae.decoder.mid_block.resnets[0].output_scale_factor = 2.0
    latents = noise(1, 16, 8, 8)
    with caplog.at_level(logging.WARNING, "zimage_ui"):
        decoder = FastDecoder(vae, CPU)
    assert "not a VAE's resnet block" in caplog.text
    assert torch.equal(decoder.decode(latents)[0], by_stock(vae, latents))
    assert not decoder.prepare(8, 8)


def test_a_cpu_prepares_nothing(stock):
    assert not FastDecoder(stock.vae, CPU).prepare(8, 8)
