import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import memory
from bench.small_card import TAKEN_BYTES, Announcing, broken
from zimage_ui.generator.components import MemoryPlan
from zimage_ui.generator.placement import Device, choose_plan, memory_need
from zimage_ui.generator.sources import TURBO_SIZES
from zimage_ui.request import GenerationRequest, Precision

GIB = 2**30


def peaks(allocated: float, reserved: float) -> dict[str, Any]:
    return {"allocated_peak_bytes": int(allocated * GIB), "reserved_peak_bytes": int(reserved * GIB)}


def series(total: float, plan: str = "streamed", *, warm: bool | None = True) -> dict[str, Any]:
    return {
        "median_ms": {"encode": 400.0, "sample": 2000.0, "decode": 100.0, "total": total},
        "plans": [plan],
        "pictures": [{"warm": warm}] * 2,
        **peaks(10.5, 11.0),
    }


HELD = {
    "call": "2026-01-01",
    "cap_bytes": int(11.5 * GIB),
    "plan": "streamed",
    "reason": "neither fits",
    "streamed_layers": 13,
    "load_s": 20.5,
    "loading": peaks(10.25, 10.5),
    "preview": peaks(10.0, 10.5),
    "cold": series(3000.0, warm=False),
    "preparing": {"prepared": True, "prepare_s": 9.0, **peaks(11.0, 11.25)},
    "warm": series(2500.0),
    "preparing_others": {"prepared": True, "prepare_s": 40.0, **peaks(11.25, 11.5)},
    "beside_others": series(2501.0),
    "shapes": {"known": 16, "warm": 14},
    "broken": [],
}
AHEAD = {
    "call": "2026-01-01",
    "plan": "text_encoder_offloaded",
    "shapes": {"known": 16, "warm": 10},
    "in_turn": {
        "between_ms": {"count": 8, "median": 1200.0}, "median_ms": {"encode": 391.2, "total": 1190.0},
        "pictures": [{"warm": True}] * 8,
    },
    "ahead": {"between_ms": {"count": 8, "median": 800.0}, "encoded_ahead": 8, "pictures": [{"warm": True}] * 8},
    "times_as_fast": 1.5,
    "written": {
        "encoding_ms": {"count": 8, "median": 420.0}, "encoded_ahead": 8, "median_ms": {"encode": 0.3, "total": 790.0},
        "pictures": [{"warm": True}] * 5 + [{"warm": False}] * 3,
    },
}  # fmt: skip
AT_HOME = {**AHEAD, "plan": "resident", "ahead": {**AHEAD["ahead"], "encoded_ahead": 0}}
PARTS = {
    "plans": {
        "1024x1024": {
            "8": {"fp8": {"call": "2026-01-01", "failed": "DeviceMemoryError: too little"}},
            "12": {"fp8": {**HELD, "broken": ["it was drawn otherwise"]}, "exact": HELD},
        }
    },
    "ahead": {"1024x1024": {"16": {"exact": AHEAD}, "24": {"exact": AT_HOME}}},
}


def test_the_largest_card_comes_first_and_a_failed_one_last():
    rows = memory.rows(PARTS)
    assert [row[:3] for row in rows] == [
        ["12", "1024x1024", "exact"],
        ["12", "1024x1024", "fp8"],
        ["8", "1024x1024", "fp8"],
    ]
    assert [row[-1] for row in rows] == ["yes", "no", "failed"]
    assert all(len(row) == len(memory.HEADS) for row in rows)
    cells = dict(zip(memory.HEADS, rows[0], strict=True))
    assert (cells["allocated"], cells["reserved"], cells["cap"]) == ("11.25", "11.50", "11.50")
    assert (cells["unprepared, ms"], cells["prepared, ms"], cells["encode"]) == ("3000.0", "2500.0", "400.0")
    assert (cells["shapes kept"], cells["beside them, ms"]) == ("14 of 16", "2501.0")


def test_the_text_says_why_and_what_encoding_ahead_brings():
    lines = memory.text_of(PARTS).splitlines()
    assert len({line.index("1024x1024") for line in lines[1:4]}) == 1
    assert lines[4:] == [
        "12 GiB, fp8, 1024x1024: it was drawn otherwise",
        "8 GiB, fp8, 1024x1024: DeviceMemoryError: too little",
        "Encoding ahead, 24 GiB, exact, 1024x1024: plan resident, 10 of 16 shapes kept. Beside the picture before "
        "nothing is encoded. A picture whose prompt was encoded while it was written: 790.0 ms instead of 1190.0, of "
        "which encoding 0.3 instead of 391.2, and 420.0 before. 3 of 24 were drawn unprepared",
        "Encoding ahead, 16 GiB, exact, 1024x1024: plan text_encoder_offloaded, 10 of 16 shapes kept. 800.0 ms from "
        "picture to picture instead of 1200.0 (1.50 x), 8 of 8 prompts encoded beside the picture before. A picture "
        "whose prompt was encoded while it was written: 790.0 ms instead of 1190.0, of which encoding 0.3 instead of "
        "391.2, and 420.0 before. 3 of 24 were drawn unprepared",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"warm": series(1.0, "smallest")}, ["drawn with smallest instead of streamed"]),
        ({"preparing": {"prepared": False, **peaks(11, 11)}}, ["the shape could not be prepared"]),
        ({"beside_others": series(1.0, "smallest")}, ["drawn with smallest instead of streamed"]),
        ({"warm": series(1.0, warm=None), "beside_others": series(1.0, warm=None)}, []),
        ({"beside_others": series(1.0, warm=False)}, ["2 pictures of the prepared shape were drawn unprepared"]),
        (
            {"preparing_others": {"prepared": True, **peaks(11, 12)}},
            [f"{12 * GIB} bytes were reserved, {int(11.5 * GIB)} were allowed"],
        ),
        ({"loading": peaks(10, 12)}, [f"{12 * GIB} bytes were reserved, {int(11.5 * GIB)} were allowed"]),
        ({"loading": peaks(10, 12), "cap_bytes": None}, []),
    ],
)
def test_a_plan_holds_if_it_drew_everything_within_the_cap(change: dict[str, Any], told: list[str]):
    assert broken(HELD | change) == told


