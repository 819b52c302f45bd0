"""Rounding while reading: the same bits as rounding afterwards, and one matrix in full precision at a time."""

import shutil
import weakref
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.generator.fast.conftest import ReplayingRecorder, random_transformer
from tests.generator.fast.two_streams import ThreadedTransfer
from zimage_ui.generator import loading, weights
from zimage_ui.generator.components import Components, MemoryPlan
from zimage_ui.generator.fast import four_bits, lossy_projections
from zimage_ui.generator.fast.denoiser import FastTransformer, caption_length
from zimage_ui.generator.fast.four_bits import Nf4Projection
from zimage_ui.generator.fast.lossy_projections import Fp8Projection, Int8Projection
from zimage_ui.generator.fast.projections import BlockProjections, PlainProjection
from zimage_ui.generator.fast.rounding import RoundedBlocks
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import EAGER, StepFunctions
from zimage_ui.generator.fast.streaming import spread, streamed_names
from zimage_ui.generator.loading import load_components
from zimage_ui.generator.page_locked import HostBuffer
from zimage_ui.generator.placement import Device
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
LAYERS = 5
TIMESTEPS = (1000.0, 913.5, 12.25)
KINDS = {Precision.FP8: Fp8Projection, Precision.INT8: Int8Projection, Precision.NF4: Nf4Projection}


@pytest.fixture(params=KINDS, ids=str)
def precision(request: pytest.FixtureRequest) -> Precision:
    return request.param


@pytest.fixture
def transfer() -> Iterator[ThreadedTransfer]:
    with ThreadedTransfer() as transfer:
        yield transfer


