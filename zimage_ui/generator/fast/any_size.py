"""Functions compiled for tensors whose extents change from call to call, in one of two ways.

`compiled` is told which extents vary and leaves them open from the first call on. That is one compilation, and it takes
a function whose tensors are arguments of its own and whose varying extents are all of tensors.

`compiled_as_they_come` is told nothing: it compiles for the extents of the first call, and once more with those left
open in which a later call differs. That is two compilations or three, and it takes any function; those of a pass have
tensors within tuples of weights and of rounded rows, numbers for the picture's height and width, and extents that
depend on each other (padding, image and caption joined), of which torch has to find out which are open together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Backend = str | Callable[..., Any]

# A few compilations of each function until its sizes are left open, times the backends of the attention. torch's own
# limit of 8 is against functions that recompile without end; past it, it gives up.
_MOST_COMPILATIONS = 64


def compiled(
    function: Callable[..., Any], varying: Mapping[int, tuple[int, ...]], backend: Backend = "inductor"
) -> Callable[..., Any]:
    """`function`, compiled when it is first called.

    Args:
        function: of tensors and constants, all by position.
        varying: for a tensor argument's place, the axes whose extent is not part of what is compiled. A call that
            differs in any other extent compiles anew.
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


def compiled_as_they_come(function: Callable[..., Any], backend: Backend = "inductor") -> Callable[..., Any]:
    """`function`, compiled when it is first called, and anew until every extent that varies is left open.

    Extents left open cost nothing on an H100: 764 ms for eight steps at 1024 x 1024 either way.

    Args:
        function: of anything.
        backend: of torch.compile; others than the default are for tests.
    """
    import torch
    import torch._dynamo

    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)
    return torch.compile(function, fullgraph=True, backend=backend)