def test_a_plan_that_does_not_hold_is_no_success(tmp_path: Path):
    asked = memory.parse([str(tmp_path), "--cards", "12"])
    assert memory.not_held(PARTS, asked) == ["1024x1024/12/fp8"]
    assert memory.not_held(PARTS, memory.parse([str(tmp_path), "--cards", "8"])) == []


def test_all_cards_in_all_precisions_unless_said_otherwise(tmp_path: Path):
    options = memory.parse([str(tmp_path)])
    assert (options.cards, options.precisions, options.size) == ([24, 16, 12, 8], list(Precision), (1024, 1024))
    assert (options.ahead, options.result.name) == (0, "memory.json")
    options = memory.parse([str(tmp_path), "--ahead", "--cards"])
    assert (options.cards, options.ahead) == ([], 8)
    assert memory.parse([str(tmp_path), "--tiny", "--precisions", "int8"]).precisions == [Precision.INT8]


@pytest.mark.parametrize(("card_gib", "precision"), memory.AHEAD_PAIRS)
def test_encoding_ahead_is_measured_with_the_text_encoder_away_and_at_home(card_gib: int, precision: Precision):
    plan = MemoryPlan.TEXT_ENCODER_OFFLOADED if card_gib == 16 else MemoryPlan.RESIDENT
    free_bytes = card_gib * GIB - TAKEN_BYTES
    card = Device(
        torch_name="cuda:0", name="a card", free_bytes=free_bytes, total_bytes=free_bytes, capability=(9, 0),
        host_free_bytes=2**37,
    )  # fmt: skip
    need = memory_need(TURBO_SIZES, (1024, 1024), 2, precision=precision)
    assert choose_plan(card, need).plan is plan


def test_the_following_prompt_is_announced_after_each_step_but_the_last():
    asked = []

    class Noting:
        def encode_ahead(self, request):
            asked.append(request)

    following = GenerationRequest(prompt="a red boat")
    listener = Announcing(Noting(), following)
    for step in range(1, 4):
        listener.step_done(step, 3, None)
    assert asked == [following] * 2


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("memory") / "tiny"
    arguments = "--tiny --cards 24 --precisions exact fp8 --cold 1 --warm 2 --ahead 2 --commit abc"
    with pytest.raises(SystemExit, match=r"^left out or failed: plans/64x64/24/fp8$"):
        memory.main([str(folder), *arguments.split()])
    result = json.loads(folder.with_suffix(".memory.json").read_text("utf-8"))
    (call,) = result["calls"].values()
    assert (call["commit"], call["model"]["trained"]) == ("abc", False)
    return result["parts"]


@pytest.mark.model
@pytest.mark.service  # starts processes of its own
@pytest.mark.timeout(400)
@pytest.mark.skipif(torch.cuda.is_available(), reason="what is expected here is a CPU's: no cap, and no eight bits")
class TestATinyModelOnTheCpu:
    def test_a_pair_is_drawn_with_the_plan_that_the_product_chose(self, parts: dict[str, Any]):
        figures = parts["plans"]["64x64"]["24"]["exact"]
        assert (figures["plan"], figures["streamed_layers"], figures["cap_bytes"]) == ("resident", 0, None)
        assert figures["loaded_with"] == "resident"
        assert "there is nothing to move" in figures["reason"]
        assert (figures["broken"], figures["preparing"]["prepared"]) == ([], None)
        drawn = [len(figures[series]["pictures"]) for series in ("cold", "warm", "beside_others")]
        assert (drawn, figures["shapes"]) == ([1, 2, 2], {"known": 0, "warm": 0})
        for picture in figures["warm"]["pictures"]:
            assert picture["encode"] > 0
            assert (picture["drawn"], picture["precision"]) == (["64x64"], "exact")
            stages = sum(picture[stage] for stage in ("encode", "sample", "decode"))
            assert stages == pytest.approx(picture["total"], rel=0.2)
        assert "No NVIDIA GPU" in figures["warm"]["conditions"]["note"]

    def test_a_pair_that_fails_is_stored_and_the_others_go_on(self, parts: dict[str, Any]):
        failed = parts["plans"]["64x64"]["24"]["fp8"]["failed"]
        assert failed.startswith("SettingsError: ZIMAGE_PRECISION = fp8 needs an NVIDIA GPU")
        assert f"24 GiB, fp8, 64x64: {failed}" in memory.notes(parts)

    def test_on_a_cpu_nothing_is_encoded_ahead(self, parts: dict[str, Any]):
        figures = parts["ahead"]["64x64"]["16"]["exact"]
        for way in ("in_turn", "ahead"):
            assert figures[way]["between_ms"]["count"] == len(figures[way]["pictures"]) == 2
            assert figures[way]["encoded_ahead"] == 0
        medians = [figures[way]["between_ms"]["median"] for way in ("in_turn", "ahead")]
        written = figures["written"]
        assert written["encoding_ms"]["count"] == len(written["pictures"]) == 2
        assert written["encoded_ahead"] == 0
        assert figures["times_as_fast"] == pytest.approx(medians[0] / medians[1], rel=1e-3)
