"""Attention over strided views, without copies; the choice of a kernel is a GPU's affair."""

import pytest
import torch

from zimage_ui.generator.fast import attention as module
from zimage_ui.generator.fast import choices
from zimage_ui.generator.fast.attention import (
    AttentionBackend,
    attention,
    attention_by,
    backend_times_ms,
    fastest_backend,
    has_fp8_attention,
)
from zimage_ui.generator.fast.choices import Choices

pytestmark = pytest.mark.model


@pytest.fixture
def views(noise):
    """As a block's projection leaves them."""
    return noise(2, 12, 3, 2, 16).unbind(2)


@pytest.mark.parametrize("backend", [None, AttentionBackend.MATH])
def test_it_is_softmax_attention(views, backend):
    query, key, value = views
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 4
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value)
    with attention_by(backend):
        assert torch.allclose(attention(query, key, value), expected, atol=1e-5)


def test_fewer_queries_than_keys(views):
    query, key, value = views
    whole = attention(query, key, value)
    assert torch.allclose(attention(query[:, :5], key, value), whole[:, :5], atol=1e-6)


def test_heads_come_back_beside_each_other_without_a_copy(views):
    answer = attention(*views)
    assert answer.flatten(2).data_ptr() == answer.data_ptr()


def test_a_cpu_leaves_the_choice_to_torch():
    assert fastest_backend((1, 32, 2, 16), torch.float32, torch.device("cpu")) is None


def test_every_backend_has_a_kernel():
    of_torch = [backend.kernel for backend in AttentionBackend if backend.kernel is not None]
    assert len(set(of_torch)) == len(of_torch) == len(AttentionBackend) - 2
    assert [backend for backend in AttentionBackend if backend.kernel is None] == [
        AttentionBackend.FLASH4, AttentionBackend.FP8,
    ]  # fmt: skip


def test_attention_in_eight_bits_is_for_hopper_and_heads_of_128(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for capability, head_dim, serves in (((9, 0), 128, True), ((9, 0), 64, False), ((8, 9), 128, False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, answer=capability: answer)
        assert has_fp8_attention(head_dim, cuda) is serves
    assert not has_fp8_attention(128, torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert not has_fp8_attention(128, cuda)


def test_a_backend_is_chosen_within_its_context_only():
    def flags():
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()

    before = flags()
    with attention_by(AttentionBackend.MATH):
        assert flags() == (False, True)
    assert flags() == before


@pytest.fixture
def stopwatch(monkeypatch):
    """Runs nothing; every run takes a millisecond less than the one before."""
    taken = iter(range(9, 0, -1))
    monkeypatch.setattr(module, "median_ms", lambda run, device: float(next(taken)))


SHAPE = (1, 32, 2, 16)
CUDNN, FLASH = AttentionBackend.CUDNN, AttentionBackend.FLASH


def test_flash_attention_4_is_timed_where_it_is_installed(monkeypatch, stopwatch):
    cpu = torch.device("cpu")
    assert AttentionBackend.FLASH4 not in backend_times_ms(SHAPE, torch.bfloat16, cpu)
    monkeypatch.setattr(module, "has_flash_attention_4", lambda dtype, device: True)
    times_ms = backend_times_ms(SHAPE, torch.bfloat16, cpu)
    assert min(times_ms, key=times_ms.__getitem__) is AttentionBackend.FLASH4


def test_flash_attention_4_is_left_out_when_it_fails_in_whatever_way(monkeypatch, caplog):
    def fails(run, device):
        if run.keywords:
            raise AssertionError("head_dim is not supported")
        return 1.0

    monkeypatch.setattr(module, "has_flash_attention_4", lambda dtype, device: True)
    monkeypatch.setattr(module, "median_ms", fails)
    times_ms = backend_times_ms(SHAPE, torch.bfloat16, torch.device("cpu"))
    assert set(times_ms) == {AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.EFFICIENT}
    assert "head_dim is not supported" in caplog.text


def test_the_usual_backend_stays_unless_another_is_clearly_faster(monkeypatch):
    gpu, made = torch.device("cuda"), Choices()
    times_ms = iter([{CUDNN: 1.0, FLASH: 0.99}, {CUDNN: 1.0, FLASH: 0.9}])
    monkeypatch.setattr(module, "kernel_choices", lambda: made)
    monkeypatch.setattr(module, "backend_times_ms", lambda *_: next(times_ms))
    monkeypatch.setattr(module, "has_flash_attention_4", lambda dtype, device: False)
    monkeypatch.setattr(choices, "_machine", lambda device: "a GPU")
    for _ in range(2):
        assert fastest_backend(SHAPE, torch.bfloat16, gpu) is CUDNN
    for _ in range(2):
        assert fastest_backend((1, 64, 2, 16), torch.bfloat16, gpu) is FLASH
    assert next(times_ms, None) is None


def test_a_full_memory_says_nothing_of_a_backend(monkeypatch):
    def run_out(run, device):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, "median_ms", run_out)
    with pytest.raises(torch.OutOfMemoryError):
        backend_times_ms(SHAPE, torch.bfloat16, torch.device("cpu"))
