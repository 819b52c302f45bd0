"""The text encoder's kernels on a real GPU: what torch's operations compute, rounded once, for every length."""

import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.gpu.test_fast_denoiser import CUDA, distance
from zimage_ui.generator.encoding import without_last_layer
from zimage_ui.generator.fast import parts, triton_encoder, triton_parts
from zimage_ui.generator.fast.text_encoder import (
    FastTextEncoder,
    LayerWeights,
    encode_tokens,
    rotary_tables,
    rotated,
    run_layer,
)

pytestmark = [pytest.mark.gpu, pytest.mark.model]

BF16 = torch.bfloat16
EPS = 1e-6
# How far one rounding of normal numbers to bf16 leads from them, and the five of a layer.
ROUNDING, LAYER_ROUNDING = 0.0025, 0.006
LENGTHS = pytest.mark.parametrize("tokens", [1, 7, 32, 33, 64, 200])


# Features, query heads, key heads, features of a head, hidden ones: the full-size model's, and some that fill no block
# of a kernel.
Sizes = tuple[int, int, int, int, int]
FULL: Sizes = (2560, 32, 8, 128, 9728)
SIZES = pytest.mark.parametrize("sizes", [FULL, (200, 9, 3, 32, 333), (50, 3, 1, 16, 75)], ids=str)


@pytest.fixture(autouse=True)
def backends():
    """The encoder's own: where the layer is called alone, torch is to choose among the same."""
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        yield


