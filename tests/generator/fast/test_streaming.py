"""Layers that live on the host compute what they compute on the device, and wait for their copies."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer
from tests.generator.fast.two_streams import ThreadedTransfer
from zimage_ui.generator.fast.compiled_step import compiled_functions
from zimage_ui.generator.fast.denoiser import FastTransformer
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import EAGER
from zimage_ui.generator.fast.streaming import spread, streamed_names

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
SHAPE = DenoiserShape(8, 8, 32)
TIMESTEPS = (1000.0, 700.0, 12.25)
LAYERS = 7


@pytest.fixture
def transfer() -> Iterator[ThreadedTransfer]:
    with ThreadedTransfer() as transfer:
        yield transfer


@pytest.fixture(scope="module")
def expected(noise_of):
    fast = FastTransformer(random_transformer(n_layers=LAYERS).bfloat16(), CPU, torch.bfloat16)
    return velocities(fast, noise_of)


@pytest.fixture(scope="module")
def noise_of():
    return lambda *shape: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def velocities(fast: FastTransformer, noise_of) -> torch.Tensor:
    latents, prompt = noise_of(1, 16, 8, 8), noise_of(9, 24)
    denoiser = fast.denoiser(SHAPE, TIMESTEPS, prompt.bfloat16())
    with torch.inference_mode():
        return torch.stack([denoiser.predict(latents, torch.tensor(time), step) for step, time in enumerate(TIMESTEPS)])


def streamed(count: int, transfer: ThreadedTransfer, **options) -> FastTransformer:
    model = random_transformer(n_layers=LAYERS).bfloat16()  # bf16 is never packed: resident and streamed are alike
    return FastTransformer(model, CPU, torch.bfloat16, streamed_layers=count, transfer=transfer, **options)


@pytest.mark.parametrize("count", [3, 4, 6, 7])
def test_streamed_layers_compute_the_same_bits(transfer, noise_of, expected, count):
    fast = streamed(count, transfer)
    assert fast.network.layers.streamed == count
    assert torch.equal(velocities(fast, noise_of), expected)
    assert torch.equal(velocities(fast, noise_of), expected)


@pytest.mark.parametrize("way", [(0, 7), (7, 0), (3, 7, 4, 0, 5), (5, 5)], ids=str)
def test_layers_leave_and_come_back_and_nothing_changes(transfer, noise_of, expected, way):
    fast = streamed(way[0], transfer)
    for count in way[1:]:
        with torch.inference_mode():  # as in the middle of a job
            fast.stream(count)
        assert fast.network.layers.streamed == count
        assert torch.equal(velocities(fast, noise_of), expected)


def test_the_model_and_its_streamed_weights_are_one(transfer):
    """So nothing is held twice."""
    model = random_transformer(n_layers=LAYERS)
    fast = FastTransformer(model, CPU, torch.float32, streamed_layers=LAYERS, transfer=transfer)
    homes = {home.bytes.untyped_storage().data_ptr() for home in fast.network.layers._homes.values()}
    assert len(homes) == LAYERS
    for place, layer in enumerate(model.layers):
        for name, parameter in layer.named_parameters():
            is_streamed = f"layers.{place}.{name}" in streamed_names(LAYERS, LAYERS)
            assert (parameter.untyped_storage().data_ptr() in homes) == is_streamed


def test_a_pass_that_fails_half_way_leaves_the_next_one_right(transfer, noise_of, expected, monkeypatch):
    fast = streamed(7, transfer)
    velocity, calls = fast.network.velocity, []

    def fail_once(*arguments):
        calls.append(1)
        if len(calls) == 7:  # two blocks of refining, then the fifth layer
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return EAGER.block(*arguments)

    with monkeypatch.context() as patch:
        functions = EAGER._replace(block=fail_once)
        patch.setattr(
            fast.network, "velocity", lambda plan, *arguments: velocity(replace(plan, functions=functions), *arguments)
        )
        with pytest.raises(torch.OutOfMemoryError):
            velocities(fast, noise_of)
    assert torch.equal(velocities(fast, noise_of), expected)


def test_without_room_for_slots_nothing_is_lost(transfer, noise_of, expected, monkeypatch):
    fast = streamed(3, transfer)
    slot = transfer.slot

    def full(size_bytes):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(transfer, "slot", full)
    with pytest.raises(torch.OutOfMemoryError):
        fast.stream(5)
    monkeypatch.setattr(transfer, "slot", slot)
    fast.stream(5)
    assert torch.equal(velocities(fast, noise_of), expected)


class TestPreparation:
    def test_streamed_passes_are_compiled_and_not_recorded(self, transfer, noise_of, expected):
        recorder, compiled = ReplayingRecorder(), []

        def functions():
            compiled.append(1)
            return EAGER

        fast = streamed(5, transfer, recorder=recorder, ways=[functions])
        assert fast.prepare(SHAPE)
        assert fast.prepare(SHAPE)
        assert fast.is_prepared(SHAPE)
        assert (len(compiled), recorder.recorded) == (1, 0)
        assert torch.equal(velocities(fast, noise_of), expected)

    @pytest.mark.parametrize(("count", "held"), [(0, True), (5, False)])
    def test_only_what_is_recorded_holds_memory(self, transfer, count, held):
        fast = streamed(count, transfer, recorder=ReplayingRecorder(), ways=[lambda: EAGER])
        assert not fast.release()
        fast.prepare(SHAPE)
        assert fast.release() is held

    def test_what_was_prepared_goes_when_layers_move_and_stays_when_none_does(self, transfer):
        fast = streamed(5, transfer, recorder=ReplayingRecorder(), ways=[lambda: EAGER])
        fast.prepare(SHAPE)
        fast.stream(5)
        assert fast.is_prepared(SHAPE)
        fast.stream(0)
        assert not fast.is_prepared(SHAPE)

    def test_streamed_and_resident_layers_are_compiled_once_each_and_not_again(
        self, transfer, noise_of, distance, expected
    ):
        graphs: list[int] = []

        def counting(graph, _examples):
            graphs.append(1)
            return graph.forward

        torch._dynamo.reset()
        functions = compiled_functions(backend=counting)
        fast = streamed(4, transfer, recorder=ReplayingRecorder(), ways=[lambda: functions])
        assert fast.prepare(SHAPE)
        first = len(graphs)
        assert first <= 6  # enter, leave, and the block: for image and for both, resident and streamed
        fast.stream(6)
        fast.prepare(SHAPE)
        assert len(graphs) == first
        assert distance(velocities(fast, noise_of), expected) < 0.02


@pytest.mark.parametrize(
    ("count", "places"),
    [(0, []), (3, [1, 5, 8]), (5, [1, 3, 5, 7, 9]), (10, list(range(10)))],
)
def test_streamed_layers_are_spread_evenly(count, places):
    assert spread(count, 10) == places


@pytest.mark.parametrize("count", range(1, 31))
def test_gaps_differ_by_one_at_most_also_from_round_to_round(count):
    places = spread(count, 30)
    assert len(set(places)) == count
    gaps = {after - before for before, after in pairwise([*places, places[0] + 30])}
    assert max(gaps) - min(gaps) <= 1


def test_the_names_are_those_of_the_stock_module():
    model = random_transformer(n_layers=4)
    names = streamed_names(4, 4)
    assert names <= {name for name, _ in model.named_parameters()}
    streamed_values = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    layers = sum(parameter.numel() for parameter in model.layers.parameters())
    assert streamed_values > 0.7 * layers
