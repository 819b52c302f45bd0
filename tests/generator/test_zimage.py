"""The generator as everybody else sees it."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zimage_ui.errors import NotReadyError
from zimage_ui.generator.base import Generator, ShapeState, ShapeStatus, WarmupPhase, WarmupProgress
from zimage_ui.generator.zimage import ZImageGenerator
from zimage_ui.request import GenerationRequest, Precision


def generator_for(model: Path | str) -> ZImageGenerator:
    return ZImageGenerator(str(model), embedding_cache_bytes=1 << 20)


def test_making_one_imports_nothing_heavy():
    code = """
import sys
from zimage_ui.generator.zimage import ZImageGenerator
ZImageGenerator("auto", embedding_cache_bytes=1).cache_stats()
print([name for name in ("torch", "diffusers", "transformers", "numpy") if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.strip() == "[]"


def test_before_loading_it_says_so():
    generator: Generator = generator_for("auto")
    assert generator.info is None
    assert generator.cache_stats().capacity_bytes == 1 << 20
    with pytest.raises(NotReadyError):
        generator.generate(GenerationRequest(prompt="a cat", seed=1))
    with pytest.raises(NotReadyError):
        generator.warmup(lambda report: None)
    with pytest.raises(NotReadyError):
        generator.prepare_next(lambda statuses: None)
    assert generator.shapes() == ()
    generator.close()


@pytest.mark.model
def test_whoever_prepares_the_next_shape_is_asked_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    generator = generator_for("auto")
    preparation = SimpleNamespace(next=lambda *given: asked.append(given) or True)
    monkeypatch.setattr(generator, "_loaded", lambda: None)
    monkeypatch.setattr(generator, "_preparation", preparation)
    changed, somebody_waits = print, all
    assert generator.prepare_next(changed, somebody_waits)
    assert asked == [(changed, somebody_waits)]


@pytest.mark.model
@pytest.mark.parametrize("precision", Precision, ids=str)
def test_libraries_of_kernels_are_imported_while_weights_are_read_where_they_are_of_use(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading waits for them: a mode that has kernels of our own in their places is not to."""
    order: list[str] = []

    @contextmanager
    def imported_meanwhile(device: Any) -> Iterator[None]:
        order.append("begun")
        yield
        order.append("ended")

    def load_components(*_: Any, **__: Any) -> Any:
        order.append("read")
        raise NotReadyError("nothing to read")

    monkeypatch.setattr("zimage_ui.generator.fast.cute_kernels.imported_meanwhile", imported_meanwhile)
    monkeypatch.setattr("zimage_ui.generator.loading.load_components", load_components)
    monkeypatch.setattr("zimage_ui.generator.precision.check_precision", lambda *_: "asked for")
    with pytest.raises(NotReadyError):
        ZImageGenerator("auto", embedding_cache_bytes=1, precision=precision).load(lambda report: None)
    assert order == (["begun", "read"] if precision is Precision.EXACT else ["read"])


@pytest.mark.model
def test_from_a_folder_to_a_picture(tiny_folder: Path, recorder: Any) -> None:
    from zimage_ui.generator.placement import read_device

    generator = generator_for(tiny_folder)
    heard: list[WarmupProgress] = []
    info = generator.load(heard.append)
    assert generator.info is info
    assert info.device == read_device().torch_name
    generator.warmup(heard.append)
    assert heard[-1].phase is WarmupPhase.WARMING
    assert heard[-1].progress == 1.0
    request = GenerationRequest(prompt="一只猫", width=64, height=96, seed=3, num_inference_steps=2)
    result = generator.generate(request, recorder)
    assert (result.images[0].width, result.images[0].height) == (64, 96)
    assert all(preview is not None for preview in recorder.previews)
    assert generator.cache_stats().misses == 1
    generator.close()
    assert generator.info is None
    with pytest.raises(NotReadyError):
        generator.generate(request)


@pytest.mark.model
def test_torch_notes_which_sizes_vary_only_where_something_is_compiled(tiny_folder: Path) -> None:
    from torch.compiler import config

    from zimage_ui.generator.placement import read_device

    generator = generator_for(tiny_folder)
    with config.patch(job_id=None):
        generator.load(lambda report: None)
        assert (config.job_id is not None) == read_device().is_gpu
    generator.close()


@pytest.mark.model
def test_shapes_are_prepared_piece_by_piece_and_those_asked_for_come_first(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.generator.fast.conftest import ReplayingRecorder
    from zimage_ui.generator.fast.step import EAGER

    monkeypatch.setattr("zimage_ui.generator.fast.denoiser._compiled", lambda: EAGER)
    monkeypatch.setattr("zimage_ui.generator.engine.recorder_for", lambda device: ReplayingRecorder())
    generator = generator_for(tiny_folder)
    sizes = generator.load(lambda report: None).profile.sizes
    assert {each.state for each in generator.shapes()} == {ShapeState.COLD}
    generator.warmup(lambda report: None)
    assert {(each.width, each.height) for each in generator.shapes() if each.state is ShapeState.WARM} == {sizes[0]}
    request = GenerationRequest(prompt="a cat", width=64, height=96, seed=3, num_inference_steps=1)
    assert generator.generate(request).shape_warm is False
    heard: list[tuple[ShapeStatus, ...]] = []
    while not heard or heard[-1][-1].state is not ShapeState.WARM:
        assert generator.prepare_next(heard.append)
    assert [(each.width, each.height) for each in heard[0] if each.state is ShapeState.PREPARING] == [(64, 96)]
    assert generator.generate(request).shape_warm is True
    while generator.prepare_next(heard.append):
        pass
    assert {each.state for each in generator.shapes()} == {ShapeState.WARM}
    assert generator.cache_stats().hits == 1
    generator.close()
    assert generator.shapes() == ()


@pytest.mark.model
def test_what_no_engine_needs_of_the_text_encoder_is_gone_once_it_is_loaded(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zimage_ui.generator import loading

    dropped: list[weakref.ref[Any]] = []
    load_components = loading.load_components

    def load(*arguments: Any, **options: Any) -> Any:
        loaded = load_components(*arguments, **options)
        dropped.append(weakref.ref(loaded[0].text_encoder.layers[-1].mlp.up_proj.weight))
        return loaded

    monkeypatch.setattr(loading, "load_components", load)
    generator = generator_for(tiny_folder)
    generator.load(lambda report: None)
    gc.collect()
    assert [weight() for weight in dropped] == [None]
    generator.close()
