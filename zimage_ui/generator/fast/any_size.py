"""Functions compiled once for tensors whose extents change from call to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def compiled(
    function: Callable[..., Any], varying: Mapping[int, tuple[int, ...]], backend: str | Callable[..., Any] = "inductor"
) -> Callable[..., Any]:
    """`function`, compiled when it is first called.

    Args:
        function: of tensors and constants, all by position.
        varying: for a tensor argument's place, the axes whose extent is not part of what is compiled. Every other
            extent is fixed, and a call with another one compiles anew (up to eight times for one function).
        backend: of torch.compile; others than the default are for tests.
    """
    import torch
    import torch._dynamo  # slow to import: only where something is compiled

    run = torch.compile(function, fullgraph=True, backend=backend)

    def call(*arguments: Any) -> Any:
        for place, axes in varying.items():
            for axis in axes:
                torch._dynamo.maybe_mark_dynamic(arguments[place], axis)
        return run(*arguments)

    return call
