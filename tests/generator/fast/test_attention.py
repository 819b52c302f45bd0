"""Attention over strided views, without copies; the choice of a kernel is a GPU's affair."""

import logging
import sys
from types import SimpleNamespace

import pytest
import torch

from zimage_ui.generator.fast import attention as module
from zimage_ui.generator.fast import choices
from zimage_ui.generator.fast.attention import (
    AttentionBackend,
    attention,
    attention_by,
    backend_times_ms,
    candidates,
    fastest_backend,
    has_fp8_attention,
)
from zimage_ui.generator.fast.choices import Choices
from zimage_ui.generator.fast.giving_way import GaveWayError, giving_way
from zimage_ui.generator.fast.rotary import shape_rotary
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.generator.fast.step import PassPlan, StepNetwork

pytestmark = pytest.mark.model

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
CUDNN, FLASH, EFFICIENT = OF_TORCH = AttentionBackend.CUDNN, AttentionBackend.FLASH, AttentionBackend.EFFICIENT
FLASH4 = (AttentionBackend.FLASH4, AttentionBackend.FLASH4_128X160, AttentionBackend.FLASH4_192X80)
TRITON = AttentionBackend.TRITON
OTHERS = (*FLASH4, TRITON)
SHAPE = (1, 32, 2, 16)


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
    assert fastest_backend((1, 32, 2, 16), torch.float32, CPU) is None


def test_every_backend_has_a_kernel():
    of_torch = [backend.kernel for backend in AttentionBackend if backend.kernel is not None]
    assert len(set(of_torch)) == len(of_torch) == len(AttentionBackend) - len(OTHERS) - 1
    others = [backend for backend in AttentionBackend if backend.kernel is None]
    assert others == [*OTHERS, AttentionBackend.FP8]


@pytest.fixture
def kernels(monkeypatch):
    """Stand-ins for those that are not torch's; each says its name when it is asked, and computes by torch."""
    asked = []

    def kernel(name):
        def run(query, key, value, tile=None):
            asked.append(name if tile is None else f"{name} {tile[0]}x{tile[1]}")
            return attention(query, key, value)

        return run

    monkeypatch.setattr(module.cute_kernels, "flash_attention_4", kernel(FLASH4[0]))
    ours = SimpleNamespace(triton_attention=kernel(TRITON))
    monkeypatch.setitem(sys.modules, "zimage_ui.generator.fast.triton_attention", ours)
    monkeypatch.setattr(module, "candidates", lambda *_: [*OF_TORCH, *OTHERS])
    return asked


def test_what_is_not_torchs_is_computed_by_its_own_kernel(kernels, views):
    usual = attention(*views)
    assert kernels == []
    for backend in OTHERS:
        assert torch.equal(attention(*views, backend), usual)
    assert kernels == [*OTHERS]
    for backend in (*OF_TORCH, AttentionBackend.FP8):
        assert torch.equal(attention(*views, backend), usual)
    assert kernels == [*OTHERS]


@pytest.mark.parametrize("backend", [None, *OTHERS])
def test_a_pass_has_it_in_every_block_that_a_step_runs(kernels, transformer, noise, backend):
    network, shape = StepNetwork(transformer), DenoiserShape(10, 14, 32)
    rotary = shape_rotary(transformer.rope_embedder, shape, CPU)
    plan = PassPlan(shape, rotary, backend)
    with torch.inference_mode():
        network.velocity(plan, noise(1, 16, 10, 14), torch.ones(network.row_count, 96), noise(1, 32, 96))
    blocks = len(network.refiner) + len(network.layers)
    assert kernels == [backend] * (blocks if backend else 0)


