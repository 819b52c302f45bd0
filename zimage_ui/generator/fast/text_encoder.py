"""The text encoder made fast: the same features as the stock module's, up to rounding.

A prompt is short, so on a GPU a layer does little but read its weights (7.1 GB in all, 2.4 ms of an H100's memory),
and what costs time is everything else: launching kernels, and small ones between the matrix products. So queries, keys
and values are one product and so are gate and up, what lies between the products is a few kernels of our own
(`triton_encoder`) for all layers and lengths, and CUDA graphs are recorded for prompts padded to a multiple of 32
tokens. Where those kernels do not serve, or fail, a layer is compiled once for all layers and lengths. Attention is
causal and the padding stands to the right: no token of the prompt ever sees it, and no mask is needed.

Before a length has been prepared, and whenever anything goes wrong, the stock module encodes. It does so, too, while
its weights live in host memory: then its layers visit the device one by one (`residence`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from zimage_ui.generator.fast.any_size import compiled
from zimage_ui.generator.fast.attempts import attempt
from zimage_ui.generator.fast.graphs import RecordedFunction, Recorder, Recordings, recorder_for
from zimage_ui.generator.fast.parts import has_triton_parts, norm
from zimage_ui.generator.fast.projections import fused
from zimage_ui.generator.fast.shapes import padded
from zimage_ui.generator.transfers import to_device

if TYPE_CHECKING:
    from transformers import Qwen3Model

# The matrices of a stock layer that are one product's, in the order of its outputs.
FUSED = (
    ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
)

# All lengths up to 512 tokens in steps of 32, and some: a graph of these is small, and they share their memory.
_KEPT_LENGTHS = 24
# Without cuDNN, which builds a plan for each new length.
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class LayerWeights(NamedTuple):
    """One decoder layer.

    Attributes:
        attention_norm, query_norm, key_norm, feed_forward_norm: weights of the norms, fp32.
        query_key_value, output, gate_up, down: matrices, (outputs, inputs).
        eps: of all norms.
    """

    attention_norm: torch.Tensor
    query_norm: torch.Tensor
    key_norm: torch.Tensor
    feed_forward_norm: torch.Tensor
    query_key_value: torch.Tensor
    output: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor
    eps: float


class _EncoderWeights(NamedTuple):
    """What the layers of a recording read, which must live as long as any, and what its rotary tables are made of."""

    layers: list[LayerWeights]
    frequencies: torch.Tensor


# Cosines and sines, see `rotary_tables`.
_Tables = tuple[torch.Tensor, torch.Tensor]
# A decoder layer, as `run_layer` is one.
Layer = Callable[[torch.Tensor, LayerWeights, torch.Tensor, torch.Tensor], torch.Tensor]


def layer_weights(layer: Any) -> LayerWeights:
    """The weights of a stock layer; those of its products become views of the fused ones."""
    attention = layer.self_attn
    query_key_value, gate_up = fused(layer, FUSED)
    return LayerWeights(
        attention_norm=layer.input_layernorm.weight.data.float(),
        query_norm=attention.q_norm.weight.data.float(),
        key_norm=attention.k_norm.weight.data.float(),
        feed_forward_norm=layer.post_attention_layernorm.weight.data.float(),
        query_key_value=query_key_value,
        output=attention.o_proj.weight.data,
        gate_up=gate_up,
        down=layer.mlp.down_proj.weight.data,
        eps=layer.input_layernorm.variance_epsilon,
    )


def run_layer(stream: torch.Tensor, weights: LayerWeights, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """One decoder layer over (tokens, features).

    Args:
        stream: the residual stream.
        weights: of this layer.
        cosines: of the rotary angles, (tokens, head features), fp32.
        sines: likewise.
    """
    dtype, head_dim = stream.dtype, len(weights.query_norm)
    heads = weights.output.shape[1] // head_dim
    key_heads = (len(weights.query_key_value) // head_dim - heads) // 2
    normed = norm(stream, weights.attention_norm, weights.eps).to(dtype)
    products = functional.linear(normed, weights.query_key_value).unflatten(-1, (-1, head_dim)).transpose(0, 1)
    query, key, value = products.split((heads, key_heads, key_heads))
    query = rotated(norm(query, weights.query_norm, weights.eps), cosines, sines).to(dtype)
    key = rotated(norm(key, weights.key_norm, weights.eps), cosines, sines).to(dtype)
    attended = functional.scaled_dot_product_attention(
        query[None], key[None], value[None], is_causal=True, enable_gqa=True
    )[0]
    stream = stream + functional.linear(attended.transpose(0, 1).flatten(1), weights.output)
    normed = norm(stream, weights.feed_forward_norm, weights.eps).to(dtype)
    gate, up = functional.linear(normed, weights.gate_up).chunk(2, -1)
    return stream + functional.linear(functional.silu(gate) * up, weights.down)


def rotated(values: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding as Qwen has it: feature i turns together with feature i + half."""
    first, second = values.chunk(2, -1)
    return values * cosines + torch.cat((-second, first), -1) * sines


