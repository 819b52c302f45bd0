"""Every error of torch becomes one of ours, and keeps nothing of the job alive."""

import gc
import logging
import weakref
from typing import NoReturn

import pytest
import torch

from zimage_ui.errors import DeviceLostError, DeviceMemoryError, GenerationError, JobCancelledError, ZImageError
from zimage_ui.generator import failures
from zimage_ui.generator.failures import translated

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
LOST = [
    "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: misaligned address",
]
MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.6 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError(),
]
OTHER = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"),
    RuntimeError("CUDA error: no kernel image is available for execution on the device"),
    ValueError("Height must be divisible by 16"),
    IndexError("index 1024 is out of bounds for dimension 0 with size 1024"),
    KeyError("2-1"),
]


def raising(error: BaseException) -> NoReturn:
    raise error


def failure_of(error: Exception) -> ZImageError:
    with pytest.raises(ZImageError) as caught:
        translated(lambda: raising(error), CPU)
    return caught.value


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: str(error)[:40])
def test_out_of_memory(error):
    assert type(failure_of(error)) is DeviceMemoryError


@pytest.mark.parametrize("text", LOST)
def test_a_lost_device(text):
    failure = failure_of(RuntimeError(text))
    assert type(failure) is DeviceLostError
    assert text.splitlines()[0] in failure.message
    assert failure.hint


@pytest.mark.parametrize("error", OTHER, ids=lambda error: str(error)[:40])
def test_anything_else(error, caplog):
    with caplog.at_level(logging.ERROR, "zimage_ui"):
        failure = failure_of(error)
    assert type(failure) is GenerationError
    assert type(error).__name__ in failure.message
    assert "Traceback" in caplog.text  # the log has the details that the message promises


def test_an_unknown_error_of_a_device_that_answers_no_more_is_a_lost_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: raising(RuntimeError("CUDA error: unknown error")))
    with pytest.raises(DeviceLostError):
        translated(lambda: raising(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")), torch.device("cuda:0"))


def test_an_unknown_error_of_a_device_that_answers_is_only_a_failure(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    failure = failures.as_ours(RuntimeError("cuDNN error: CUDNN_STATUS_BAD_PARAM"), torch.device("cuda:0"))
    assert type(failure) is GenerationError


@pytest.mark.parametrize("error", [JobCancelledError("cancelled"), GenerationError("ours", "hint")])
def test_our_own_errors_come_out_as_they_are(error):
    assert failure_of(error) is error


def test_an_interrupt_passes_through():
    with pytest.raises(KeyboardInterrupt):
        translated(lambda: raising(KeyboardInterrupt()), CPU)


def test_an_answer_comes_back():
    assert translated(lambda: 7, CPU) == 7


@pytest.mark.parametrize("error", [RuntimeError("broken"), torch.OutOfMemoryError("full"), JobCancelledError("stop")])
def test_an_error_that_is_kept_keeps_no_tensor_alive(error):
    alive: list[weakref.ref[torch.Tensor]] = []

    def work() -> None:
        latents = torch.zeros(8)
        alive.append(weakref.ref(latents))
        raise type(error)(str(error))

    with pytest.raises(ZImageError) as caught:
        translated(work, CPU)
    kept = caught.value
    gc.collect()
    assert alive[0]() is None
    assert kept.__context__ is None
