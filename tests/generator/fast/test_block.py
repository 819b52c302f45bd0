"""The one block function against the stock block."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast import block as module
from zimage_ui.generator.fast import parts
from zimage_ui.generator.fast.attention import AttentionBackend, attention
from zimage_ui.generator.fast.block import BlockKernels, block_weights, run_block
from zimage_ui.generator.fast.modulation import ModulationTables, plain_rows
from zimage_ui.generator.fast.parts import norm
from zimage_ui.generator.fast.quantised_rows import quantise
from zimage_ui.generator.fast.rotary import image_positions, rotation_table
from zimage_ui.generator.fast.shapes import DenoiserShape
from zimage_ui.request import Precision

pytestmark = pytest.mark.model

CPU = torch.device("cpu")
POSITIONS = image_positions(DenoiserShape(10, 14, 32))


def ours(block, stream, rows, next_scale, table, **options):
    normed = norm(stream, rows[0], 1e-5).to(stream.dtype)
    following = torch.cat((rows[1:], next_scale[None]))
    return run_block(stream, normed, block_weights(block), following, table, **options)


@pytest.fixture
def table(transformer):
    return rotation_table(transformer.rope_embedder, POSITIONS, CPU)


@pytest.mark.parametrize("pictures", [1, 3])
def test_a_modulated_block_is_the_stock_one(transformer, noise, distance, table, pictures):
    block = transformer.layers[1]
    stream = noise(pictures, len(POSITIONS), 96)
    embedding = transformer.t_embedder(torch.tensor([0.3]) * transformer.t_scale)
    expected = block(stream, None, transformer.rope_embedder(POSITIONS)[None], embedding)
    rows = ModulationTables(transformer).rows((700.0,))[0, 12:16]
    stream_after, normed = ours(block, stream, rows, torch.full((96,), 2.0), table)
    assert distance(stream_after, expected) < 1e-6
    assert distance(normed, 2 * torch.nn.functional.rms_norm(expected, (96,), eps=1e-5)) < 1e-6


def test_a_block_without_modulation_is_the_stock_one(transformer, noise, distance, table):
    block = transformer.context_refiner[0]
    stream = noise(1, len(POSITIONS), 96)
    expected = block(stream, None, transformer.rope_embedder(POSITIONS)[None])
    after, _ = ours(block, stream, plain_rows(block), torch.ones(96), table)
    assert distance(after, expected) < 1e-6


def test_tokens_that_nobody_reads_can_be_left_out(transformer, noise, table):
    block = transformer.context_refiner[0]
    stream = noise(2, len(POSITIONS), 96)
    whole, _ = ours(block, stream, plain_rows(block), torch.ones(96), table)
    kept, normed = ours(block, stream, plain_rows(block), torch.ones(96), table, kept_tokens=35)
    assert kept.shape == normed.shape == (2, 35, 96)
    assert torch.allclose(kept, whole[:, :35], atol=1e-5)


def test_kernels_read_dense_tokens_of_several_pictures(noise, table, monkeypatch):
    def fp8_attention(product, *heads):
        return quantise(attention(*parts.turned_heads(product, *heads)).flatten(2), torch.float8_e4m3fn)

    def add_and_norm(stream, change, *others):
        assert all(each.is_contiguous() for each in change)
        return parts.add_and_norm(stream, change, *others)

    kernels = SimpleNamespace(**vars(parts) | {"add_and_norm": add_and_norm})
    monkeypatch.setattr(module, "parts_by", lambda *, triton: kernels)
    monkeypatch.setitem(
        sys.modules, "zimage_ui.generator.fast.fp8_attention", SimpleNamespace(fp8_attention=fp8_attention)
    )
    weights = block_weights(random_transformer().layers[0], Precision.FP8)
    stream, rows = noise(2, len(POSITIONS), 96), torch.ones(4, 96)
    normed = norm(stream, rows[0], 1e-5)
    chosen = BlockKernels(AttentionBackend.FP8, triton=True)
    whole, _ = run_block(stream, normed, weights, rows, table, None, chosen)
    kept, _ = run_block(stream, normed, weights, rows, table, 35, chosen)
    assert torch.allclose(kept, whole[:, :35], atol=1e-5)


def test_in_bf16_it_is_nearer_to_fp32_than_the_stock_block(transformer, noise, distance, table):
    block = random_transformer().bfloat16().context_refiner[0]
    exact_block = random_transformer().bfloat16().float().context_refiner[0]
    stream = noise(1, len(POSITIONS), 96).bfloat16()
    rotation = transformer.rope_embedder(POSITIONS)[None]
    exact = exact_block(stream.float(), None, rotation)
    after, _ = ours(block, stream, plain_rows(block), torch.ones(96), table)
    assert after.dtype == torch.bfloat16
    assert distance(after.float(), exact) <= distance(block(stream, None, rotation).float(), exact)