@pytest.mark.parametrize(
    ("hopper", "dtype", "head_dim", "installed", "others"),
    [
        (True, torch.bfloat16, 128, True, [*FLASH4, TRITON]),
        (True, torch.bfloat16, 128, False, [TRITON]),
        (True, torch.bfloat16, 64, True, [FLASH4[0]]),
        (True, torch.float16, 128, True, [*FLASH4]),
        (True, torch.float32, 128, True, []),
        (False, torch.bfloat16, 128, True, [FLASH4[0]]),
        (False, torch.bfloat16, 128, False, []),
    ],
)
def test_candidates_are_those_that_serve_here(monkeypatch, hopper, dtype, head_dim, installed, others):
    def answer(device):
        return (9, 0) if hopper else (10, 0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", answer)
    monkeypatch.setattr(module.cute_kernels, "_is_installed", lambda package, name: installed)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert candidates(head_dim, dtype, CUDA) == [*OF_TORCH, *others]


def test_without_triton_there_is_no_kernel_of_ours(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(module.cute_kernels, "_is_installed", lambda package, name: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert candidates(128, torch.bfloat16, CUDA) == [*OF_TORCH]


def test_attention_in_eight_bits_is_for_hopper_and_heads_of_128(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for capability, head_dim, serves in (((9, 0), 128, True), ((9, 0), 64, False), ((8, 9), 128, False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, answer=capability: answer)
        assert has_fp8_attention(head_dim, CUDA) is serves
    assert not has_fp8_attention(128, CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert not has_fp8_attention(128, CUDA)


def test_a_backend_is_chosen_within_its_context_only():
    def flags():
        return torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()

    before = flags()
    with attention_by(AttentionBackend.MATH):
        assert flags() == (False, True)
    assert flags() == before


@pytest.fixture
def turns(monkeypatch):
    """Runs each once instead of measuring; keeps which there were, and which of torch's kernels were allowed then."""
    taken = {}

    def in_turns_ms(runs, device):
        for name, run in runs.items():
            monkeypatch.setattr(module, "attention", lambda *_, name=name: taken.update({name: allowed()}))
            run()
        return dict.fromkeys(runs, 1.0)

    monkeypatch.setattr(module, "in_turns_ms", in_turns_ms)
    return taken


def allowed():
    cuda = torch.backends.cuda
    return [cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled()]


def test_all_that_serve_take_turns_each_by_its_own_kernel(turns, kernels, monkeypatch):
    monkeypatch.setattr(module, "_serves", lambda backend, run: True)
    assert list(backend_times_ms(SHAPE, torch.bfloat16, CPU)) == [*OF_TORCH, *OTHERS]
    assert [turns[backend] for backend in OF_TORCH] == [
        [True, False, False],
        [False, True, False],
        [False, False, True],
    ]


def test_torchs_kernels_that_are_not_for_a_shape_are_left_out_quietly(turns, kernels, caplog):
    """Of its three, torch has one for a CPU."""
    with caplog.at_level(logging.INFO):
        assert list(backend_times_ms(SHAPE, torch.bfloat16, CPU)) == [FLASH, *OTHERS]
    assert caplog.text == ""
    assert kernels == [*OTHERS]


def test_another_kernel_is_left_out_when_it_fails_in_whatever_way(turns, kernels, monkeypatch, caplog):
    usual = module.cute_kernels.flash_attention_4

    def fails_in_tiles(*views_and_tile):
        if views_and_tile[-1] is not None:
            raise TypeError("unexpected keyword argument 'tile_mn'")
        return usual(*views_and_tile)

    monkeypatch.setattr(module.cute_kernels, "flash_attention_4", fails_in_tiles)
    assert list(backend_times_ms(SHAPE, torch.bfloat16, CPU)) == [FLASH, FLASH4[0], TRITON]
    for tile in ("128x160", "192x80"):
        assert f"attention by flash4 {tile} is left out: TypeError: unexpected keyword argument" in caplog.text


def test_looking_which_serve_gives_way(turns, kernels, caplog):
    with giving_way(lambda: True), pytest.raises(GaveWayError):
        backend_times_ms(SHAPE, torch.bfloat16, CPU)
    assert kernels == []
    assert turns == {}
    assert caplog.text == ""


def test_the_usual_backend_stays_unless_another_is_clearly_faster(monkeypatch):
    made = Choices()
    times_ms = iter([{CUDNN: 1.0, FLASH: 0.995}, {CUDNN: 1.0, FLASH: 0.9}])
    monkeypatch.setattr(module, "kernel_choices", lambda: made)
    monkeypatch.setattr(module, "backend_times_ms", lambda *_: next(times_ms))
    monkeypatch.setattr(module, "candidates", lambda *_: [*OF_TORCH])
    monkeypatch.setattr(choices, "_machine", lambda device: "a GPU")
    for _ in range(2):
        assert fastest_backend(SHAPE, torch.bfloat16, CUDA) is CUDNN
    for _ in range(2):
        assert fastest_backend((1, 64, 2, 16), torch.bfloat16, CUDA) is FLASH
    assert next(times_ms, None) is None


@pytest.mark.parametrize("full", ["attention", "in_turns_ms"])
def test_a_full_memory_says_nothing_of_a_backend(monkeypatch, kernels, turns, full):
    def run_out(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(module, full, run_out)
    for backends in (OF_TORCH, OTHERS):
        monkeypatch.setattr(module, "candidates", lambda *_, there=backends: [*there])
        with pytest.raises(torch.OutOfMemoryError):
            backend_times_ms(SHAPE, torch.bfloat16, CPU)