@pytest.fixture(autouse=True)
def a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made for a GPU, and carried out on the CPU."""
    card = Device(torch_name="cpu", name="a card", free_bytes=10**10, total_bytes=10**10, capability=(8, 9))
    monkeypatch.setattr(loading, "read_device", lambda: card)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from zimage_ui.generator.untrained import TINY, build_untrained_model

    size = replace(TINY, transformer=TINY.transformer | {"n_layers": LAYERS})
    return build_untrained_model(tmp_path_factory.mktemp("model") / "five", size)


def loaded(folder: Path, precision: Precision) -> Components:
    return load_components(str(folder), progress=lambda _: None, precision=precision)[0]


def rounded(model: Any, precision: Precision, streamed_layers: int = 0) -> RoundedBlocks:
    """As loading does it, with the matrices of a model that is there."""
    blocks = RoundedBlocks(model, precision, torch.bfloat16, CPU, streamed_layers)
    for name, sink in blocks.sinks.items():
        parameter = model.get_parameter(name)
        sink(parameter.data)
        parameter.data = parameter.new_empty(0)
    return blocks


def same(found: BlockProjections, expected: BlockProjections) -> bool:
    def pairs() -> Iterator[tuple[Any, Any]]:
        for ours, theirs in zip(found, expected, strict=True):
            assert type(ours) is type(theirs)
            yield from ((getattr(ours, field.name), getattr(theirs, field.name)) for field in fields(ours))

    return all(
        ours.dtype is theirs.dtype and ours.shape == theirs.shape and torch.equal(ours.float(), theirs.float())
        if isinstance(ours, torch.Tensor)
        else ours == theirs
        for ours, theirs in pairs()
    )


def velocities(fast: FastTransformer, noise: Any) -> torch.Tensor:
    latents, prompt = noise(1, 16, 8, 8), noise(40, 24, seed=1).bfloat16()
    denoiser = fast.denoiser(DenoiserShape(8, 8, caption_length(prompt)), TIMESTEPS, prompt)
    with torch.inference_mode():
        return torch.stack([denoiser.predict(latents, torch.tensor(time), step) for step, time in enumerate(TIMESTEPS)])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounded_while_reading_is_rounded_afterwards_bit_for_bit(
    folder: Path, precision: Precision, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(loading._DTYPES, "bf16", dtype)
    blocks = loaded(folder, precision).rounded
    exact = loaded(folder, Precision.EXACT)
    assert exact.rounded is None
    assert blocks is not None
    for stack in ("noise_refiner", "layers"):
        for place, block in enumerate(getattr(exact.transformer, stack)):
            assert same(blocks.take(stack, place), lossy_projections.lossy_projections(block, precision))


def rounding_at_once(monkeypatch: pytest.MonkeyPatch, values: int) -> None:
    for module in (lossy_projections, four_bits):
        monkeypatch.setattr(module, "VALUES_AT_ONCE", values)


def test_pieces_of_a_matrix_round_as_the_whole_does(precision: Precision, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as in_pieces:
        rounding_at_once(in_pieces, 14 * 96)
        blocks = rounded(random_transformer().bfloat16(), precision)
    expected = lossy_projections.lossy_projections(random_transformer().bfloat16().layers[1], precision)
    assert same(blocks.take("layers", 1), expected)


def test_what_tensor_cores_do_not_take_stays_as_it_is(precision: Precision):
    sizes = {"dim": 80, "axes_dims": [8, 16, 16]}  # 213 in the feed-forward
    blocks = rounded(random_transformer(**sizes).bfloat16(), precision)
    found = blocks.take("layers", 0)
    assert [type(each) for each in found] == [KINDS[precision], KINDS[precision], PlainProjection, PlainProjection]
    assert same(found, lossy_projections.lossy_projections(random_transformer(**sizes).bfloat16().layers[0], precision))


def test_the_names_are_those_that_are_streamed(precision: Precision):
    sinks = RoundedBlocks(random_transformer(), precision, torch.bfloat16, CPU).sinks
    assert {name for name in sinks if name.startswith("layers.")} == streamed_names(3, 3)
    assert {name.split(".")[0] for name in sinks} == {"layers", "noise_refiner"}


class TestPeak:
    """What stands in the dtype that is computed in, besides what stays in it."""

    @pytest.fixture
    def standing(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Bytes of the transformer's matrices in full precision, each time that another one is rounded."""
        alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        bytes_at: list[int] = []
        taken = weights._taken

        def watched(tensor: torch.Tensor, sink: Any) -> torch.Tensor:
            if sink is not None:
                alive.add(tensor.untyped_storage())
                bytes_at.append(sum(storage.nbytes() for storage in alive))
            return taken(tensor, sink)

        monkeypatch.setattr(weights, "_taken", watched)
        return bytes_at

    @pytest.mark.parametrize("backwards", [False, True])
    def test_one_matrix_stands_at_a_time_whatever_their_order(
        self, folder: Path, tmp_path: Path, precision: Precision, standing: list[int], backwards: bool
    ):
        copied = shutil.copytree(folder, tmp_path / "model")
        if backwards:
            scattered(copied / "transformer")
        components = loaded(copied, precision)
        transformer = components.transformer.config
        largest_bytes = 2 * transformer.dim * int(transformer.dim / 3 * 8)
        assert len(standing) == 7 * (LAYERS + transformer.n_refiner_layers)
        assert max(standing) <= 2 * largest_bytes  # the one that comes, and the one that is being dropped
        matrices = [
            parameter for name, parameter in components.transformer.named_parameters()
            if components.rounded and name in components.rounded.sinks
        ]  # fmt: skip
        assert len(matrices) == len(standing)
        assert {parameter.untyped_storage().nbytes() for parameter in matrices} == {0}

    def test_rounding_takes_little_more_than_a_piece(self, precision: Precision, monkeypatch: pytest.MonkeyPatch):
        rounding_at_once(monkeypatch, 16 * 96)
        to_fp32, pieces = torch.Tensor.float, []

        def watched(values: torch.Tensor) -> torch.Tensor:
            pieces.append(values.numel())
            return to_fp32(values)

        monkeypatch.setattr(torch.Tensor, "float", watched)
        rounded(random_transformer().bfloat16(), precision)
        assert max(pieces) == 16 * 96


