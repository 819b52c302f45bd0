"""cuBLASLt where it is not: no kernels, and no product but torch's. What it is on a GPU, tests/gpu shows."""

import ctypes
import logging

import pytest
import torch

from zimage_ui.generator.fast import cublaslt

pytestmark = pytest.mark.model


def test_a_cpu_has_no_kernels_of_it(noise):
    weight = noise(16, 8)
    assert cublaslt.kernel_names(32, weight) == ()
    assert cublaslt.product(noise(2, 8), weight, "cublasLt tile 29") is None


def test_a_proposal_is_laid_out_as_the_header_says():
    """96 bytes in CUDA 12 and 13: the algorithm's 64, then size, state, waves and reserved words."""
    assert ctypes.sizeof(cublaslt._Proposal) == 96
    assert cublaslt._Proposal.workspace_bytes.offset == 64
    assert cublaslt._Proposal.state.offset == 72
    assert cublaslt._Proposal.waves.offset == 76


@pytest.fixture
def forgetful():
    """Nothing is remembered of other tests, nor by them."""
    caches = (cublaslt._problem, cublaslt._library, cublaslt._handle)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("fault", ["no library", "a refusal"])
def test_a_library_that_cannot_be_asked_is_told_of_once(monkeypatch, caplog, forgetful, fault):
    class Refusing:
        def __getattr__(self, name):
            return lambda *arguments: 15

    def missing():
        raise OSError("libcublasLt.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device", lambda device: torch.inference_mode())
    monkeypatch.setattr(cublaslt, "_library", missing if fault == "no library" else Refusing)
    monkeypatch.setattr(cublaslt._library, "cache_clear", lambda: None, raising=False)
    weight = torch.empty(16, 8, dtype=torch.bfloat16, device="meta")
    monkeypatch.setattr(
        cublaslt, "_size", lambda tokens, weight: cublaslt._Size(tokens, 16, 8, weight.dtype, torch.device("cuda:0"))
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert cublaslt.kernel_names(32, weight) == ()
    (record,) = caplog.records
    assert "torch's choice of kernels" in record.message
    assert ("libcublasLt.so.13" if fault == "no library" else "cublasLtMatmulDescCreate answered 15") in record.message
