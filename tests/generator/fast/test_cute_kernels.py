"""The operators around the optional kernels: a compiler takes them whole, and the rest of the block stays as it is."""

import sys

import pytest
import torch

from zimage_ui.generator.fast import cute_kernels
from zimage_ui.generator.fast.attention import AttentionBackend, attention
from zimage_ui.generator.fast.block import BlockKernels, block_weights, run_block
from zimage_ui.generator.fast.cute_kernels import (
    GATE_TILES,
    PRODUCT_TILES,
    has_flash_attention_4,
    has_gated_product,
    has_tiled_product,
)
from zimage_ui.generator.fast.modulation import plain_rows
from zimage_ui.generator.fast.parts import norm
from zimage_ui.generator.fast.rotary import caption_positions, rotation_table

pytestmark = pytest.mark.model


@pytest.fixture
def on_a_cpu():
    """Kernels for the operators on a CPU, for as long as a test takes."""
    with torch.library._scoped_library("zimage_ui", "IMPL") as library:
        library.impl("flash_attention_4", lambda *views: attention(*views[:3]).contiguous(), "CPU")
        library.impl("gated_product", product, "CPU")
        yield


def product(values, weight, tile):
    assert tile in GATE_TILES
    gate, up = (values @ weight.t()).chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


FLASH4 = (AttentionBackend.FLASH4, AttentionBackend.FLASH4_128X160, AttentionBackend.FLASH4_192X80)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("attended_by", FLASH4)
def test_a_block_with_both_is_the_same(on_a_cpu, transformer, noise, distance, backend, compiled, attended_by):
    block, stream = transformer.context_refiner[0], noise(2, 32, 96)
    weights, rows = block_weights(block), torch.cat((plain_rows(block)[1:], torch.ones(1, 96)))
    table = rotation_table(transformer.rope_embedder, caption_positions(32), torch.device("cpu"))
    normed = norm(stream, plain_rows(block)[0], 1e-5)
    run = torch.compile(run_block, fullgraph=True, backend=backend) if compiled else run_block
    with torch.inference_mode():
        expected, _ = run_block(stream, normed, weights, rows, table)
        for tokens in (None, 20):
            found, _ = run(stream, normed, weights, rows, table, tokens, BlockKernels(attended_by, GATE_TILES[0]))
            assert distance(found, expected[:, :tokens]) < 1e-6
    assert backend.compilations == (2 if compiled else 0)


def test_the_answer_is_told_before_it_is_computed(noise):
    query, key, value = noise(2, 12, 3, 4, 16).unbind(2)
    weight = noise(20, 8)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
        by_all = [attention(query[:, :5], key, value, by) for by in FLASH4]
        gated = cute_kernels.gated_product(noise(2, 12, 8), weight, GATE_TILES[0])
        plain = cute_kernels.tiled_product(noise(2, 12, 8), weight, PRODUCT_TILES[0])
    assert [attended.shape for attended in by_all] == [(2, 5, 4, 16)] * len(FLASH4)
    assert all(attended.is_contiguous() for attended in by_all)
    assert gated.shape == (2, 12, 10)
    assert plain.shape == (2, 12, 20)


def weight_of(outputs, inputs):
    return torch.empty(2 * outputs, inputs, dtype=torch.bfloat16)


def test_neither_is_for_a_cpu_or_for_fp32(monkeypatch):
    monkeypatch.setattr(cute_kernels, "_is_installed", lambda package, module: True)
    assert not has_flash_attention_4(torch.bfloat16, torch.device("cpu"))
    assert not has_gated_product(weight_of(64, 32))
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 9)
    assert has_flash_attention_4(torch.bfloat16, torch.device("cuda"))
    assert not has_flash_attention_4(torch.float32, torch.device("cuda"))
    assert has_gated_product(weight_of(64, 32))
    assert not has_gated_product(weight_of(64, 32).float())
    assert has_tiled_product(weight_of(4, 32))
    assert not has_tiled_product(weight_of(2, 32))
    assert not has_tiled_product(weight_of(4, 32).float())


@pytest.mark.parametrize(("architecture", "attends", "gates"), [(8, False, False), (9, True, True), (10, True, False)])
def test_they_are_for_hopper(monkeypatch, architecture, attends, gates):
    monkeypatch.setattr(cute_kernels, "_is_installed", lambda package, module: True)
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: architecture)
    assert has_flash_attention_4(torch.bfloat16, torch.device("cuda")) is attends
    assert has_gated_product(weight_of(64, 32)) is gates


