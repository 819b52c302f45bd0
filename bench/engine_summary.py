"""What the parts of `bench.engine` come to: one row for each player and size, and the bars, met or missed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench import tables
from bench.command import parse_size
from bench.players import PLAYERS, STOCK

Parts = Mapping[str, Any]
_GIB = 2**30
COLUMNS = {
    "size": "size",
    "player": "who",
    "total_ms": "total, ms",
    "p95_ms": "p95",
    "stdev_ms": "st. dev.",
    "encode_ms": "encode",
    "sample_ms": "sample",
    "forwards_ms": "8 forwards",
    "decode_ms": "decode",
    "times_as_fast": "x stock",
    "tflops": "TFLOP/s",
    "peak_pct": "% of peak",
    "allocated_gib": "allocated, GiB",
    "reserved_gib": "reserved",
    "nvml_gib": "NVML",
}
BAR_COLUMNS = {"name": "bar", "limit": "promised", "value": "measured", "verdict": ""}


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure that was promised.

    Attributes:
        name: what is measured.
        limit: at most that much, or at least with `at_least`.
        unit: of both.
        read: the figure, from the parts; None when it was not measured.
    """

    name: str
    limit: float
    unit: str
    read: Callable[[Parts], float | None]
    at_least: bool = False

    def judge(self, parts: Parts) -> dict[str, Any]:
        """The figure beside its bar; `met` is None when it was not measured."""
        value = self.read(parts)
        met = None if value is None else value >= self.limit if self.at_least else value <= self.limit
        return {
            "name": self.name, "limit": self.limit, "at_least": self.at_least, "unit": self.unit, "value": value,
            "met": met,
        }  # fmt: skip


def found(parts: Parts, *names: str) -> Any:
    """What lies at `names` inside of each other; None when there is nothing."""
    inner: Any = parts
    for name in names:
        if not isinstance(inner, Mapping) or name not in inner:
            return None
        inner = inner[name]
    return inner


def _time(size: str, player: str, stage: str = "total") -> Callable[[Parts], float | None]:
    return lambda parts: found(parts, "sizes", size, player, "times_ms", stage, "median")


def _worst(part: str, player: str, figure: str) -> Callable[[Parts], float | None]:
    return lambda parts: max((each[figure] for each in (found(parts, part, player) or {}).values()), default=None)


def _measured(*names: str) -> Callable[[Parts], float | None]:
    return lambda parts: found(parts, *names)


BARS = (
    Bar("1024x1024 from prompt to pixels, exact", 750, "ms", _time("1024x1024", "exact")),
    Bar(
        "1024x1024, exact, times as fast as stock", 1.85, "x",
        _measured("sizes", "1024x1024", "exact", "times_as_fast_as_stock"), at_least=True,
    ),
    Bar("1024x1024, eight forwards, exact", 690, "ms", _time("1024x1024", "exact", "forwards")),
    Bar("1024x1024 from prompt to pixels, FP8", 500, "ms", _time("1024x1024", "fp8")),
    Bar("512x512 from prompt to pixels, exact", 180, "ms", _time("512x512", "exact")),
    Bar("512x512 from prompt to pixels, FP8", 135, "ms", _time("512x512", "fp8")),
    Bar("text encoding, up to 64 tokens", 9, "ms", _time("1024x1024", "exact", "encode")),
    Bar("VAE decode, 1024x1024", 38, "ms", _time("1024x1024", "exact", "decode")),
    Bar("first picture of a warm size / the tenth, worst size", 1.05, "x", _worst("first", "exact", "first_to_tenth")),
    Bar("fifty pictures: standard deviation / mean", 1.0, "%", _worst("steady", "exact", "stdev_to_mean_pct")),
    Bar("process start to ready, the server", 25, "s", _measured("ready", "served", "seconds_to", "ready")),
    Bar("process start to ready, the generator alone", 25, "s", _measured("ready", "exact", "seconds_to", "ready")),
    Bar("time lost to instruments", 0.5, "%", _worst("instruments", "exact", "lost_pct")),
)  # fmt: skip


