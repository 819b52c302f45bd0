import pytest

from bench.engine_summary import BARS, best_rate, found, summary, text_of
from bench.players import MODES


def player(total: float, **more: object) -> dict[str, object]:
    stages = {"encode": 8.0, "sample": total - 48.0, "decode": 40.0, "forwards": total - 60.0, "total": total}
    times = {name: {"median": value, "p95": value + 1, "stdev": 0.5} for name, value in stages.items()}
    return {"call": "c", "times_ms": times, "tflops": {"total": 455 / total * 1e3, "forwards": 600.0}, **more}


PARTS = {
    "sizes": {
        "1024x1024": {"exact": player(740, times_as_fast_as_stock=1.93), "stock": player(1430)},
        "512x512": {"exact": player(200)},
    },
    "peak": {"1024x1024": {"tflops": {"out": 650.0, "all": 720.0}}, "512x512": {"tflops": {"out": 800.0}}},
    "memory": {"exact": {"sizes": {"1024x1024": {"allocated_peak_bytes": 21 * 2**30, "reserved_peak_bytes": None}}}},
    "first": {"exact": {"512x512": {"first_to_tenth": 1.2}, "1024x1024": {"first_to_tenth": 1.01}}},
}


def bars() -> dict[str, dict]:
    return {bar["name"]: bar for bar in summary(PARTS)["bars"]}


def test_rows_come_by_size_and_the_stock_first():
    rows = summary(PARTS)["rows"]
    assert [(row["size"], row["player"]) for row in rows] == [
        ("512x512", "exact"), ("1024x1024", "stock"), ("1024x1024", "exact"),
    ]  # fmt: skip
    ours = rows[-1]
    assert (ours["total_ms"], ours["p95_ms"], ours["times_as_fast"]) == (740, 741, 1.93)
    assert ours["peak_pct"] == pytest.approx(100 * 455 / 0.74 / 800, abs=0.1)
    assert ours["forwards_peak_pct"] == 75.0
    assert (ours["allocated_gib"], ours["reserved_gib"], ours["nvml_gib"]) == (21.0, None, None)


def test_the_peak_is_the_best_rate_of_any_product_in_any_size():
    assert best_rate(PARTS) == 800.0
    assert best_rate({}) is None


def test_bars_are_met_missed_or_not_measured():
    judged = bars()
    assert judged["1024x1024 from prompt to pixels, exact"]["met"] is True
    assert judged["1024x1024, exact, times as fast as stock"]["met"] is True
    assert judged["512x512 from prompt to pixels, exact"]["met"] is False
    assert judged["VAE decode, 1024x1024"]["met"] is False
    assert judged["first picture of a warm size / the tenth, worst size"]["value"] == 1.2
    unmeasured = judged["1024x1024 from prompt to pixels, FP8"]
    assert (unmeasured["value"], unmeasured["met"]) == (None, None)


def test_missed_bars_are_told_as_loudly_as_met_ones():
    text = text_of(summary(PARTS))
    line = next(line for line in text.splitlines() if line.startswith("512x512 from prompt to pixels, exact"))
    assert line.split()[-5:] == ["180", "ms", "200", "ms", "MISSED"]
    assert "not measured" in text
    assert "800 TFLOP/s" in text


def test_in_markdown_every_row_has_the_columns_of_its_table():
    for table in text_of(summary(PARTS), markdown=True).split("\n\n")[::2]:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_of_nothing_measured_there_are_bars_and_no_rows():
    told = summary({})
    assert told["rows"] == []
    assert len(told["bars"]) == len(BARS)
    assert {bar["met"] for bar in told["bars"]} == {None}
    assert "No peak measured." in text_of(told)


def test_what_is_no_full_size_is_not_judged():
    told = summary(PARTS, judged=False)
    assert told["bars"] == []
    assert text_of(told).endswith("Bars are of the full size on one H100 alone.")


def test_bars_read_the_modes_that_there_are():
    assert found({"a": {"b": 1}}, "a", "b") == 1
    assert found({"a": 1}, "a", "b") is None
    assert "exact" in MODES