@pytest.mark.parametrize(
    ("outputs", "inputs", "fits"),
    [(10240, 3840, True), (1368, 512, True), (1365, 512, False), (1364, 512, False), (64, 36, False)],
)
def test_the_gate_is_for_rows_of_whole_copies(monkeypatch, outputs, inputs, fits):
    monkeypatch.setattr(cute_kernels, "_is_installed", lambda package, module: True)
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 9)
    assert has_gated_product(weight_of(outputs, inputs)) is fits


def test_a_library_is_installed_when_its_module_is_there():
    assert cute_kernels._is_installed("importlib", "metadata")
    assert not cute_kernels._is_installed("importlib", "nothing_of_this_name")
    assert not cute_kernels._is_installed("no_package_of_this_name", "metadata")


QUACK = """
import threading, torch
compiled = torch.compile(len, dynamic=False), torch.compile(dynamic=False)(len)
elsewhere = []
other = threading.Thread(target=lambda: elsewhere.append(torch.compile(max, backend="eager")))
other.start()
other.join()
assert {works}, "no tensor cores"
def gemm_act(): pass
"""


@pytest.fixture
def quack(tmp_path, monkeypatch):
    """Puts a library of that name where it is found; whether it can be imported is the argument."""
    names = ("quack", "quack.gemm_interface", "flash_attn", "flash_attn.cute")

    def put(*, works):
        for package, module in (names[0], "gemm_interface"), (names[2], "cute"):
            (tmp_path / package).mkdir()
            (tmp_path / package / "__init__.py").write_text("")
            (tmp_path / package / f"{module}.py").write_text(QUACK.format(works=works) if package == "quack" else "")

    monkeypatch.syspath_prepend(tmp_path)
    cute_kernels._is_installed.cache_clear()
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield put
    for name in names:
        sys.modules.pop(name, None)
    cute_kernels._is_installed.cache_clear()


@pytest.mark.parametrize("works", [True, False])
def test_importing_quack_compiles_nothing_and_leaves_the_compiler_as_it_was(quack, works):
    quack(works=works)
    compiler = torch.compile
    if works:
        assert cute_kernels._gemm_act() is sys.modules["quack.gemm_interface"].gemm_act
        assert sys.modules["quack.gemm_interface"].compiled == (len, len)
        assert sys.modules["quack.gemm_interface"].elsewhere != [max], "another thread has its compiler"
    else:
        with pytest.raises(AssertionError, match="no tensor cores"):
            cute_kernels._gemm_act()
    assert torch.compile is compiler


@pytest.mark.parametrize("works", [True, False])
def test_both_are_imported_meanwhile_where_they_serve(quack, monkeypatch, works):
    quack(works=works)
    with cute_kernels.imported_meanwhile(torch.device("cpu")):
        pass
    assert "quack" not in sys.modules
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 9)
    compiler = torch.compile
    with cute_kernels.imported_meanwhile(torch.device("cuda")):
        pass
    assert torch.compile is compiler
    assert "flash_attn.cute" in sys.modules
    if works:
        assert cute_kernels._gemm_act() is sys.modules["quack.gemm_interface"].gemm_act
    else:
        with pytest.raises(AssertionError, match="no tensor cores"):
            cute_kernels._gemm_act()


def test_what_fails_while_weights_are_read_is_not_hidden_by_the_imports(quack, monkeypatch):
    quack(works=True)
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 9)
    with pytest.raises(OSError, match="no such folder"), cute_kernels.imported_meanwhile(torch.device("cuda")):
        raise OSError("no such folder")
    assert "flash_attn.cute" in sys.modules


def test_newer_cards_have_attention_alone(quack, monkeypatch):
    quack(works=True)
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 10)
    with cute_kernels.imported_meanwhile(torch.device("cuda")):
        pass
    assert "quack" not in sys.modules
    assert "flash_attn.cute" in sys.modules


def test_a_library_that_breaks_when_it_is_looked_into_is_not_there(quack, tmp_path, monkeypatch, caplog):
    quack(works=True)
    (tmp_path / "quack/__init__.py").write_text("raise AttributeError('cutlass has no attribute cute')")
    monkeypatch.setattr(cute_kernels, "architecture", lambda device: 9)
    for _ in range(2):
        assert not has_tiled_product(weight_of(64, 32))
    assert caplog.text.count("quack is left out: AttributeError: cutlass has no attribute cute") == 1
