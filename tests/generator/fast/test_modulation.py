"""The modulation's tables: what the stock blocks compute in every step."""

import pytest
import torch

from tests.generator.fast.conftest import random_transformer
from zimage_ui.generator.fast.modulation import ModulationTables, plain_rows

pytestmark = pytest.mark.model

TIMESTEPS = (1000.0, 937.5, 300.25, 3.0)


@pytest.fixture
def tables(transformer):
    return ModulationTables(transformer)


def embedding(transformer, timestep):
    return transformer.t_embedder((1000 - torch.tensor([timestep])) / 1000 * transformer.t_scale)


def test_rows_are_the_stock_blocks_scales_and_gates_times_their_norms(transformer, tables):
    rows = tables.rows(TIMESTEPS)
    assert rows.shape == (len(TIMESTEPS), 4 * 5 + 1, 96)
    for timestep, of_step in zip(TIMESTEPS, rows, strict=True):
        for place, block in enumerate([*transformer.noise_refiner, *transformer.layers]):
            scale1, gate1, scale2, gate2 = block.adaLN_modulation(embedding(transformer, timestep))[0].chunk(4)
            expected = torch.stack(
                [
                    (1 + scale1) * block.attention_norm1.weight,
                    gate1.tanh() * block.attention_norm2.weight,
                    (1 + scale2) * block.ffn_norm1.weight,
                    gate2.tanh() * block.ffn_norm2.weight,
                ]
            )
            assert torch.allclose(of_step[4 * place : 4 * place + 4], expected, atol=1e-5)


def test_the_last_row_is_the_final_layers_scale(transformer, tables):
    final = transformer.all_final_layer["2-1"]
    for timestep, of_step in zip(TIMESTEPS, tables.rows(TIMESTEPS), strict=True):
        expected = 1 + final.adaLN_modulation(embedding(transformer, timestep))[0]
        assert torch.allclose(of_step[-1], expected, atol=1e-5)


def test_they_are_fp32_whatever_the_model_computes_in(tables):
    half = random_transformer().bfloat16()
    rows = ModulationTables(half).rows(TIMESTEPS)
    assert rows.dtype == torch.float32
    assert (rows - tables.rows(TIMESTEPS)).abs().max() < 0.05


def test_a_schedule_is_computed_once_and_a_few_are_kept(tables):
    first = tables.rows(TIMESTEPS)
    assert tables.rows(list(TIMESTEPS)) is first
    others = [(float(timestep),) for timestep in range(3)]
    for other in others:
        tables.rows(other)
    assert tables.rows(TIMESTEPS) is first
    for other in ((10.0,), (11.0,), (12.0,), (13.0,)):
        tables.rows(other)
    assert tables.rows(TIMESTEPS) is not first


def test_a_block_without_modulation_has_its_norms_alone(transformer):
    block = transformer.context_refiner[0]
    norms = (block.attention_norm1, block.attention_norm2, block.ffn_norm1, block.ffn_norm2)
    assert torch.equal(plain_rows(block), torch.stack([norm.weight for norm in norms]))
