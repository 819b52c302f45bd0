"""Where the text encoder lives: its layers visit the device one at a time, and come home whatever happens."""

from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from zimage_ui.generator.components import Components
from zimage_ui.generator.encoding import without_last_layer
from zimage_ui.generator.fast.projections import fused
from zimage_ui.generator.fast.text_encoder import FUSED, encode_tokens
from zimage_ui.generator.residence import TextEncoderResidence, VisitingLayers

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
IDS = [1, 2, 3, 4, 5]


@pytest.fixture
def text_encoder(components: Components) -> Any:
    return replace(components, text_encoder=without_last_layer(components.text_encoder)).text_encoder


def addresses(module: Any) -> list[int]:
    return [parameter.data_ptr() for parameter in module.parameters()]


@pytest.mark.parametrize("inference", [True, False])
def test_layers_compute_on_fetched_copies_one_at_a_time_and_come_home(text_encoder, inference):
    home = addresses(text_encoder)
    with torch.inference_mode(inference):
        expected = encode_tokens(text_encoder, IDS, CPU)
    visits: VisitingLayers
    seen: list[tuple[int, bool]] = []

    def watch(layer: Any, _inputs: Any) -> None:
        seen.append((visits.away, any(address in home for address in addresses(layer))))

    visits = VisitingLayers(text_encoder.layers, torch.Tensor.clone)
    handles = [layer.register_forward_pre_hook(watch) for layer in text_encoder.layers]
    try:
        with torch.inference_mode(inference):
            visited = encode_tokens(text_encoder, IDS, CPU)
    finally:
        visits.end()
        for handle in handles:
            handle.remove()
    assert torch.equal(visited, expected)
    assert seen == [(1, False)] * len(text_encoder.layers)  # one away, and nothing of it computed at home
    assert addresses(text_encoder) == home
    assert visits.away == 0


def test_a_layer_that_fails_on_its_visit_comes_home(text_encoder):
    home = addresses(text_encoder)
    broken = text_encoder.layers[1].mlp.register_forward_pre_hook(_run_out)
    visits = VisitingLayers(text_encoder.layers, torch.Tensor.clone)
    try:
        with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
            encode_tokens(text_encoder, IDS, CPU)
    finally:
        broken.remove()
        visits.end()
    assert addresses(text_encoder) == home


def test_a_fetch_that_fails_half_way_leaves_the_layer_at_home(text_encoder):
    home = addresses(text_encoder)
    fetched: list[int] = []

    def fetch(weight: torch.Tensor) -> torch.Tensor:
        if len(fetched) == 3:
            _run_out()
        fetched.append(1)
        return weight.clone()

    visits = VisitingLayers(text_encoder.layers, fetch)
    try:
        with torch.inference_mode(), pytest.raises(torch.OutOfMemoryError):
            encode_tokens(text_encoder, IDS, CPU)
    finally:
        visits.end()
    assert addresses(text_encoder) == home
    assert visits.away == 0


def test_once_ended_nothing_visits(text_encoder):
    def fetch(weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError("visited")

    VisitingLayers(text_encoder.layers, fetch).end()
    assert encode_tokens(text_encoder, IDS, CPU).shape[0] == len(IDS)


def test_on_a_cpu_home_and_device_are_one(text_encoder):
    home = addresses(text_encoder)
    residence = TextEncoderResidence(text_encoder, CPU)
    for resident in (False, True, True, False):
        residence.settle(resident=resident)
        assert addresses(text_encoder) == home
        assert residence.is_at_home


def test_between_two_places_it_is_at_home_in_neither(text_encoder, monkeypatch):
    residence = TextEncoderResidence(text_encoder, torch.device("cuda"))
    monkeypatch.setattr(residence, "_come", lambda: None)
    assert not residence.is_at_home
    residence.settle(resident=True)
    assert residence.is_at_home
    monkeypatch.setattr(residence, "_leave", _run_out)
    with pytest.raises(torch.OutOfMemoryError):
        residence.settle(resident=False)
    assert (residence.is_at_home, residence.visits) == (False, False)


def test_away_from_a_gpu_each_layer_is_one_locked_piece_of_host_memory(text_encoder, driver, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**11))
    text_encoder = deepcopy(text_encoder)
    with torch.inference_mode():
        expected = encode_tokens(text_encoder, IDS, CPU)
    residence = TextEncoderResidence(text_encoder, CPU)
    residence._leave()  # what `settle` does where host and device are two
    assert len(driver.locked) == len(text_encoder.layers)
    for layer in text_encoder.layers:
        (storage,) = {parameter.untyped_storage().data_ptr() for parameter in layer.parameters()}
        assert storage in driver.locked
    with torch.inference_mode():
        assert torch.equal(encode_tokens(text_encoder, IDS, CPU), expected)
    assert residence._visits is not None
    residence._visits.end()


def test_matrices_of_one_product_lie_below_each_other_wherever_a_layer_goes(text_encoder, driver):
    text_encoder = deepcopy(text_encoder)
    residence = TextEncoderResidence(text_encoder, CPU)
    residence._leave()
    residence._come()
    for layer in text_encoder.layers:
        before = [layer.get_parameter(group[0]).data_ptr() for group in FUSED]
        assert [whole.data_ptr() for whole in fused(layer, FUSED)] == before


def test_a_host_that_is_nearly_full_locks_nothing(text_encoder, driver, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=10**9))
    residence = TextEncoderResidence(deepcopy(text_encoder), CPU)
    residence._leave()
    assert driver.locked == {}


def _run_out(*_: Any) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")