def summary(parts: Parts, *, judged: bool = True) -> dict[str, Any]:
    """Rows, bars, and the device's peak of matrix products that the rows' shares are of (None when not measured).

    Bars are of the full size on one H100: what is not `judged` has none.
    """
    peak_tflops = best_rate(parts)
    sizes = found(parts, "sizes") or {}
    rows = [
        _row(parts, size, player, peak_tflops)
        for size in sorted(sizes, key=pixels_of)
        for player in sorted(sizes[size], key=_place)
    ]
    return {"peak_tflops": peak_tflops, "rows": rows, "bars": [bar.judge(parts) for bar in BARS] if judged else []}


def best_rate(parts: Parts) -> float | None:
    """The highest rate of any product of the transformer in any size, TFLOP/s."""
    rates = [rate for size in (found(parts, "peak") or {}).values() for rate in size["tflops"].values()]
    return max(rates, default=None)


def text_of(told: Mapping[str, Any], *, markdown: bool = False) -> str:
    """The summary as two tables, for a terminal or for a page of documentation."""
    rows = [{name: _cell(name, row.get(name)) for name in COLUMNS} for row in told["rows"]]
    bars = [
        {
            "name": bar["name"],
            "limit": f"{'>= ' if bar['at_least'] else ''}{bar['limit']:g} {bar['unit']}",
            "value": "not measured" if bar["value"] is None else f"{bar['value']:.5g} {bar['unit']}",
            "verdict": {True: "met", False: "MISSED", None: ""}[bar["met"]],
        }
        for bar in told["bars"]
    ]
    peak = told["peak_tflops"]
    return "\n\n".join(
        [
            _table(COLUMNS, rows, markdown=markdown),
            f"Peak of matrix products in the transformer's shapes: {peak:.4g} TFLOP/s."
            if peak
            else "No peak measured.",
            _table(BAR_COLUMNS, bars, markdown=markdown) if bars else "Bars are of the full size on one H100 alone.",
        ]
    )


def _row(parts: Parts, size: str, player: str, peak_tflops: float | None) -> dict[str, Any]:
    figures = found(parts, "sizes", size, player)
    times, rate = figures["times_ms"], figures["tflops"]["total"]
    memory = found(parts, "memory", player, "sizes", size) or {}
    return {
        "size": size,
        "player": player,
        "total_ms": times["total"]["median"],
        "p95_ms": times["total"]["p95"],
        "stdev_ms": times["total"]["stdev"],
        **{f"{stage}_ms": times[stage]["median"] for stage in ("encode", "sample", "forwards", "decode")},
        "times_as_fast": 1.0 if player == STOCK else figures.get("times_as_fast_as_stock"),
        "tflops": rate,
        "forwards_tflops": figures["tflops"]["forwards"],
        "peak_pct": None if not peak_tflops else round(100 * rate / peak_tflops, 1),
        "forwards_peak_pct": None if not peak_tflops else round(100 * figures["tflops"]["forwards"] / peak_tflops, 1),
        **{
            f"{kind}_gib": None if not memory.get(key) else round(memory[key] / _GIB, 2)
            for kind, key in (
                ("allocated", "allocated_peak_bytes"), ("reserved", "reserved_peak_bytes"), ("nvml", "nvml_peak_bytes"),
            )
        },
    }  # fmt: skip


def pixels_of(size: str) -> int:
    """Of a size that is called "WIDTHxHEIGHT"."""
    return math.prod(parse_size(size))


def _place(player: str) -> int:
    return PLAYERS.index(player) if player in PLAYERS else len(PLAYERS)


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if name.endswith("tflops") and value < 1:  # of a tiny model
        return f"{value:.2g}"
    return f"{value:.2f}" if name == "times_as_fast" or name.endswith("_gib") else f"{value:.1f}"


def _table(columns: Mapping[str, str], rows: Sequence[Mapping[str, str]], *, markdown: bool) -> str:
    cells = [[row[name] for name in columns] for row in rows]
    if markdown:
        return tables.markdown(list(columns.values()), cells)
    left = {0} | {place for place, name in enumerate(columns) if name in ("player", "verdict")}
    return tables.aligned(list(columns.values()), cells, left)
