"""cuBLASLt's kernels for a matrix product, those that it thinks best: torch asks for one.

The library ranks its kernels for a size by a model of the card, which does not know at which clock the card will run.
So they are measured (`product_kernels`), as NVIDIA's own guide recommends for sizes that matter. On Hopper, a few that
it does not propose are measured, too: those whose tiles leave little over (`product_tiles`).

None is given a workspace. With one, most kernels hand out their tiles by a counter of four bytes in it, which the
library clears before every product: in a graph that is a node of its own between two kernels, with 5 us of waiting
where others follow after 0.3, and handing out gains less than that where there are few. A layer of 1088 tokens took
665.6 us without and 671.8 with it (H100, in turns); one of 4160 tokens takes as long.

Called by ctypes in the very library that torch has loaded. Names and numbers are those of `cublasLt.h`, the same in
CUDA 12 and 13: https://docs.nvidia.com/cuda/cublas/#using-the-cublaslt-api. It counts in columns where torch counts in
rows: to it our (tokens, outputs) is (outputs, tokens), the matrix times the activations.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from ctypes import Structure, byref, c_float, c_int, c_int8, c_int32, c_int64, c_size_t, c_uint64, c_void_p, sizeof
from functools import cache
from typing import Any, NamedTuple

import torch

from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.cute_kernels import HOPPER, architecture
from zimage_ui.generator.fast.product_tiles import Tile, suited_tiles

# cudaDataType_t of what is multiplied, and what the product is rounded to; sums are fp32.
_DATA_TYPES = {torch.bfloat16: 14, torch.float16: 2, torch.float8_e4m3fn: 28}
_PRODUCTS = {torch.bfloat16: torch.bfloat16, torch.float16: torch.float16, torch.float8_e4m3fn: torch.bfloat16}
_FP32, _COMPUTED_IN_FP32 = 0, 68
# cublasStatus_t
_SUCCESS, _NOT_SUPPORTED = 0, 15
# cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t
_TRANSPOSED_FIRST, _FAST_ACCUMULATION, _MOST_WORKSPACE = 3, 25, 1
# cublasLtMatmulAlgoConfigAttributes_t that tell kernels apart: name, number, bytes.
_TILE, _CLUSTER, _OPTION, _ID = ("tile", 1, 4), ("cluster", 8, 2), ("option", 5, 4), ("id", 0, 4)
_CONFIGURATION = (_TILE, ("stages", 6, 4), _CLUSTER, ("swizzling", 4, 4), _OPTION, ("shape", 7, 2), _ID)
_SPLITS = (2, 4)
_OTHERWISE = "products are computed by torch's choice of kernels"
# The family of kernels for Hopper that has tiles of nearly every size.
_OF_HOPPER = 66
# The library names no more, however many are asked for.
_MOST_KERNELS = 8
# What checking a kernel says that it takes, though it does without: the counter of tiles.
_COUNTER_BYTES = 4
# What every proposal takes for granted of the tensors.
_ALIGNMENT_BYTES = 256


class _Algorithm(Structure):
    _fields_ = (("data", c_uint64 * 8),)


class _Proposal(Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace_bytes", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class _Size(NamedTuple):
    tokens: int
    outputs: int
    inputs: int
    dtype: torch.dtype
    device: torch.device


class _Problem(NamedTuple):
    """One size of product: how it is described to the library, and its kernels by name, the best first by its model."""

    description: c_void_p
    weight: c_void_p
    values: c_void_p
    answer: c_void_p
    algorithms: dict[str, _Algorithm]


def kernel_names(tokens: int, weight: torch.Tensor) -> tuple[str, ...]:
    """The kernels for so many rows times `weight` (outputs, inputs), the library's favourite first.

    None for what is no GPU's or not of 16 bits or FP8, where all that it has need a workspace, and where it cannot be
    asked, which is logged.
    """
    problem = _problem(_size(tokens, weight))
    return tuple(problem.algorithms) if problem else ()


def version() -> int:
    """The library's, such as 130100; 0 where it is not there."""
    return int(_library().cublasLtGetVersion()) if _is_there() else 0


