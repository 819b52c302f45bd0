"""Modules made empty, then filled tensor by tensor, each cast to the dtype that is computed in as it arrives.

So a model never stands in memory twice, nor as a whole in the dtype that it is stored in: the published transformer is
24.6 GB of fp32 on disk, and becomes 12.3 GB of bf16 on the GPU with one tensor at a time in between.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TypeVar

import torch
from accelerate import init_empty_weights
from torch import nn

from zimage_ui.errors import ModelDamagedError
from zimage_ui.generator.layout import WeightedPart
from zimage_ui.generator.reader import FLOAT_DTYPES, read_tensors
from zimage_ui.generator.weight_files import FETCH_AGAIN, StoredTensor, WeightFile

_Module = TypeVar("_Module", bound=nn.Module)

# Hears of each tensor that is in its place: the file it came from, and its length there in bytes.
LoadListener = Callable[[WeightFile, int], None]

# The published text encoder is stored as a language model: its names have a prefix.
_PREFIX = "model."
# Some copies of it keep the matrix that makes words of states; it is the embedding's twin, and not used here.
_UNUSED = {"lm_head.weight"}

_STRANGERS = "Weights and configuration belong to different models: fetch the model again."


def make_empty(make: Callable[[], _Module]) -> _Module:
    """What `make` makes, but with parameters that have a shape and no memory; buffers are made as ever."""
    with init_empty_weights(include_buffers=False):
        return make()


def fill(
    module: nn.Module,
    part: WeightedPart,
    device: torch.device,
    dtype: torch.dtype,
    on_loaded: LoadListener,
    on_host: Container[str] = (),
    together: Iterable[Sequence[str]] = (),
) -> None:
    """Give an empty `module` the weights of `part`, in `dtype`, ready for inference.

    Args:
        module: without memory for its parameters.
        part: where they are.
        device: where they go.
        dtype: what they become.
        on_loaded: hears of each.
        on_host: the module's names of those that go to host memory instead.
        together: groups of its names of matrices that are to lie below each other in one piece of memory, in that
            order; all of a group on the device, or all on the host.

    Raises:
        ModelDamagedError: the weights are not exactly those that the module needs, or a file ends too early.
        OSError: a file cannot be read.
        torch.OutOfMemoryError: the device has no room.
    """
    names = match(module, part)
    away = {key for key, name in names.items() if name in on_host}
    wholes = _Wholes(module, names, together, dtype)
    for wanted, place in ((names.keys() - away, device), (away, torch.device("cpu"))):
        with closing(read_tensors(part.weights, wanted, place, partial(wholes.room, place))) as tensors:
            for weight, key, tensor in tensors:
                _put(module, names[key], wholes.placed(key, tensor))
                on_loaded(weight, tensor.nbytes)
    for buffer in module.buffers():
        buffer.data = buffer.data.to(device)
    module.requires_grad_(False).eval()


class _Wholes:
    """Memory for matrices that are to lie below each other, allocated for a group when the first of it is read."""

    def __init__(
        self, module: nn.Module, names: Mapping[str, str], groups: Iterable[Sequence[str]], dtype: torch.dtype
    ) -> None:
        self._module = module
        self._names = names
        self._groups = {name: group for group in groups for name in group}
        self._dtype = dtype
        self._parts: dict[str, torch.Tensor] = {}

    def room(self, device: torch.device, key: str, stored: StoredTensor) -> torch.Tensor | None:
        """For `read_tensors`: a matrix that needs no cast is read straight to where it stays."""
        name = self._names[key]
        if name not in self._groups:
            return None
        if name not in self._parts:
            self._allocate(self._groups[name], device)
        fits = FLOAT_DTYPES[stored.dtype] == self._dtype
        return self._parts[name].flatten().view(torch.uint8) if fits else None

    def placed(self, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """What was read, cast and in its place."""
        part = self._parts.get(self._names[key])
        if part is None:
            return tensor.to(self._dtype)
        return part if part.data_ptr() == tensor.data_ptr() else part.copy_(tensor)

    def _allocate(self, group: Sequence[str], device: torch.device) -> None:
        shapes = [self._module.get_parameter(name).shape for name in group]
        rows, (columns,) = [shape[0] for shape in shapes], {shape[1] for shape in shapes}
        whole = torch.empty(sum(rows), columns, dtype=self._dtype, device=device)
        self._parts.update(zip(group, whole.split(rows), strict=True))


def match(module: nn.Module, part: WeightedPart) -> dict[str, str]:
    """The module's name of every stored tensor, where both are exactly the same set.

    Raises:
        ModelDamagedError: a tensor is missing, left over, of another shape, or not a floating-point one.
    """
    needed = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    names: dict[str, str] = {}
    for weight in part.weights:
        for key, stored in weight.tensors.items():
            name = key if key in needed else key.removeprefix(_PREFIX)
            if name in needed:
                _compare(weight, key, stored, needed[name])
                names[key] = name
            elif key not in _UNUSED:
                raise ModelDamagedError(
                    f"{weight.path} has a tensor {key}, for which there is no place in the {part.title} "
                    f"that {part.folder / 'config.json'} describes.",
                    _STRANGERS,
                )
    missing = sorted(needed.keys() - set(names.values()))
    if missing:
        files = ", ".join(weight.path.name for weight in part.weights)
        raise ModelDamagedError(
            f"{part.folder} lacks {len(missing)} of {len(needed)} tensors, the first of them {missing[0]} "
            f"(looked in {files}).",
            FETCH_AGAIN,
        )
    return names


def _compare(weight: WeightFile, key: str, stored: StoredTensor, shape: tuple[int, ...]) -> None:
    if stored.shape != shape:
        raise ModelDamagedError(
            f"{weight.path}: {key} is {_dimensions(stored.shape)}; config.json asks for {_dimensions(shape)}.",
            _STRANGERS,
        )
    if stored.dtype not in FLOAT_DTYPES:
        raise ModelDamagedError(
            f"{weight.path}: {key} is stored as {stored.dtype}; quantised weights cannot be read yet.",
            "Choose the model in bf16, fp16 or fp32; it is cast to what the hardware computes in.",
        )


def _dimensions(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _put(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    holder = module.get_submodule(owner)
    if isinstance(getattr(holder, leaf), nn.Parameter):
        holder.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
    else:
        holder.register_buffer(leaf, tensor)
