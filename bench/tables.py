"""The same cells as a table for a terminal or for a page of documentation."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> str:
    """Columns of one width each; those numbered in `left` begin together, the others end together."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """With bars."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, ["---"] * len(heads), *rows])