def product(values: torch.Tensor, weight: torch.Tensor, kernel: str) -> torch.Tensor | None:
    """`values` (..., inputs) times `weight` (outputs, inputs), (..., outputs), enqueued on the current stream.

    Args:
        values: of the weight's dtype.
        weight: on a GPU. The product of FP8 is bf16, not scaled, and added up in the tensor cores' own precision.
        kernel: of `kernel_names` for any number of rows.

    Returns:
        None where the kernel is none for this number of rows, or the tensors are not what all kernels take for granted.

    Raises:
        RuntimeError: the library refused.
    """
    rows = values.flatten(0, -2)
    problem = _problem(_size(len(rows), weight))
    algorithm = problem.algorithms.get(kernel) if problem else None
    fits = rows.dtype == weight.dtype and _is_plain(rows) and _is_plain(weight)
    if problem is None or algorithm is None or not fits:
        return None
    answer = rows.new_empty(len(rows), len(weight), dtype=_PRODUCTS[weight.dtype])
    device, address = weight.device, c_void_p(answer.data_ptr())
    one, zero = c_float(1.0), c_float(0.0)
    stream = torch.cuda.current_stream(device).cuda_stream
    _call(
        "cublasLtMatmul", _handle(device), problem.description,
        byref(one), c_void_p(weight.data_ptr()), problem.weight, c_void_p(rows.data_ptr()), problem.values,
        byref(zero), address, problem.answer, address, problem.answer,
        byref(algorithm), c_void_p(None), c_size_t(0), c_void_p(stream),
    )  # fmt: skip
    return answer.view(*values.shape[:-1], -1)


def _size(tokens: int, weight: torch.Tensor) -> _Size:
    outputs, inputs = weight.shape
    return _Size(tokens, outputs, inputs, weight.dtype, weight.device)


def _is_plain(matrix: torch.Tensor) -> bool:
    return matrix.is_contiguous() and matrix.data_ptr() % _ALIGNMENT_BYTES == 0


@cache  # a few hundred bytes each, for as many sizes as are ever prepared
def _problem(size: _Size) -> _Problem | None:
    if size.device.type != "cuda" or size.dtype not in _DATA_TYPES or not _is_there():
        return None
    with torch.cuda.device(size.device):
        return attempt(lambda: _described(size), _OTHERWISE)


def _described(size: _Size) -> _Problem:
    description = c_void_p()
    yes = c_int32(1)
    _call("cublasLtMatmulDescCreate", byref(description), _COMPUTED_IN_FP32, _FP32)
    _call("cublasLtMatmulDescSetAttribute", description, _TRANSPOSED_FIRST, byref(yes), c_size_t(sizeof(yes)))
    if size.dtype == torch.float8_e4m3fn:
        fast = c_int8(1)
        _call("cublasLtMatmulDescSetAttribute", description, _FAST_ACCUMULATION, byref(fast), c_size_t(sizeof(fast)))
    weight = _layout(size.dtype, size.inputs, size.outputs)
    values = _layout(size.dtype, size.inputs, size.tokens)
    answer = _layout(_PRODUCTS[size.dtype], size.outputs, size.tokens)
    problem = _Problem(description, weight, values, answer, {})
    proposals = _proposals(size, problem)
    for algorithm in (*proposals, *_tiled(size, problem, proposals)):
        problem.algorithms.setdefault(_name(algorithm), algorithm)
    return problem


def _proposals(size: _Size, problem: _Problem) -> list[_Algorithm]:
    """The library's, the best first, that need no workspace; it may have none."""
    preference, most = c_void_p(), c_size_t(0)
    _call("cublasLtMatmulPreferenceCreate", byref(preference))
    _call("cublasLtMatmulPreferenceSetAttribute", preference, _MOST_WORKSPACE, byref(most), c_size_t(sizeof(most)))
    proposals, count = (_Proposal * _MOST_KERNELS)(), c_int()
    description, weight, values, answer, _ = problem
    status = _library().cublasLtMatmulAlgoGetHeuristic(
        _handle(size.device), description, weight, values, answer, answer, preference,
        _MOST_KERNELS, proposals, byref(count),
    )  # fmt: skip
    _call("cublasLtMatmulPreferenceDestroy", preference)
    if status not in (_SUCCESS, _NOT_SUPPORTED):
        raise RuntimeError(f"cublasLtMatmulAlgoGetHeuristic answered {status}.")
    found = (proposal.algorithm for proposal in proposals[: count.value] if proposal.state == _SUCCESS)
    return [algorithm for algorithm in found if not _splits(algorithm)]


