import json
import xml.etree.ElementTree as ET
from pathlib import Path

from bench import plot_engine
from bench.engine_summary import summary
from tests.bench.test_engine_summary import PARTS

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


def test_the_page_in_docs_is_what_the_stored_result_says():
    page = plot_engine.PAGE.read_text("utf-8")
    assert [part in page for part in ("sizes: begin", "bars: begin", "runs: begin")] == [True] * 3
    result = plot_engine.read_result()
    assert plot_engine.filled(page, result) == page
    assert (plot_engine.PLOT.is_file()) == bool(result and result["summary"]["rows"])
