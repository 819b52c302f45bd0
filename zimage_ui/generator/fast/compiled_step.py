"""The functions of a pass, compiled: norms, rotation, gates and residuals become a few kernels.

Each function serves all blocks of the model: weights come in as arguments. Only used where there is a GPU: a bare CPU
machine has no compiler. Where there are kernels of our own for the block, only both ends are compiled.
"""

from __future__ import annotations

from functools import partial

from zimage_ui.generator.fast.any_size import Backend, compiled_as_they_come
from zimage_ui.generator.fast.block import run_block
from zimage_ui.generator.fast.step import TRITON, StepFunctions, enter, leave


def compiled_ends(backend: Backend = "inductor") -> StepFunctions:
    """The functions with both ends compiled, and the block in kernels of our own (`triton_parts`)."""
    made = partial(compiled_as_they_come, backend=backend)
    return TRITON._replace(enter=made(enter), leave=made(leave))


def compiled_functions(backend: Backend = "inductor") -> StepFunctions:
    """The functions, compiled at their first calls, which takes seconds.

    Args:
        backend: of torch.compile; others than the default are for tests.
    """
    made = partial(compiled_as_they_come, backend=backend)
    return StepFunctions(made(enter), made(run_block), made(leave), specialised=True)
