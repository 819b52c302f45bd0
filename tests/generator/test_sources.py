"""What ZIMAGE_MODEL means."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from zimage_ui.errors import ModelNotFoundError
from zimage_ui.generator import sources
from zimage_ui.generator.base import WarmupProgress
from zimage_ui.generator.hub import HubId
from zimage_ui.generator.placement import Device
from zimage_ui.generator.sources import TURBO_ID, ModelSource, find_model
from zimage_ui.request import Precision

CPU = Device(torch_name="cpu", name="CPU, 2 threads", free_bytes=10**10, total_bytes=2 * 10**10)
LARGE_GPU = Device(
    torch_name="cuda:0", name="RTX 4090", free_bytes=25 * 10**9, total_bytes=257 * 10**8, capability=(8, 9)
)
SMALL_GPU = replace(LARGE_GPU, name="GTX 1650", free_bytes=3 * 10**9, total_bytes=4 * 10**9)


def silent(_: WarmupProgress) -> None:
    pass


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[HubId]:
    """Which hub models were asked for; every one is `tmp_path`/hub."""
    asked: list[HubId] = []

    def fetch(hub_id: HubId, _progress: object) -> Path:
        asked.append(hub_id)
        return tmp_path / "hub"

    monkeypatch.setattr(sources, "fetch_model", fetch)
    return asked


def test_a_folder_is_taken_as_it_is(tmp_path: Path, fetched: list[HubId], monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "my-model").mkdir()
    found = ModelSource(tmp_path / "my-model", "my-model", str(tmp_path / "my-model"))
    assert find_model(str(tmp_path / "my-model"), CPU, silent) == found
    monkeypatch.chdir(tmp_path)
    assert find_model("my-model", CPU, silent) == found
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_model("~/my-model", CPU, silent) == found
    assert fetched == []


def test_a_hub_id_is_fetched(tmp_path: Path, fetched: list[HubId]):
    assert find_model("someone/model", CPU, silent) == ModelSource(tmp_path / "hub", "model", "someone/model")
    assert find_model("someone/model@v2", CPU, silent).source == "someone/model@v2"
    assert fetched == [HubId("someone/model"), HubId("someone/model", "v2")]


def test_a_folder_weighs_more_than_a_hub_id_of_the_same_name(
    tmp_path: Path, fetched: list[HubId], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "someone" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_model("someone/model", CPU, silent).folder == tmp_path / "someone" / "model"
    assert fetched == []


@pytest.mark.parametrize("model", ["nowhere", "/no/where", "./no/where", "~/nowhere", "../no", "a b/c", "a/b/c"])
def test_neither_a_folder_nor_a_hub_id_is_said(tmp_path: Path, fetched: list[HubId], model: str):
    with pytest.raises(ModelNotFoundError) as raised:
        find_model(model, CPU, silent)
    assert repr(model) in raised.value.message
    assert "ZIMAGE_MODEL takes" in raised.value.hint
    assert fetched == []


def test_auto_on_a_large_gpu_is_the_real_model(tmp_path: Path, fetched: list[HubId]):
    source = find_model("auto", LARGE_GPU, silent)
    assert fetched == [TURBO_ID]
    assert (source.name, source.source) == ("Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo")
    assert source.reason.startswith("RTX 4090 can run Z-Image-Turbo: everything fits")


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (CPU, "there is no NVIDIA GPU that torch can use"),
        (SMALL_GPU, "Z-Image-Turbo does not fit: GTX 1650 has 3.0 GB free of 4.0 GB; the smallest plan needs 4.4 GB."),
    ],
)
def test_auto_elsewhere_is_the_bundled_model_with_the_reason(
    tmp_path: Path, fetched: list[HubId], monkeypatch: pytest.MonkeyPatch, device: Device, reason: str
):
    bundled = tmp_path / "mini"
    bundled.mkdir()
    (bundled / "model_index.json").write_text("{}")
    monkeypatch.setattr(sources, "BUNDLED_FOLDER", bundled)
    assert find_model("auto", device, silent) == ModelSource(bundled, "mini", str(bundled), reason)
    assert fetched == []


def test_a_package_without_its_small_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "BUNDLED_FOLDER", tmp_path / "mini")
    with pytest.raises(ModelNotFoundError, match=re.escape(f"missing from {tmp_path / 'mini'}")) as raised:
        find_model("auto", CPU, silent)
    assert "install that again" in raised.value.hint


@pytest.mark.model
def test_the_sizes_of_the_real_model_are_right():
    from zimage_ui.generator import untrained
    from zimage_ui.generator.fast.streaming import streamed_names

    parts = {
        "transformer": untrained._transformer(untrained.FULL),
        "text_encoder": untrained._text_encoder(untrained.FULL),
        "vae": untrained._vae(untrained.FULL),
    }
    for name, part in parts.items():
        assert getattr(sources.TURBO_SIZES, name) == sum(parameter.numel() for parameter in part.parameters())
    streamed = streamed_names(sources.TURBO_SIZES.transformer_layers, len(parts["transformer"].layers))
    assert sources.TURBO_SIZES.layer * sources.TURBO_SIZES.transformer_layers == sum(
        parameter.numel() for name, parameter in parts["transformer"].named_parameters() if name in streamed
    )


def test_auto_asks_whether_the_precision_makes_it_fit(tmp_path: Path, fetched: list[HubId]):
    card = replace(SMALL_GPU, free_bytes=4_100_000_000, total_bytes=4_300_000_000)
    assert find_model("auto", card, silent).name == "mini"
    found = find_model("auto", card, silent, Precision.FP8)
    assert fetched == [TURBO_ID]
    assert "the transformer's matrices are kept in fp8: 6.7 GB instead of 12.3 GB" in found.reason