def rotary_tables(tokens: int, frequencies: torch.Tensor) -> _Tables:
    """Cosines and sines for `rotated`, (tokens, 2 * frequencies) each."""
    angles = torch.outer(torch.arange(tokens, device=frequencies.device), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def encode_tokens(text_encoder: Qwen3Model, ids: list[int], device: torch.device) -> torch.Tensor:
    """The features of each token, (tokens, features), computed on `device` by the stock module."""
    return through_stock(text_encoder, embedded(text_encoder, ids, device))


def through_stock(layers: Qwen3Model, rows: torch.Tensor) -> torch.Tensor:
    """What the stock module makes of `rows`, (tokens, features), whatever their number."""
    with sdpa_kernel(_BACKENDS):
        return layers(inputs_embeds=rows[None], use_cache=False).last_hidden_state[0]


class FastTextEncoder:
    """Turns token ids into features; made once, where the model is loaded."""

    def __init__(
        self,
        text_encoder: Qwen3Model,
        device: torch.device,
        recorder: Recorder | None = None,
        ways: Sequence[Callable[[], Layer]] | None = None,
    ) -> None:
        """Keep what encoding needs; weights are fused when they are first used on the device.

        Args:
            text_encoder: for inference, without the layers whose output nobody wants.
            device: where it computes, wherever its weights are just now.
            recorder: records graphs; None is CUDA graphs on a GPU and nothing elsewhere.
            ways: of making the layer, tried in this order until one is recorded; None is `usual_ways`. Where nothing
                is recorded, the first is taken.
        """
        self._text_encoder = text_encoder
        self._device = device
        ways = ways or usual_ways(text_encoder, device)
        self._is_supported = _is_plain_qwen3(text_encoder.config)
        self._recordings: Recordings[int, Callable[[], Layer]] = Recordings(
            _KEPT_LENGTHS, recorder or recorder_for(device), ways
        )
        # What last worked, for lengths that nobody prepared; until then the stock module is surer.
        self._layer = None if self._recordings.can_record else ways[0]()
        self._weights: _EncoderWeights | None = None
        self._tried: set[int] = set()  # lengths, since the last release

    def encode(self, ids: list[int]) -> torch.Tensor:
        """The features of each token, (tokens, features), on the device.

        Raises:
            torch.OutOfMemoryError: there is too little memory.
        """
        layer = self._layer
        if layer is None or not self._is_supported or not self._weights_are_here:
            return encode_tokens(self._text_encoder, ids, self._device)
        if not self._recordings.can_record:
            return self._run(layer, self._tables(len(ids)), embedded(self._text_encoder, ids, self._device))
        length = padded(len(ids))
        # Padded as ids, which takes no launches of its own: whichever token it is, none before it sees it.
        rows = embedded(self._text_encoder, ids + ids[-1:] * (length - len(ids)), self._device)
        features = attempt(
            partial(self._encode_padded, layer, rows),
            "the stock text encoder encodes from now on",
            but=(torch.OutOfMemoryError,),
        )
        if features is None:
            self._is_supported = False
            self.release()
            return encode_tokens(self._text_encoder, ids, self._device)
        return features[: len(ids)]

    @torch.inference_mode()
    def prepare(self, tokens: int) -> bool:
        """Compile and record what prompts of `tokens`, padded to a multiple of 32, need. Costs nothing when it is done.

        A failure is logged, and such prompts are encoded as if nobody had prepared for them.

        Returns:
            Whether that length is prepared; a CPU prepares nothing, and neither does a GPU while the weights are away.
        """
        if not self._prepares:
            return False
        length = padded(tokens)
        prepared = self._recordings.prepare(length, partial(self._record, length), f"encoding {length} tokens")
        self._tried.add(length)
        return prepared

    def is_prepared(self, tokens: int) -> bool:
        """Whether prompts of so many tokens are encoded by what was prepared for them."""
        return padded(tokens) in self._recordings

    def lacks(self, tokens: int) -> bool:
        """Whether `prepare` has something to do for prompts of so many tokens, and has not tried it in vain."""
        return self._prepares and padded(tokens) not in self._tried

    def release(self) -> bool:
        """Drop what was prepared and every hold on the weights: they are about to move, or memory ran out.

        Returns:
            Whether anything was recorded, so that there is more memory now.
        """
        self._weights = None
        self._tried.clear()
        return self._recordings.release()

    @property
    def _prepares(self) -> bool:
        return self._recordings.can_record and self._is_supported and self._weights_are_here

    @property
    def _weights_are_here(self) -> bool:
        table = self._text_encoder.embed_tokens.weight  # which never visits: other threads may ask meanwhile
        return table.device.type == self._device.type

    def _record(self, length: int, way: Callable[[], Layer], recorder: Recorder) -> RecordedFunction:
        layer = way()
        # Weights and tables are laid out here: on the recorder's stream they would keep its memory to themselves, and
        # tables would be computed in every replay.
        tables = self._tables(length)
        table = self._text_encoder.embed_tokens.weight
        example = torch.zeros((length, table.shape[1]), device=self._device, dtype=table.dtype)
        recorded = RecordedFunction(partial(self._run, layer, tables), (example,), recorder)
        self._layer = layer
        return recorded

    def _encode_padded(self, layer: Layer, rows: torch.Tensor) -> torch.Tensor:
        run = self._recordings.get(len(rows)) or partial(self._run, layer, self._tables(len(rows)))
        return run(rows)

    def _run(self, layer: Layer, tables: _Tables, rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel(_BACKENDS):
            for weights in self._laid_out().layers:
                rows = layer(rows, weights, *tables)
        return self._text_encoder.norm(rows)

    def _tables(self, tokens: int) -> _Tables:
        return rotary_tables(tokens, self._laid_out().frequencies)

    def _laid_out(self) -> _EncoderWeights:
        if self._weights is None:
            self._weights = _EncoderWeights(
                layers=[layer_weights(layer) for layer in self._text_encoder.layers],
                frequencies=self._text_encoder.rotary_emb.inv_freq.to(self._device, torch.float32),
            )
        return self._weights


def embedded(text_encoder: Qwen3Model, ids: list[int], device: torch.device) -> torch.Tensor:
    """A row of the token table for each of `ids`, on `device`.

    The table is read where it lies: it is the largest single weight, and a prompt needs a few rows of it.
    """
    table = text_encoder.embed_tokens
    return to_device(table(to_device(torch.tensor(ids), table.weight.device)), device)


def usual_ways(text_encoder: Qwen3Model, device: torch.device) -> tuple[Callable[[], Layer], ...]:
    """How a layer is made: on a GPU with kernels of our own, where they serve, then compiled; elsewhere neither."""
    if device.type != "cuda":
        return (_plain_layer,)
    dtype, head_dim = text_encoder.dtype, text_encoder.config.head_dim
    triton = has_triton_parts(dtype, dtype, head_dim, device)
    return (*([_layer_with_triton] if triton else []), _compiled_layer)


def _is_plain_qwen3(config: Any) -> bool:
    """Whether a layer is what `run_layer` computes."""
    return (
        config.hidden_act == "silu"
        and not config.attention_bias
        and set(config.layer_types) == {"full_attention"}
        and config.rope_parameters.get("rope_type", "default") == "default"
    )


def _plain_layer() -> Layer:
    return run_layer


def _layer_with_triton() -> Layer:
    from zimage_ui.generator.fast import triton_encoder

    return triton_encoder.run_layer


@cache
def _compiled_layer() -> Layer:
    return compiled(run_layer, varying={0: (0,), 2: (0,), 3: (0,)})