def _tiled(size: _Size, problem: _Problem, proposals: Sequence[_Algorithm]) -> list[_Algorithm]:
    """The best of `proposals`, if it is of Hopper's, in other tiles that suit the size and the library takes."""
    processors = _hopper_processors(size.device)
    if processors is None or not proposals or _configured(proposals[0], *_ID[1:]) != _OF_HOPPER:
        return []
    tiles = suited_tiles(size.tokens, size.outputs, processors)
    settings = ((tile, *setting) for tile in tiles for setting in tile.settings)
    checked = (_checked(size, problem, proposals[0], *setting) for setting in settings)
    return [algorithm for algorithm in checked if algorithm is not None]


def _checked(
    size: _Size, problem: _Problem, like: _Algorithm, tile: Tile, cluster: int, option: int
) -> _Algorithm | None:
    """`like` with another tile, if the library has such a kernel for this size."""
    algorithm = _Algorithm.from_buffer_copy(like)
    for (_, number, length), value in ((_TILE, tile.number), (_CLUSTER, cluster), (_OPTION, option)):
        place = byref(c_uint64(value)), c_size_t(length)
        if _library().cublasLtMatmulAlgoConfigSetAttribute(byref(algorithm), number, *place) != _SUCCESS:
            return None  # an older library, which has no such tile
    description, weight, values, answer, _ = problem
    proposal = _Proposal()
    status = _library().cublasLtMatmulAlgoCheck(
        _handle(size.device), description, weight, values, answer, answer, byref(algorithm), byref(proposal)
    )
    fits = status == proposal.state == _SUCCESS and proposal.workspace_bytes <= _COUNTER_BYTES
    return algorithm if fits else None


def _layout(dtype: torch.dtype, rows: int, columns: int) -> c_void_p:
    """A dense matrix as cuBLAS counts: its columns lie one after the other."""
    layout = c_void_p()
    extents = c_uint64(rows), c_uint64(columns), c_int64(rows)
    _call("cublasLtMatrixLayoutCreate", byref(layout), _DATA_TYPES[dtype], *extents)
    return layout


def _name(algorithm: _Algorithm) -> str:
    """The same for the same kernel, whatever its rank."""
    told = ((name, _configured(algorithm, number, size)) for name, number, size in _CONFIGURATION)
    return f"cublasLt {' '.join(f'{name} {value}' for name, value in told if value)}"


def _splits(algorithm: _Algorithm) -> bool:
    """Whether it adds up parts of a sum apart."""
    return _configured(algorithm, *_SPLITS) > 1


def _configured(algorithm: _Algorithm, attribute: int, size: int) -> int:
    value, written = c_uint64(0), c_size_t()
    place = byref(value), c_size_t(size), byref(written)
    _call("cublasLtMatmulAlgoConfigGetAttribute", byref(algorithm), attribute, *place)
    return value.value


def _call(function: str, *arguments: Any) -> None:
    """Call a function of the library; a RuntimeError unless it answers CUBLAS_STATUS_SUCCESS."""
    status = getattr(_library(), function)(*arguments)
    if status != _SUCCESS:
        raise RuntimeError(f"{function} answered {status}.")


@cache
def _is_there() -> bool:
    return torch.version.cuda is not None and attempt(_library, _OTHERWISE) is not None


@cache
def _library() -> ctypes.CDLL:
    """That of torch's CUDA, which torch has loaded: asking for the same name finds it.

    Raises:
        OSError: it has another name.
    """
    major = str(torch.version.cuda).partition(".")[0]
    return ctypes.CDLL(f"cublasLt64_{major}.dll" if sys.platform == "win32" else f"libcublasLt.so.{major}")


def _hopper_processors(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).multi_processor_count if architecture(device) == HOPPER else None


@cache
def _handle(device: torch.device) -> c_void_p:
    handle = c_void_p()
    with torch.cuda.device(device):
        _call("cublasLtCreate", byref(handle))
    return handle
