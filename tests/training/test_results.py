"""What the documents say of the small model is what its evaluation and its benchmark printed."""

import json
import re
from pathlib import Path

import pytest

from zimage_ui.generator.fingerprint import model_fingerprint
from zimage_ui.generator.sources import BUNDLED_FOLDER

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
SCORES = json.loads((ROOT / "training/results/scores.json").read_text("utf-8"))
SPEED = json.loads((ROOT / "bench/results/mini.json").read_text("utf-8"))
BARS = {"thing": 90, "colour": 95, "place": 90, "count": 80, "background": 95, "word": 50}


def _rows(document: str, heads: int) -> dict[str, list[str]]:
    """The rows of tables in `document` with `heads` cells, by their first."""
    rows = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in (ROOT / document).read_text("utf-8").splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == heads}


def test_the_stored_results_are_those_of_the_bundled_model():
    fingerprint = model_fingerprint(BUNDLED_FOLDER)
    assert SPEED["model"]["fingerprint"] == fingerprint
    for name in ("scores", "scores-seed-2", "scores-h100"):
        assert (
            json.loads((ROOT / f"training/results/{name}.json").read_text("utf-8"))["model"]["fingerprint"]
            == fingerprint
        )


@pytest.mark.parametrize("name", ["scores", "scores-seed-2", "scores-h100"])
def test_every_bar_was_met(name):
    stored = json.loads((ROOT / f"training/results/{name}.json").read_text("utf-8"))
    assert stored["missed_bars"] == []
    for criterion, bar in BARS.items():
        assert stored["bars"][criterion] == bar
        english, chinese = (stored["scores"][language][criterion]["pct"] for language in ("en", "zh"))
        assert min(english, chinese) >= bar
        assert abs(english - chinese) <= 3


@pytest.mark.parametrize("document", ["README.md", "zimage_ui/mini/README.md"])
def test_the_documents_give_the_stored_scores(document):
    rows = _rows(document, 5)
    for criterion in BARS:
        english, chinese, _, pictures = next(cells for name, cells in rows.items() if name.startswith(criterion))
        scores = [SCORES["scores"][language][criterion] for language in ("en", "zh")]
        assert [english, chinese] == [f"{score['pct']:.1f} %" for score in scores]
        assert int(pictures) == scores[0]["pictures"]


def test_the_speed_bars_were_met():
    assert SPEED["load"]["meets_bar"]
    for figures in SPEED["sizes"].values():
        assert figures["meets_bar"]
        assert figures["as_fast_as_stock"]


def test_the_readme_gives_the_stored_speed():
    rows = _rows("README.md", 4)
    for side in ("256", "384"):
        ours, stock, ratio = rows[f"{side}x{side}"]
        figures = SPEED["sizes"][f"{side}x{side}"]
        assert [ours, stock] == [f"{figures['median_ms'][name]['total']:.0f} ms" for name in ("ours", "stock")]
        assert ratio == f"{figures['ratio_to_stock']:.2f}"
    load_s, imports_s = (SPEED["load"]["median_ms"][name] / 1e3 for name in ("load", "imports"))
    stated = f"It loads in {load_s:.2f} s (importing torch and diffusers before takes {imports_s:.1f} s)"
    assert stated in (ROOT / "README.md").read_text("utf-8")
