"""The functions of a pass, compiled: norms, rotation, gates and residuals become a few kernels.

Each function is compiled for the first size, once more with the sizes left open when a second one comes, and serves all
blocks of the model: weights come in as arguments. Only used where there is a GPU: a bare CPU machine has no compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo

from zimage_ui.generator.fast.block import run_block
from zimage_ui.generator.fast.step import StepFunctions, enter, leave

# Two compilations of the block for each size of pictures, times the buckets of captions, the batches, the backends.
# torch's own limit of 8 is against functions that recompile without end; past it, it gives up.
_MOST_COMPILATIONS = 64


def compiled_functions(
    *,
    dynamic: bool | None = None,
    backend: str | Callable[..., Any] = "inductor",
    options: dict[str, Any] | None = None,
) -> StepFunctions:
    """The functions, compiled at their first call with new sizes, which takes seconds.

    Args:
        dynamic: None lets torch leave the sizes open when a second one comes, which cost nothing on an H100 (764 ms
            for eight steps at 1024 x 1024, either way); False compiles for each combination of sizes.
        backend: of torch.compile; others than the default are for tests.
        options: of torch's compiler, to be compared with its defaults.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=backend, options=options)

    return StepFunctions(compiled(enter), compiled(run_block), compiled(leave), specialised=True)
