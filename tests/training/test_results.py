"""What the documents say of the small model is what its evaluation and its benchmark printed."""

import json
import re
from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from zimage_ui.generator.fingerprint import model_fingerprint
from zimage_ui.generator.sources import BUNDLED_FOLDER

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
SCORES = json.loads((ROOT / "training/results/scores.json").read_text("utf-8"))
CARD = ROOT / "zimage_ui/mini/README.md"
SPEED = json.loads((ROOT / "bench/results/mini.json").read_text("utf-8"))
RESULTS = ("scores", "scores-seed-2", "scores-seed-3", "scores-h100", "scores-384")
BARS = {"thing": 90, "colour": 95, "place": 90, "count": 80, "background": 95, "word": 50}


def _stored(name: str) -> dict[str, Any]:
    return json.loads((ROOT / f"training/results/{name}.json").read_text("utf-8"))


def _card() -> str:
    """In one line."""
    return " ".join(CARD.read_text("utf-8").split())


def _rows(document: str, heads: int) -> dict[str, list[str]]:
    """The rows of tables in `document` with `heads` cells, by their first."""
    rows = [re.split(r"\s*\|\s*", line.strip("| \n")) for line in (ROOT / document).read_text("utf-8").splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == heads}


def test_the_stored_results_are_those_of_the_bundled_model():
    fingerprint = model_fingerprint(BUNDLED_FOLDER)
    assert SPEED["model"]["fingerprint"] == fingerprint
    for name in RESULTS:
        assert _stored(name)["model"]["fingerprint"] == fingerprint


@pytest.mark.parametrize("name", RESULTS)
def test_every_bar_was_met(name):
    stored = _stored(name)
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


@pytest.mark.parametrize("name", ["scores-seed-2", "scores-seed-3", "scores-384"])
@pytest.mark.parametrize("criterion", ["thing", "colour", "place", "count"])
def test_the_card_gives_the_other_stored_scores(name, criterion):
    english, chinese = (_stored(name)["scores"][language][criterion]["pct"] for language in ("en", "zh"))
    assert f"{criterion} {english:.1f} and {chinese:.1f} %" in _card()


def test_the_card_gives_the_other_scores_of_the_first_set():
    words, values = SCORES["with_unknown_words"], SCORES["reconstruction_psnr_db"]
    assert [words[language]["count"]["pct"] for language in ("en", "zh")] == [75.0, 91.67]
    assert "count 75.0 and 91.7 % of only 12" in _card()
    for language in ("en", "zh"):
        assert [words[language][name]["pct"] for name in ("thing", "colour", "place")] == [98.33, 98.33, 97.92]
        assert all(score["pct"] == 100 for score in SCORES["unknown_things"][language].values())
    assert "thing and colour 98.3 %, place 97.9 %" in _card()
    assert f"reconstructs at {values['256x256']:.1f} dB (256x256) and {values['512x512']:.1f} dB (512x512)" in _card()


def test_the_sheet_of_faults_is_that_of_the_scores():
    faults = json.loads((ROOT / "training/results/faults.json").read_text("utf-8"))
    right_pct = [SCORES["further"][language]["all asked for"]["pct"] for language in ("en", "zh")]
    assert len(faults) == round(sum(500 * (100 - pct) / 100 for pct in right_pct))
    counts = sum("count" in one["wrong"] for one in faults)
    assert f"each of the {counts} pictures that fell short" in _card()
    assert f"All {len(faults)} pictures of the 1,000" in _card()


@pytest.mark.parametrize("part", ["transformer", "text encoder", "VAE"])
def test_the_card_gives_the_sizes_of_the_parts(part):
    (file,) = (BUNDLED_FOLDER / part.lower().replace(" ", "_")).glob("*.safetensors")
    with safe_open(file, "pt") as weights:
        parameters = sum(prod(weights.get_slice(name).get_shape()) for name in weights.offset_keys())
    assert re.search(rf"\| {part} \| `\w+`[^|]* \| {parameters:,} \|", _card())


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
