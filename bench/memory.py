"""Whether each memory plan holds on the card that it is for: `python -m bench.memory FOLDER`.

For each pair of a card's size and a precision, in a process of its own that may take no more than such a card would
leave it (its size less half a GiB for a context and a desktop): the product's generator loads the full-size model, with
the plan that it chooses itself, and draws pictures of a shape that nobody has prepared; then the shape is prepared,
and further ones are drawn; then all other shapes are, as far as there is memory, and further ones are drawn. Every
prompt is a new one, so a text encoder that is away has to come for each.

Stored are the plan and its reason, the layers streamed, the time to load, the peaks of memory beside the cap, and the
times of the stages. A pair that fails is stored with its error, and the others go on. These are caps on one GPU, not
real cards: what they show is memory; times are those of that GPU.

`--ahead` measures also what it brings to encode the next prompt before it is asked for, with as many shapes prepared as
are kept: beside the steps of the present picture, by the time from picture to picture with and without, on a card of 16
GiB, where the text encoder is away; and while it is written, there and on one of 24, where the text encoder is at home.
`--cards` without any leaves the plans out.

FOLDER is a model in diffusers layout; where there is none, the full-size architecture with random weights is written
there first. Each part is written to the result as soon as it is there, and replaces what an earlier call found.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from bench import small_card, tables
from bench.command import Turns, alone, completed, model_parser, open_result, parse_size, size_name
from bench.small_card import DRAWING, STAGES, Figures, Trial, highest, unprepared
from zimage_ui.request import Precision

CARDS_GIB = (24, 16, 12, 8)
# Where encoding ahead is measured: without room for the text encoder, and nothing streamed; and with it.
AHEAD_PAIRS = ((16, Precision.EXACT), (24, Precision.EXACT))
HEADS = (
    "card, GiB", "picture", "precision", "plan", "streamed", "loaded, s", "peak loading, GiB", "allocated", "reserved",
    "cap", "unprepared, ms", "prepared, ms", *STAGES[:-1], "shapes kept", "beside them, ms", "holds",
)  # fmt: skip
_LEFT = {HEADS.index(name) for name in ("precision", "plan", "holds")}
_GIB = 2**30


def measure(options: argparse.Namespace, turns: Turns) -> None:
    """All pairs, then what encoding ahead brings, as far as they were asked for."""
    size = size_name(options.size)
    for card_gib, precision in _pairs(options):
        trial = Trial(options.folder, card_gib, precision, options.size)
        print(f"{card_gib} GiB, {precision}:", flush=True)
        turns.measure(
            ("plans", size, str(card_gib), str(precision)),
            partial(alone, small_card.prove, trial, options.cold, options.warm),
        )
    for card_gib, precision in AHEAD_PAIRS if options.ahead else ():
        trial = Trial(options.folder, card_gib, precision, options.size)
        print(f"encoding ahead, {card_gib} GiB, {precision}:", flush=True)
        turns.measure(
            ("ahead", size, str(card_gib), str(precision)),
            partial(alone, small_card.compare_ahead, trial, options.ahead),
        )


def rows(parts: Mapping[str, Any]) -> list[list[str]]:
    """A line for each pair under `HEADS`, the largest card first."""
    return [_row(*place, figures) for place, figures in _measured(parts, "plans")]


def notes(parts: Mapping[str, Any]) -> list[str]:
    """What there is to say below the table: why a pair failed or did not hold, and what encoding ahead brings."""
    told: list[str] = []
    for (size, card_gib, precision), figures in _measured(parts, "plans"):
        reasons = [figures["failed"]] if "failed" in figures else figures["broken"]
        told += [f"{card_gib} GiB, {precision}, {size}: {reason}" for reason in reasons]
    for (size, card_gib, precision), figures in _measured(parts, "ahead"):
        place = f"Encoding ahead, {card_gib} GiB, {precision}, {size}"
        told.append(f"{place}: {figures['failed'] if 'failed' in figures else _gain(figures)}")
    return told


def text_of(parts: Mapping[str, Any]) -> str:
    """Table and notes for a terminal."""
    return "\n".join([tables.aligned(HEADS, rows(parts), _LEFT), *notes(parts)])


def not_held(parts: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """The pairs of this call whose plan did not hold, though nothing failed."""
    asked = {(size_name(options.size), str(card_gib), str(precision)) for card_gib, precision in _pairs(options)}
    return ["/".join(place) for place, each in _measured(parts, "plans") if place in asked and each.get("broken")]


def _pairs(options: argparse.Namespace) -> list[tuple[int, Precision]]:
    return [(card_gib, precision) for card_gib in options.cards for precision in options.precisions]


def _measured(parts: Mapping[str, Any], kind: str) -> Iterator[tuple[tuple[str, str, str], Figures]]:
    for size, cards in parts.get(kind, {}).items():
        for card_gib in sorted(cards, key=int, reverse=True):
            for precision in (str(each) for each in Precision if str(each) in cards[card_gib]):
                yield (size, card_gib, precision), cards[card_gib][precision]


def _row(size: str, card_gib: str, precision: str, figures: Mapping[str, Any]) -> list[str]:
    if "failed" in figures:
        return [card_gib, size, precision, *["-"] * (len(HEADS) - 4), "failed"]
    drawn = [highest(figures, f"{kind}_peak_bytes", DRAWING) for kind in ("allocated", "reserved")]
    memory = [figures["loading"]["allocated_peak_bytes"], *drawn, figures["cap_bytes"]]
    cold_ms, warm_ms = (figures[series]["median_ms"] for series in ("cold", "warm"))
    times_ms = [cold_ms["total"], warm_ms["total"], *(warm_ms[stage] for stage in STAGES[:-1])]
    return [
        card_gib,
        size,
        precision,
        figures["plan"],
        str(figures["streamed_layers"]),
        f"{figures['load_s']:.1f}",
        *("-" if size_bytes is None else f"{size_bytes / _GIB:.2f}" for size_bytes in memory),
        *(f"{ms:.1f}" for ms in times_ms),
        _kept(figures),
        f"{figures['beside_others']['median_ms']['total']:.1f}",
        "no" if figures["broken"] else "yes" if figures["cap_bytes"] else "no cap",
    ]


def _kept(figures: Mapping[str, Any]) -> str:
    return f"{figures['shapes']['warm']} of {figures['shapes']['known']}"


def _gain(figures: Mapping[str, Any]) -> str:
    encoded, drawn = (
        [figures[name]["median_ms"][stage] for name in ("written", "in_turn")] for stage in ("encode", "total")
    )
    series = [figures[name] for name in ("in_turn", "ahead", "written")]
    pictures, cold = sum(len(each["pictures"]) for each in series), unprepared(series)
    told_unprepared = f". {cold} of {pictures} were drawn unprepared" if cold else ""
    return (
        f"plan {figures['plan']}, {_kept(figures)} shapes kept. {_gain_beside(figures)}. "
        f"A picture whose prompt was encoded while it was written: {drawn[0]:.1f} ms instead of {drawn[1]:.1f}, "
        f"of which encoding {encoded[0]:.1f} instead of {encoded[1]:.1f}, "
        f"and {figures['written']['encoding_ms']['median']:.1f} before{told_unprepared}"
    )


def _gain_beside(figures: Mapping[str, Any]) -> str:
    in_turn, ahead = (figures[name]["between_ms"] for name in ("in_turn", "ahead"))
    prompts = figures["ahead"]["encoded_ahead"]
    if not prompts:
        return "Beside the picture before nothing is encoded"
    return (
        f"{ahead['median']:.1f} ms from picture to picture instead of {in_turn['median']:.1f} "
        f"({figures['times_as_fast']:.2f} x), {prompts} of {ahead['count']} prompts encoded beside the picture before"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, completed."""
    parser = model_parser("memory", __doc__)
    listed: dict[str, Any] = {"metavar": "..."}
    parser.add_argument(
        "--cards", nargs="*", type=int, default=list(CARDS_GIB), help="their GiB [24 16 12 8]; none leaves them out",
        **listed,
    )  # fmt: skip
    parser.add_argument(
        "--precisions", nargs="+", type=Precision, choices=list(Precision),
        help=f"of {', '.join(Precision)} [all; --tiny exact]", **listed,
    )  # fmt: skip
    parser.add_argument("--size", type=parse_size, help="of the pictures, WIDTHxHEIGHT [1024x1024; --tiny 64x64]")
    parser.add_argument("--cold", type=int, default=2, help="pictures of the unprepared shape, one at least [2]")
    parser.add_argument(
        "--warm", type=int, default=3, help="pictures of the prepared shape, alone and beside all, one at least [3]"
    )
    parser.add_argument(
        "--ahead", type=int, nargs="?", const=8, default=0, metavar="N",
        help="measure encoding ahead, too, N times each way [8]",
    )  # fmt: skip
    options = completed(parser.parse_args(arguments), "memory")
    options.precisions = options.precisions or ([Precision.EXACT] if options.tiny else list(Precision))
    options.size = options.size or ((64, 64) if options.tiny else (1024, 1024))
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Build if needed, measure, store, print the table.

    Raises:
        SystemExit: a pair failed, was left out, or its plan did not hold; the others are stored.
    """
    options = parse(arguments)
    result = open_result(options)
    turns = Turns(result, options.minutes, keep_failures=True)
    measure(options, turns)
    parts = result.content["parts"]
    print(text_of(parts))
    print(f"stored in {options.result}")
    amiss = {"left out or failed": turns.left_out, "did not hold": not_held(parts, options)}
    if any(amiss.values()):
        raise SystemExit("; ".join(f"{what}: {', '.join(names)}" for what, names in amiss.items() if names))


if __name__ == "__main__":
    main()
