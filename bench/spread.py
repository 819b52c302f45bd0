"""How values lie: what is told of repeated measurements."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Count, median, mean, 95th percentile (interpolated between the values), standard deviation, least and most.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There are no values to tell anything of.")
    single = len(values) == 1
    figures = {
        "median": statistics.median(values),
        "mean": statistics.fmean(values),
        "p95": values[0] if single else statistics.quantiles(values, n=20, method="inclusive")[-1],
        "stdev": 0.0 if single else statistics.stdev(values),
        "min": min(values),
        "max": max(values),
    }
    return {"count": len(values), **{name: round(value, digits) for name, value in figures.items()}}
