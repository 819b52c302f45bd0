"""The functions of a pass, compiled: norms, rotation, gates and residuals become a few kernels.

Each function serves all blocks of the model: weights come in as arguments. Only used where there is a GPU: a bare CPU
machine has no compiler. And only where kernels of our own (`triton_parts`) do not serve or have failed: with them
nothing of a pass is compiled.
"""

from __future__ import annotations

from functools import partial

from zimage_ui.generator.fast.any_size import Backend, compiled_as_they_come
from zimage_ui.generator.fast.block import run_block
from zimage_ui.generator.fast.step import StepFunctions, enter, leave


def compiled_functions(backend: Backend = "inductor") -> StepFunctions:
    """The functions, compiled at their first calls, which takes seconds.

    Args:
        backend: of torch.compile; others than the default are for tests.
    """
    made = partial(compiled_as_they_come, backend=backend)
    return StepFunctions(made(enter), made(run_block), made(leave), specialised=True)