def scattered(part: Path) -> None:
    """The shards of a model in diffusers layout become one whose tensors lie in an order that nobody would choose."""
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(part.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (part / "diffusion_pytorch_model.safetensors.index.json").unlink(missing_ok=True)
    # safetensors sorts by dtype, then by name: half of them in another dtype makes two passes through all blocks
    changed = {name: value.double() if len(name) % 2 else value for name, value in tensors.items()}
    save_file(changed, part / "diffusion_pytorch_model.safetensors")


class TestStreamed:
    def test_layers_are_at_home_from_the_start_and_compute_the_same(
        self, precision: Precision, transfer: ThreadedTransfer, noise: Any, monkeypatch: pytest.MonkeyPatch
    ):
        resident = FastTransformer(
            random_transformer(n_layers=LAYERS).bfloat16(), CPU, torch.bfloat16, precision=precision
        )
        expected = velocities(resident, noise)
        model = random_transformer(n_layers=LAYERS).bfloat16()
        blocks = rounded(model, precision, 3)
        monkeypatch.setattr(transfer, "home", lambda size_bytes: pytest.fail("it has a home"))
        fast = FastTransformer(model, CPU, torch.bfloat16, precision=blocks, streamed_layers=3, transfer=transfer)
        assert fast.network.layers.streamed == 3
        assert torch.equal(velocities(fast, noise), expected)
        assert torch.equal(velocities(fast, noise), expected)

    def test_a_home_holds_the_same_bits(self, precision: Precision, monkeypatch: pytest.MonkeyPatch):
        def full_of_ones(self: HostBuffer, size_bytes: int, *, locked: bool) -> None:
            self.bytes = torch.full((size_bytes,), 255, dtype=torch.uint8)  # memory is anything before it is written

        monkeypatch.setattr(HostBuffer, "__init__", full_of_ones)
        blocks = rounded(random_transformer(n_layers=LAYERS).bfloat16(), precision, 3)
        expected = random_transformer(n_layers=LAYERS).bfloat16().layers
        for place in spread(3, LAYERS):
            assert same(blocks.take("layers", place), lossy_projections.lossy_projections(expected[place], precision))

    def test_a_home_holds_what_was_rounded(self, precision: Precision):
        model = random_transformer(n_layers=LAYERS).bfloat16()
        matrices = sum(model.get_parameter(f"layers.0.{name[9:]}").numel() for name in streamed_names(1, 1))
        homes = rounded(model, precision, 3).take_homes()
        assert sorted(homes) == spread(3, LAYERS)
        values_bytes = matrices / 2 if precision is Precision.NF4 else matrices
        others_bytes = values_bytes / 8 + 8 * 256 if precision is Precision.NF4 else 0.1 * matrices
        assert all(values_bytes < home.bytes.nbytes < values_bytes + others_bytes for home in homes.values())

    @pytest.mark.parametrize("way", [(0,), (5, 0), (4, 3)], ids=str)
    def test_they_leave_and_come_back_and_nothing_changes(
        self, precision: Precision, transfer: ThreadedTransfer, noise: Any, way: tuple[int, ...]
    ):
        model = random_transformer(n_layers=LAYERS).bfloat16()
        fast = FastTransformer(
            model, CPU, torch.bfloat16, precision=rounded(model, precision, 3), streamed_layers=3, transfer=transfer
        )
        expected = velocities(fast, noise)
        for count in way:
            fast.stream(count)
            assert fast.network.layers.streamed == count
            assert torch.equal(velocities(fast, noise), expected)

    def test_a_home_that_was_left_is_given_back(self, precision: Precision, transfer: ThreadedTransfer):
        model = random_transformer(n_layers=LAYERS).bfloat16()
        blocks = rounded(model, precision, 3)
        homes = [weakref.ref(home) for home in blocks._homes.values()]
        fast = FastTransformer(model, CPU, torch.bfloat16, precision=blocks, streamed_layers=3, transfer=transfer)
        assert all(home() is not None for home in homes)
        fast.stream(0)
        assert [home() for home in homes] == [None] * 3

    def test_loading_rounds_streamed_layers_where_it_rounds_the_others(
        self, folder: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
    ):
        choice = loading.PlanChoice(MemoryPlan.STREAMED, "because", 3)
        monkeypatch.setattr(loading, "choose_plan", lambda device, need: choice)
        read_tensors, on_host = weights.read_tensors, []

        def watched(files: Any, wanted: Any, *where: Any) -> Any:
            on_host.append(len(wanted))
            return read_tensors(files, wanted, *where)

        monkeypatch.setattr(weights, "read_tensors", watched)
        components = loaded(folder, precision)
        assert on_host[1::2] == [0, 0, 0]  # what is read to the host, of each part
        assert components.rounded is not None
        assert sorted(components.rounded.take_homes()) == spread(3, LAYERS)


def test_what_cannot_be_compiled_is_denoised_by_the_same_rounded_products(precision: Precision, noise: Any):
    """The stock module has no matrices any more: nothing may fall back to it."""

    def broken() -> StepFunctions:
        raise RuntimeError("no compiler here")

    def only_eager() -> StepFunctions:
        return EAGER

    model = random_transformer().bfloat16()
    fast = FastTransformer(
        model, CPU, torch.bfloat16, ReplayingRecorder(), [broken], precision=rounded(model, precision)
    )  # fmt: skip
    answered = velocities(fast, noise)
    assert not fast.prepare(DenoiserShape(8, 8, 64))
    assert torch.equal(velocities(fast, noise), answered)
    model = random_transformer().bfloat16()
    fast = FastTransformer(
        model, CPU, torch.bfloat16, ReplayingRecorder(), [broken, only_eager], precision=rounded(model, precision)
    )
    assert fast.prepare(DenoiserShape(8, 8, 64))
    assert torch.equal(velocities(fast, noise), answered)