def normal(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(CUDA, dtype)


def matrix(outputs: int, inputs: int) -> torch.Tensor:
    return (normal(outputs, inputs, dtype=torch.float32) / inputs**0.5).to(BF16)


def uneven(width: int) -> torch.Tensor:
    """The weight of a norm, in which a mistake shows."""
    return torch.linspace(0.5, 1.5, width, device=CUDA)


def weights_of(sizes: Sizes) -> LayerWeights:
    width, queries, keys, head_dim, hidden = sizes
    return LayerWeights(
        attention_norm=uneven(width),
        query_norm=uneven(head_dim),
        key_norm=uneven(head_dim).flip(0),
        feed_forward_norm=uneven(width).flip(0),
        query_key_value=matrix((queries + 2 * keys) * head_dim, width),
        output=matrix(width, queries * head_dim),
        gate_up=matrix(2 * hidden, width),
        down=matrix(width, hidden),
        eps=EPS,
    )


def in_fp32(weights: LayerWeights) -> LayerWeights:
    return LayerWeights(*(value.float() if isinstance(value, torch.Tensor) else value for value in weights))


def tables(tokens: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    return rotary_tables(tokens, 1e6 ** -torch.linspace(0, 1, head_dim // 2, device=CUDA))


@SIZES
@LENGTHS
class TestKernels:
    def test_norm(self, sizes, tokens):
        stream, weight = normal(tokens, sizes[0]), uneven(sizes[0])
        found = triton_encoder.normed_rows(stream, weight, EPS)
        assert found.dtype == BF16
        assert distance(found.float(), parts.norm(stream, weight, EPS)) < ROUNDING

    def test_sum_and_norm(self, sizes, tokens):
        stream, change, weight = normal(tokens, sizes[0]), normal(tokens, sizes[0]).flip(-1), uneven(sizes[0])
        kept = stream.clone()
        added, normed = triton_encoder.added_and_normed(stream, change, weight, EPS)
        assert torch.equal(added, stream + change)
        assert distance(normed.float(), parts.norm(added, weight, EPS)) < ROUNDING
        assert torch.equal(stream, kept)

    def test_queries_and_keys_are_normed_and_turned(self, sizes, tokens):
        _, queries, keys, head_dim, _ = sizes
        weights, angles = weights_of(sizes), tables(tokens, head_dim)
        product = normal(tokens, (queries + 2 * keys) * head_dim)
        heads = product.float().unflatten(-1, (-1, head_dim)).transpose(0, 1).split((queries, keys, keys))
        query, key, value = triton_encoder.turned_heads(product, weights, *angles)
        for ours, theirs, norm in zip((query, key), heads, (weights.query_norm, weights.key_norm), strict=False):
            assert ours.dtype == BF16
            assert ours.shape == (1, *theirs.shape)
            assert distance(ours[0].float(), rotated(parts.norm(theirs, norm, EPS), *angles)) < ROUNDING
        assert torch.equal(value[0].float(), heads[2])

    def test_gate(self, sizes, tokens):
        both = normal(tokens, 2 * sizes[-1])
        gate, up = both.float().chunk(2, -1)
        assert distance(triton_parts.gated_rows(both).float(), functional.silu(gate) * up) < ROUNDING

    def test_a_layer_is_the_same_each_time_and_leaves_its_input_alone(self, sizes, tokens):
        weights, angles, stream = weights_of(sizes), tables(tokens, sizes[3]), normal(tokens, sizes[0])
        kept = stream.clone()
        found = triton_encoder.run_layer(stream, weights, *angles)
        assert found.dtype == BF16
        assert distance(found.float(), run_layer(stream.float(), in_fp32(weights), *angles)) < LAYER_ROUNDING
        assert torch.equal(triton_encoder.run_layer(stream, weights, *angles), found)
        assert torch.equal(stream, kept)


def test_a_full_size_layer_is_no_further_from_exact_than_torchs_operations():
    weights, angles, stream = weights_of(FULL), tables(64, FULL[3]), normal(64, FULL[0])
    exact = run_layer(stream.float(), in_fp32(weights), *angles)
    theirs = distance(run_layer(stream, weights, *angles).float(), exact)
    assert distance(triton_encoder.run_layer(stream, weights, *angles).float(), exact) <= 1.02 * theirs


def test_what_is_given_to_attention_needs_no_copy():
    _, queries, keys, head_dim, _ = FULL
    product = normal(64, (queries + 2 * keys) * head_dim)
    query, key, value = triton_encoder.turned_heads(product, weights_of(FULL), *tables(64, head_dim))
    assert value.untyped_storage().data_ptr() == product.untyped_storage().data_ptr()
    torch.cuda.synchronize(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    most = torch.cuda.max_memory_allocated(CUDA) - before
    assert attended[0].transpose(0, 1).is_contiguous()
    assert most < attended.nbytes + value.nbytes  # the answer and its sums, of four bytes a row


def test_no_length_has_a_kernel_of_its_own():
    kernels = (
        triton_parts._norm, triton_encoder._add_and_norm, triton_encoder._turn_heads, triton_parts._gate,
    )  # fmt: skip
    weights = weights_of(FULL)

    def made() -> list[int]:  # as Triton 3.6 keeps them: by what the arguments are specialised to
        return [len(kernel.device_caches[torch.cuda.current_device()][0]) for kernel in kernels]

    def run(tokens: int) -> None:
        triton_encoder.run_layer(normal(tokens, FULL[0]), weights, *tables(tokens, FULL[3]))

    run(64)
    before = made()
    for tokens in (1, 7, 16, 33, 512):
        run(tokens)
    assert all(before)
    assert made() == before


class TestEncoder:
    """A small Qwen3 with odd widths, through what is recorded and what is not."""

    @pytest.fixture(autouse=True)
    def inference(self):
        with torch.inference_mode():
            yield

    @pytest.fixture
    def text_encoder(self) -> Any:
        from transformers import Qwen3Config, Qwen3Model

        config = Qwen3Config(
            vocab_size=400, hidden_size=200, intermediate_size=333, num_hidden_layers=5, head_dim=32,
            num_attention_heads=9, num_key_value_heads=3,
        )  # fmt: skip
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            whole = Qwen3Model(config).eval().requires_grad_(False)
            for name, parameter in whole.named_parameters():
                if "norm" in name:
                    torch.nn.init.uniform_(parameter, 0.5, 1.5)
            return without_last_layer(whole.to(CUDA, BF16))

    @LENGTHS
    @pytest.mark.parametrize("prepared", [True, False])
    def test_features_are_no_further_from_exact_than_stock(self, text_encoder, tokens, prepared, caplog):
        ids = [7 * place % 400 for place in range(tokens)]
        exact = encode_tokens(deepcopy(text_encoder).float(), ids, CUDA)
        theirs = encode_tokens(text_encoder, ids, CUDA)
        compilations = counters["stats"]["unique_graphs"]
        encoder = FastTextEncoder(text_encoder, CUDA)
        with caplog.at_level(logging.WARNING, "zimage_ui"):
            assert encoder.prepare(tokens if prepared else 400)
            assert encoder.is_prepared(tokens) is prepared
            ours = encoder.encode(ids)
        assert ours.shape == exact.shape
        assert distance(ours.float(), exact) <= 1.1 * distance(theirs.float(), exact)
        assert torch.equal(encoder.encode(ids), ours)
        assert counters["stats"]["unique_graphs"] == compilations
        assert not [record for record in caplog.records if record.name.startswith("zimage_ui")]
