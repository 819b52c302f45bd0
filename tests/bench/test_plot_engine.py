import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

from bench import plot_engine
from bench.engine_summary import summary
from tests.bench.test_engine_summary import PARTS
from tests.bench.test_memory import PARTS as MEMORY_PARTS
from zimage_ui.ui.theme import DARK, LIGHT, STAGE_COLOURS

RESULT = {
    "calls": {
        "2026-01-01": {
            "machine": {"gpu": "NVIDIA H100", "cpu": "x"},
            "versions": {"torch": "2.11"},
            "command": "python -m bench.engine x",
            "commit": "abc",
        }
    },
    "parts": PARTS,
    "summary": summary(PARTS),
}
PAGE = "# Page\n<!-- sizes: begin -->\nold\n<!-- sizes: end -->\nkept\n<!-- runs: begin -->\n<!-- runs: end -->\n"


def test_the_plot_has_three_stages_a_row_to_scale():
    root = ET.fromstring(plot_engine.svg(RESULT["summary"]["rows"]))
    space = "{http://www.w3.org/2000/svg}"
    bars = [each for each in root.iter(f"{space}rect") if each.get("height") == "20"]
    assert len(bars) == 3 * 3
    widths = [sum(float(bar.get("width")) for bar in bars[row : row + 3]) for row in (0, 3, 6)]
    assert [round(width / widths[1], 2) for width in widths] == [round(200 / 1430, 2), 1.0, round(740 / 1430, 2)]
    texts = [each.text for each in root.iter(f"{space}text")]
    assert {"512 x 512", "1024 x 1024", "1430", "740 (1.93 x)"} <= set(texts)


def test_every_colour_of_the_plot_has_a_dark_one():
    plot = plot_engine.svg(RESULT["summary"]["rows"])
    used = set(re.findall(r' fill="(#\w+)"', plot))
    dark = dict(re.findall(r'\[fill="(#\w+)"\] { fill: (#\w+) }', plot))
    stages = {STAGE_COLOURS[stage]["light"] for stage in plot_engine.STAGES}
    assert used == set(dark) == {LIGHT["paper"], LIGHT["ink"], LIGHT["ink-soft"]} | stages
    assert dark[LIGHT["ink"]] == DARK["ink"]


def test_the_page_is_filled_between_its_marks_only():
    page = plot_engine.filled(PAGE, RESULT)
    assert "old" not in page
    assert "\nkept\n" in page
    assert "| 1024x1024 | exact | 740.0 |" in page
    assert "- 2026-01-01, commit abc: NVIDIA H100; torch 2.11. `python -m bench.engine x`" in page
    assert plot_engine.filled(page, RESULT) == page


def test_a_run_that_was_cut_off_is_summed_up_all_the_same(tmp_path: Path):
    path = tmp_path / "engine.json"
    assert plot_engine.read_result(path) is None
    path.write_text(json.dumps({"calls": {}, "parts": PARTS}))
    assert plot_engine.read_result(path)["summary"] == summary(PARTS)


def test_without_a_result_the_page_says_so():
    assert plot_engine.filled(PAGE, None).count(plot_engine.NOTHING_YET) == 2


def test_lossy_modes_stand_beside_exact_in_the_same_turns(tmp_path: Path):
    def drawn(total, away, **beside_exact):
        times = {name: {"median": 1.0, "p95": 1.0, "stdev": 0.0} for name in ("encode", "sample", "decode", "forwards")}
        return {
            "call": "2026-01-01",
            "times_ms": {**times, "total": {"median": total, "p95": 1.0, "stdev": 0.0}},
            "mean_difference_to_stock_of_255": away,
            "tflops": {"total": 1.0, "forwards": 1.0},
            **beside_exact,
        }

    beside_exact = {
        "exact_times_ms": {"total": 310}, "times_as_fast_as_exact": 2.004, "mean_difference_to_exact_of_255": 3.9,
    }  # fmt: skip
    players = {
        "exact": drawn(320, 1.034),
        "fp8": drawn(200, 4.27, **beside_exact),
        "stock": drawn(1, None),
    }
    alone = {"fp8": drawn(2, 4.0)}
    path = tmp_path / "engine.json"
    path.write_text(json.dumps({**RESULT, "parts": {"sizes": {"512x512": players, "768x768": alone}}}))
    page = "<!-- precision: begin -->\n<!-- precision: end --><!-- sizes: begin -->\n<!-- sizes: end -->"
    without = plot_engine.filled(page, plot_engine.read_result(path))
    assert "| 512x512 | fp8 | 310.0 | 200.0 | 2.00 | 3.90 | 1.03 |" in without
    assert without.count("| fp8 |") == 3  # of both sizes in their table, of one in the other
    assert "PSNR" not in without
    assert "Compared: 512x512, 768x768 by the call of 2026-01-01 (abc)." in without
    near = {
        name: {"median": value} for name, value in (("latents_error_pct", 3.15), ("psnr_db", 44.07), ("ssim", 0.998))
    }
    of_mini = {"fp8": {"computed_on": "CPU", "spread": near, "pictures": [{}, {}]}}
    call = {**RESULT["calls"]["2026-01-01"], "command": "python -m bench.quality"}
    quality = {"parts": {"mini": of_mini}, "calls": {"2026-01-02": call}}
    (tmp_path / "quality.json").write_text(json.dumps(quality))
    page = plot_engine.filled(f"{page}<!-- runs: begin -->\n<!-- runs: end -->", plot_engine.read_result(path))
    assert "| mini | fp8 | CPU | 2 | 3.1 | 44.1 | 0.998 |" in page
    assert "- 2026-01-02, commit abc: NVIDIA H100; torch 2.11. `python -m bench.quality`" in page


def test_smaller_cards_have_a_table_of_their_own(tmp_path: Path):
    page = "<!-- memory: begin -->\nold\n<!-- memory: end -->\n"
    path = tmp_path / "memory.json"
    assert plot_engine.read_memory(path) is None
    nothing = plot_engine.filled(page, RESULT, plot_engine.read_memory(path))
    assert "old" not in nothing
    assert "run `python -m bench.memory FOLDER`" in nothing
    path.write_text(json.dumps({"calls": RESULT["calls"], "parts": MEMORY_PARTS}))
    written = plot_engine.filled(page, None, plot_engine.read_memory(path))
    assert "| card, GiB | picture | precision | plan |" in written
    assert "| 12 | 1024x1024 | exact | streamed | 13 | 20.5 | 10.25 | 11.25 | 11.50 | 11.50 | 3000.0 |" in written
    assert "- 8 GiB, fp8, 1024x1024: DeviceMemoryError: too little" in written
    assert "- 2026-01-01, commit abc: NVIDIA H100; torch 2.11." in written
    assert plot_engine.filled(written, None, plot_engine.read_memory(path)) == written


def test_the_page_in_docs_is_what_the_stored_result_says():
    page = plot_engine.PAGE.read_text("utf-8")
    assert all(f"{part}: begin" in page for part in ("sizes", "bars", "precision", "memory", "runs"))
    result = plot_engine.read_result()
    assert plot_engine.filled(page, result, plot_engine.read_memory()) == page
    rows = (result or {}).get("summary", {}).get("rows")
    assert plot_engine.PLOT.is_file() == bool(rows)
    assert not rows or plot_engine.svg(rows) == plot_engine.PLOT.read_text("utf-8")
