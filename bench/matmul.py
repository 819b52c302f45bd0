"""The fastest that this device multiplies matrices, in the transformer's own shapes: `bench.engine`'s peak."""

from __future__ import annotations

from typing import Any

from bench.work import TERA, block_matrices, linear_work

_WARM_S, _MEASURED_S = 0.1, 0.3


def product_rates(dim: int, tokens: int, device: Any, dtype: Any) -> dict[str, float]:
    """TFLOP/s of each product of a transformer block `dim` wide, for so many tokens, each for a third of a second.

    Long enough for the clocks to settle where the power allows them to be; `all` is their sum over the sum of times.
    """
    import torch

    rates, work, spent_s = {}, 0, 0.0
    for name, (width_in, width_out) in block_matrices(dim).items():
        values = torch.randn(tokens, width_in, device=device, dtype=dtype)
        weight = torch.randn(width_out, width_in, device=device, dtype=dtype)
        once_s = _seconds_each(values, weight, 3)
        once_s = _seconds_each(values, weight, max(1, round(_WARM_S / once_s)))
        each_s = _seconds_each(values, weight, max(1, round(_MEASURED_S / once_s)))
        product = linear_work(tokens, width_in, width_out)
        rates[name] = round(product / each_s / TERA, 4)
        work, spent_s = work + product, spent_s + each_s
    return {**rates, "all": round(work / spent_s / TERA, 4)}


def _seconds_each(values: Any, weight: Any, times: int) -> float:
    import torch

    from zimage_ui.generator.clock import stopwatch

    watch = stopwatch(values.device)
    with torch.inference_mode():
        watch.start()
        for _ in range(times):
            torch.nn.functional.linear(values, weight)
        watch.stop()
    return watch.elapsed_ms() / times / 1e3
