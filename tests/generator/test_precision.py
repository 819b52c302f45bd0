"""What each card computes in; refusals name the setting, the card and the way out; and pictures made in fewer bits."""

import threading
from pathlib import Path

import numpy as np
import pytest

from zimage_ui.errors import SettingsError
from zimage_ui.generator.base import SILENT
from zimage_ui.generator.placement import Device
from zimage_ui.generator.precision import check_precision
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest, Precision

LOSSY = tuple(precision for precision in Precision if precision is not Precision.EXACT)
CPU = Device(torch_name="cpu", name="CPU, 2 threads", free_bytes=8 * 2**30, total_bytes=8 * 2**30)


def gpu(name: str, *capability: int) -> Device:
    major, minor = capability
    return Device(torch_name="cuda:0", name=name, free_bytes=2**34, total_bytes=2**34, capability=(major, minor))


CARDS = {
    "B200": (gpu("B200", 10, 0), {"exact", "fp8", "int8", "nf4"}),
    "RTX 5090": (gpu("RTX 5090", 12, 0), {"exact", "fp8", "int8", "nf4"}),
    "H100": (gpu("H100", 9, 0), {"exact", "fp8", "int8", "nf4"}),
    "RTX 4090": (gpu("RTX 4090", 8, 9), {"exact", "fp8", "int8", "nf4"}),
    "A100": (gpu("A100", 8, 0), {"exact", "int8", "nf4"}),
    "RTX 2080": (gpu("RTX 2080", 7, 5), {"exact", "int8", "nf4"}),
    "V100": (gpu("V100", 7, 0), {"exact", "nf4"}),
    "GTX 1080": (gpu("GTX 1080", 6, 1), {"exact", "nf4"}),
    "CPU": (CPU, {"exact"}),
}


@pytest.mark.parametrize(("device", "precisions"), CARDS.values(), ids=CARDS)
def test_a_card_has_the_precisions_of_its_tensor_cores(device: Device, precisions: set[str]):
    assert {precision for precision in Precision if device.computes_in(precision)} == precisions
    for precision in Precision:
        if precision in precisions:
            assert check_precision(precision, device)
        else:
            with pytest.raises(SettingsError):
                check_precision(precision, device)


def test_the_reason_names_the_dtype_or_the_card():
    device = gpu("NVIDIA H100", 9, 0)
    assert check_precision(Precision.EXACT, device) == "matrix products in bf16, as the stock pipeline computes them"
    assert "in FP8 on NVIDIA H100" in check_precision(Precision.FP8, device)
    assert "(NF4) and unpacked on NVIDIA H100" in check_precision(Precision.NF4, device)


@pytest.mark.parametrize(
    ("precision", "device", "message", "hint"),
    [
        ("fp8", gpu("NVIDIA A100", 8, 0), "capability 8.0, and FP8 came with 8.9, Ada", "exact, or to int8, which"),
        ("int8", gpu("Tesla V100", 7, 0), "capability 7.0, and INT8 came with 7.5, Turing", "Set it to exact."),
        ("nf4", CPU, "needs an NVIDIA GPU; on CPU, 2 threads", "Set it to exact."),
        ("fp8", CPU, "needs an NVIDIA GPU; on CPU, 2 threads", "Set it to exact."),
    ],
)
def test_a_refusal_says_what_is_wrong_and_what_to_do(precision: str, device: Device, message: str, hint: str):
    with pytest.raises(SettingsError) as refused:
        check_precision(Precision(precision), device)
    assert refused.value.message.startswith(f"ZIMAGE_PRECISION = {precision} ")
    assert message in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.model
def test_a_generator_refuses_before_it_looks_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("zimage_ui.generator.placement.read_device", lambda: CPU)
    generator = ZImageGenerator(str(tmp_path / "nowhere"), embedding_cache_bytes=1, precision=Precision.FP8)
    with pytest.raises(SettingsError, match="ZIMAGE_PRECISION"):
        generator.load(lambda _: None)


@pytest.mark.model
def test_an_exact_generator_says_so(tiny_folder: Path):
    generator = ZImageGenerator(str(tiny_folder), embedding_cache_bytes=1)
    info = generator.load(lambda _: None)
    assert (info.precision, info.precision_reason.split()[0]) == (Precision.EXACT, "matrix")
    generator.close()


@pytest.mark.model
@pytest.mark.parametrize("precision", LOSSY)
def test_a_lossy_generator_rounds_while_it_loads(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
):
    monkeypatch.setattr("zimage_ui.generator.precision.check_precision", lambda *_: "this CPU emulates it")
    generator = ZImageGenerator(str(tiny_folder), embedding_cache_bytes=1, precision=precision)
    info = generator.load(lambda _: None)
    assert (info.precision, info.precision_reason) == (precision, "this CPU emulates it")
    assert f"kept in {precision}" in info.memory_plan_reason
    assert generator._engine is not None
    assert generator._engine.components.rounded is not None
    generator.close()


@pytest.mark.model
@pytest.mark.parametrize("precision", LOSSY)
def test_a_lossy_picture_is_nearly_the_exact_one_and_says_what_it_is(tiny_folder: Path, precision: Precision):
    from zimage_ui.generator.engine import Engine
    from zimage_ui.generator.loading import load_components

    def picture(chosen: Precision) -> np.ndarray:
        components, _ = load_components(str(tiny_folder), progress=lambda _: None)
        request = GenerationRequest(prompt="a red cat", width=64, height=64, num_inference_steps=4, seed=7)
        result = Engine(components, 1 << 20, precision=chosen).generate(request, SILENT, threading.Event())
        assert result.precision is chosen
        return np.frombuffer(result.images[0].pixels, np.uint8).astype(int)

    difference = np.abs(picture(precision) - picture(Precision.EXACT))
    assert 0 < difference.mean() < 8


@pytest.mark.model
@pytest.mark.parametrize("precision", LOSSY)
def test_rounded_while_loading_it_draws_what_it_draws_rounded_afterwards(tiny_folder: Path, precision: Precision):
    from zimage_ui.generator.engine import Engine
    from zimage_ui.generator.loading import load_components

    def picture(at_load: Precision) -> bytes:
        components, _ = load_components(str(tiny_folder), progress=lambda _: None, precision=at_load)
        assert (components.rounded is None) == (at_load is Precision.EXACT)
        request = GenerationRequest(prompt="a red cat", width=64, height=64, num_inference_steps=4, seed=7)
        engine = (
            Engine(components, 1 << 20, precision=precision) if at_load is Precision.EXACT else Engine(components, 1)
        )
        result = engine.generate(request, SILENT, threading.Event())
        assert result.precision is precision
        return bytes(result.images[0].pixels)

    assert picture(precision) == picture(Precision.EXACT)
