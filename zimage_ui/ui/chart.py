"""The chart of recent stage times: a Plotly figure made here, filled and drawn by the page.

Traces, layout and the templates of both colour schemes come from `plotly.graph_objects`; the page's script fills in
the numbers of the newest jobs and the words of its language, and draws with the `plotly.min.js` of the same package.
"""

from __future__ import annotations

from typing import Any

from zimage_ui.ui.theme import DARK, FONTS, LIGHT, STAGE_COLOURS

CHART_JOBS = 24
CHART_HEIGHT_PX = 168


def chart_spec() -> dict[str, Any]:
    """What the page draws from: {"figure": Plotly JSON without numbers, "templates": {"light", "dark"}, "jobs": n}."""
    import plotly.graph_objects as go

    figure = go.Figure(
        data=[
            go.Bar(name=stage, hovertemplate="%{fullData.name} %{y:,.0f} ms<extra></extra>") for stage in STAGE_COLOURS
        ],
        layout=go.Layout(
            barmode="stack",
            bargap=0.28,
            height=CHART_HEIGHT_PX,
            margin={"l": 44, "r": 20, "t": 8, "b": 26},
            showlegend=False,
            hovermode="x unified",
            dragmode=False,
            xaxis={
                "type": "category",
                "fixedrange": True,
                "showticklabels": True,
                "tickangle": 0,
                "ticklabelstandoff": 5,
            },
            yaxis={
                "rangemode": "tozero",
                "fixedrange": True,
                "nticks": 5,
                "ticksuffix": " ms",
                "separatethousands": True,
            },
        ),
    )
    figure.layout.template = go.layout.Template()  # ours come with the colour scheme; Plotly's own is 6 KB of defaults
    return {
        "figure": figure.to_plotly_json(),
        "templates": {"light": _template(LIGHT, "light"), "dark": _template(DARK, "dark")},
        "jobs": CHART_JOBS,
    }


def _template(colours: dict[str, str], scheme: str) -> dict[str, Any]:
    """The look in one colour scheme; the bars take their colours in the order of the stages."""
    import plotly.graph_objects as go

    axis = {
        "gridcolor": colours["line"],
        "linecolor": colours["line-strong"],
        "zerolinecolor": colours["line-strong"],
        "tickfont": {"size": 10, "color": colours["ink-faint"]},
        "ticks": "",
    }
    template: dict[str, Any] = go.layout.Template(
        layout={
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": [tones[scheme] for tones in STAGE_COLOURS.values()],
            "font": {"family": ", ".join(FONTS), "size": 11, "color": colours["ink-soft"]},
            "xaxis": {**axis, "showgrid": False},
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": colours["surface"],
                "bordercolor": colours["line-strong"],
                "font": {"size": 11, "color": colours["ink"]},
            },
        }
    ).to_plotly_json()
    return template
