"""The page about speed, from what `bench.engine` measured: `python -m bench.plot_engine`.

Draws docs/performance.svg and fills the tables of docs/performance.md between their marks; every figure comes from
bench/results/engine.json, from the quality.json beside it for how near the lossy modes come, and from the memory.json
beside it for smaller cards. The rest of the page stays as it is written.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bench import memory, tables
from bench.engine_summary import pixels_of, summary, text_of
from bench.players import MODES, STOCK
from bench.report import RESULTS, ROOT
from zimage_ui.request import Precision

PAGE, PLOT = ROOT / "docs" / "performance.md", ROOT / "docs" / "performance.svg"
STAGES = ("encode", "sample", "decode")
_NOTHING = "No result is stored yet: run `python -m bench.{}`, then `python -m bench.plot_engine`."
NOTHING_YET, NO_MEMORY_YET = _NOTHING.format("engine"), _NOTHING.format("memory FOLDER")
_WIDTH, _LEFT, _RIGHT, _TOP = 960, 150, 110, 56
_BAR, _GAP, _BETWEEN = 20, 6, 34
_SECTIONS = re.compile(r"(<!-- (\w+): begin -->\n).*?(<!-- \2: end -->)", re.DOTALL)


def svg(rows: Sequence[Mapping[str, Any]]) -> str:
    """One bar for each row of a summary, its stages one after the other, all on one scale of milliseconds.

    Its colours are those of the page in its light scheme, and of the dark one where the reader prefers that.
    """
    from zimage_ui.ui.theme import LIGHT, STAGE_COLOURS

    longest_ms = max(row["total_ms"] for row in rows)
    scale = (_WIDTH - _LEFT - _RIGHT) / longest_ms
    colours = {stage: STAGE_COLOURS[stage]["light"] for stage in STAGES}
    drawn, y, size = [_legend(colours, LIGHT["ink-soft"])], _TOP, ""
    for row in rows:
        if row["size"] != size:
            size = row["size"]
            y += _BETWEEN
            drawn.append(_text(16, y - 10, size.replace("x", " x "), LIGHT["ink"], "600"))
        drawn.append(_bar(row, y, scale, colours, LIGHT))
        y += _BAR + _GAP
    title = _text(16, 28, "From prompt to pixels: median milliseconds of one picture, 8 steps", LIGHT["ink"], "600")
    body = "\n".join([title, *drawn])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 16}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13">\n'
        f"<title>Time from prompt to pixels by size and by who draws</title>\n"
        f"<style>@media (prefers-color-scheme: dark) {{ {_dark_rules()} }}</style>\n"
        f'<rect width="100%" height="100%" fill="{LIGHT["paper"]}"/>\n{body}\n</svg>\n'
    )


def filled(page: str, result: Mapping[str, Any] | None, of_memory: Mapping[str, Any] | None = None) -> str:
    """`page` with the sections between its marks written anew; None is no result."""
    sections = _sections(result) if result else {}
    sections["memory"] = _memory_section(of_memory) if of_memory else NO_MEMORY_YET
    return _SECTIONS.sub(lambda found: f"{found[1]}\n{sections.get(found[2], NOTHING_YET)}\n\n{found[3]}", page)


def read_result(path: Path = RESULTS / "engine.json") -> dict[str, Any] | None:
    """What `bench.engine` stored, with its summary and what `bench.quality` stored; None before its first run."""
    if not path.is_file():
        return None
    result = json.loads(path.read_text("utf-8"))
    beside = path.with_name("quality.json")
    quality = json.loads(beside.read_text("utf-8")) if beside.is_file() else None
    # The summary anew: a run that was cut off has stored none.
    return {**result, "summary": summary(result["parts"]), "quality": quality}


def read_memory(path: Path = RESULTS / "memory.json") -> dict[str, Any] | None:
    """What `bench.memory` stored; None before its first run."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _sections(result: Mapping[str, Any]) -> dict[str, str]:
    rows, bars = text_of(result["summary"], markdown=True).rsplit("\n\n", 1)
    plot = f"![Time from prompt to pixels]({PLOT.name})\n\n" if result["summary"]["rows"] else ""
    calls = [_told(name, call) for name, call in result["calls"].items()]
    quality = result.get("quality") or {"parts": {}, "calls": {}}
    lossy = [_speed_of_lossy(result["parts"].get("sizes", {})), _nearness_of_lossy(quality["parts"])]
    calls += [_told(name, call) for name, call in quality["calls"].items()]
    return {
        "sizes": f"{plot}{rows}\n\n{_measured_by(result)}",
        "bars": bars,
        "precision": "\n\n".join(filter(None, lossy)) or NOTHING_YET,
        "runs": "\n".join(calls),
    }


def _memory_section(result: Mapping[str, Any]) -> str:
    parts = result["parts"]
    notes = "\n".join(f"- {note}" for note in memory.notes(parts))
    calls = "\n".join(_told(name, call) for name, call in result["calls"].items())
    return "\n\n".join(filter(None, [_table(memory.HEADS, memory.rows(parts)), notes, f"Measured by:\n\n{calls}"]))


