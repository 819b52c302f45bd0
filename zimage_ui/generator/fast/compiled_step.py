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

# A few compilations of each function until its sizes are left open, times the backends of the attention. torch's own
# limit of 8 is against functions that recompile without end; past it, it gives up.
_MOST_COMPILATIONS = 64


def compiled_functions(backend: str | Callable[..., Any] = "inductor") -> StepFunctions:
    """The functions, compiled at their first calls, which takes seconds.

    Sizes left open cost nothing on an H100: 764 ms for eight steps at 1024 x 1024 either way.

    Args:
        backend: of torch.compile; others than the default are for tests.
    """
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, _MOST_COMPILATIONS)

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, backend=backend)

    return StepFunctions(compiled(enter), compiled(run_block), compiled(leave), specialised=True)
