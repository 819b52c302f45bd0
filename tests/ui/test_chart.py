from __future__ import annotations

import json

from zimage_ui.ui.chart import chart_spec
from zimage_ui.ui.theme import STAGE_COLOURS


def test_one_stacked_trace_for_each_stage_in_the_order_of_the_bar() -> None:
    figure = chart_spec()["figure"]
    assert [trace["name"] for trace in figure["data"]] == list(STAGE_COLOURS)
    assert {trace["type"] for trace in figure["data"]} == {"bar"}
    assert figure["layout"]["barmode"] == "stack"


def test_each_scheme_has_its_own_colours() -> None:
    templates = chart_spec()["templates"]
    for scheme in ("light", "dark"):
        assert templates[scheme]["layout"]["colorway"] == [tones[scheme] for tones in STAGE_COLOURS.values()]
    assert templates["light"]["layout"]["font"] != templates["dark"]["layout"]["font"]


def test_it_travels_as_small_plain_json() -> None:
    assert len(json.dumps(chart_spec())) < 6_000