def _measured_by(result: Mapping[str, Any]) -> str:
    """Which sizes were compared by which call: times are to be compared within one alone."""
    sizes: dict[str, list[str]] = {}
    for size in dict.fromkeys(row["size"] for row in result["summary"]["rows"]):
        for name in dict.fromkeys(player["call"] for player in result["parts"]["sizes"][size].values()):
            sizes.setdefault(name, []).append(size)
    commits = {name: call.get("commit") or "an unknown commit" for name, call in result["calls"].items()}
    told = [f"{', '.join(of_call)} by the call of {name} ({commits.get(name)})" for name, of_call in sizes.items()]
    return f"Compared: {'; '.join(told)}." if told else ""


def _speed_of_lossy(sizes: Mapping[str, Any]) -> str:
    """A table of the lossy modes beside exact in the same turns; nothing where none took any with it."""
    rows = []
    for size, players in sorted(sizes.items(), key=lambda item: pixels_of(item[0])):
        for mode in (str(each) for each in Precision if each is not Precision.EXACT):
            figures = players.get(mode, {})
            if "times_as_fast_as_exact" not in figures:
                continue
            times_ms = figures["exact_times_ms"]["total"], figures["times_ms"]["total"]["median"]
            away = _figure(figures, "mean_difference_to_exact_of_255", 2)
            of_exact = _figure(players.get(Precision.EXACT, {}), "mean_difference_to_stock_of_255", 2)
            cells = [*(f"{ms:.1f}" for ms in times_ms), f"{figures['times_as_fast_as_exact']:.2f}", away, of_exact]
            rows.append([size, mode, *cells])
    heads = [
        "size", "mode", "exact, ms", "mode, ms", "x exact", "mode to exact, of 255", f"exact to {STOCK}, of 255",
    ]  # fmt: skip
    return _table(heads, rows)


def _nearness_of_lossy(quality: Mapping[str, Any]) -> str:
    """A table of how near pictures in the lossy modes come to exact ones of the same seeds."""
    rows = []
    for model, modes in quality.items():
        for mode, part in sorted(modes.items(), key=lambda item: item[0] in MODES):  # ours last
            spread = part["spread"]
            error, ssim = (spread[name]["median"] for name in ("latents_error_pct", "ssim"))
            psnr = f"{spread['psnr_db']['median']:.1f}" if spread["psnr_db"] else "equal"
            count = str(len(part["pictures"]))
            rows.append([model, mode, part["computed_on"], count, f"{error:.1f}", psnr, f"{ssim:.3f}"])
    heads = [
        "model", "beside exact, if nothing else is said", "computed on", "pairs", "error of latents, %", "PSNR, dB",
        "SSIM",
    ]  # fmt: skip
    return _table(heads, rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tables.markdown(heads, rows) if rows else ""


def _figure(part: Mapping[str, Any], name: str, digits: int) -> str:
    return "-" if part.get(name) is None else f"{part[name]:.{digits}f}"


def _told(name: str, call: Mapping[str, Any]) -> str:
    machine = call["machine"]
    versions = ", ".join(f"{package} {version}" for package, version in call["versions"].items())
    gpu = machine["gpu"] or f"no GPU, {machine['cpu']}"
    return f"- {name}, commit {call.get('commit') or 'unknown'}: {gpu}; {versions}. `{call['command']}`"


def _dark_rules() -> str:
    """CSS that puts each dark colour in the place of its light one."""
    from zimage_ui.ui.theme import DARK, LIGHT, STAGE_COLOURS

    pairs = [(LIGHT[name], DARK[name]) for name in ("paper", "ink", "ink-soft")]
    pairs += [(STAGE_COLOURS[stage]["light"], STAGE_COLOURS[stage]["dark"]) for stage in STAGES]
    return " ".join(f'[fill="{light}"] {{ fill: {dark} }}' for light, dark in pairs)


def _bar(row: Mapping[str, Any], y: int, scale: float, colours: Mapping[str, str], palette: Mapping[str, str]) -> str:
    middle, x = y + _BAR * 0.72, float(_LEFT)
    drawn = [_text(_LEFT - 10, middle, row["player"], palette["ink-soft"], end=True)]
    for stage, colour in colours.items():
        width = row[f"{stage}_ms"] * scale
        drawn.append(f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
        x += width
    faster = f" ({row['times_as_fast']:.2f} x)" if row["times_as_fast"] not in (None, 1.0) else ""
    drawn.append(_text(x + 8, middle, f"{row['total_ms']:.0f}{faster}", palette["ink"]))
    return "\n".join(drawn)


def _legend(colours: Mapping[str, str], ink: str) -> str:
    drawn, x = [], _LEFT
    for stage, colour in colours.items():
        drawn.append(
            f'<rect x="{x}" y="44" width="12" height="12" rx="2" fill="{colour}"/>' + _text(x + 18, 55, stage, ink)
        )
        x += 90
    return "\n".join(drawn)


def _text(x: float, y: float, text: str, colour: str, weight: str = "400", *, end: bool = False) -> str:
    anchor = ' text-anchor="end"' if end else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" font-weight="{weight}"{anchor}>{escape(text)}</text>'


def main(arguments: list[str] | None = None) -> None:
    """Draw and fill."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot_engine", description=__doc__)
    parser.parse_args(arguments)
    result = read_result()
    if result and result["summary"]["rows"]:
        PLOT.write_text(svg(result["summary"]["rows"]), "utf-8")
        print(PLOT)
    PAGE.write_text(filled(PAGE.read_text("utf-8"), result, read_memory()), "utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
