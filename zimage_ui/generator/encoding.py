"""The first stage: a prompt becomes `prompt_embeds`, as the stock pipeline makes them, with less work.

Two things the stock pipeline computes are never looked at, so they are not computed:

* It pads every prompt to 512 tokens and drops the padding afterwards. Attention is causal and the padding stands to
  the right, so no real token ever sees it: encoding the real tokens alone is exact (up to rounding).
* It takes `hidden_states[-2]`, what goes into the last decoder layer: that layer and the final norm do nothing for it.

How the rest is computed is in `fast.text_encoder`.
"""

from __future__ import annotations

import copy
import threading
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import torch

from zimage_ui.generator.clock import stopwatch
from zimage_ui.generator.components import Components
from zimage_ui.generator.embedding_cache import EmbeddingCache, EmbeddingKey, PromptEmbedding
from zimage_ui.generator.fast.text_encoder import FastTextEncoder
from zimage_ui.generator.transfers import to_host

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen3Model


@dataclass(frozen=True, slots=True)
class TokenizedPrompt:
    """The token ids of a prompt in its chat template, cut at the maximum; `truncated` counts what was cut off."""

    ids: list[int]
    truncated: int


def tokenize(tokenizer: PreTrainedTokenizerBase, prompt: str, max_tokens: int) -> TokenizedPrompt:
    """Wrap `prompt` in the chat template and tokenize it, exactly as the stock pipeline does."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    ids = tokenizer(text).input_ids
    if len(ids) <= max_tokens:
        return TokenizedPrompt(ids, 0)
    kept = tokenizer(text, truncation=True, max_length=max_tokens).input_ids
    return TokenizedPrompt(kept, len(ids) - len(kept))


def without_last_layer(text_encoder: Qwen3Model) -> Qwen3Model:
    """A text encoder that shares all weights with the given one, less the last decoder layer and the final norm.

    Its `last_hidden_state` is the given one's `hidden_states[-2]`. Once the given one is dropped, the last layer's
    memory is free.
    """
    return with_layers(text_encoder, 0, len(text_encoder.layers) - 1)


def with_layers(text_encoder: Qwen3Model, begin: int, end: int) -> Qwen3Model:
    """A text encoder of the given one's layers from `begin` up to `end`, without the final norm; weights are shared.

    Given the `last_hidden_state` of the layers before as `inputs_embeds`, it goes on where they ended.
    """
    config = copy.deepcopy(text_encoder.config)
    config.num_hidden_layers = end - begin
    config.layer_types = config.layer_types[begin:end]
    with torch.device("meta"):  # the parts it is built with are replaced: they need no memory
        shorter = type(text_encoder)(config)
    shorter.embed_tokens = text_encoder.embed_tokens
    shorter.layers = text_encoder.layers[begin:end]
    shorter.rotary_emb = text_encoder.rotary_emb
    shorter.norm = torch.nn.Identity()
    return shorter.eval()


class BegunPrompts(Protocol):
    """Prompts whose encoding begins before they are asked for (`encoding_ahead.PromptsAhead`)."""

    def advance(self, prompt: str, *, wait: bool) -> bool:
        """Do a short piece of `prompt`, and `wait` for it or not; False when nothing is left to do."""

    def do_whole(self, prompt: str, encode: Callable[[], PromptEmbedding]) -> bool:
        """Have `encode` do all of `prompt`, and wait for it; False when nothing is left to do."""

    def take(self, prompt: str) -> PromptEmbedding | None:
        """The embedding of `prompt`, finished; None if it was not begun."""


class PromptEncoder:
    """Encodes prompts with the text encoder of `components` (already without its last layer), through a cache."""

    def __init__(
        self,
        components: Components,
        cache: EmbeddingCache,
        encode: Callable[[list[int]], torch.Tensor] | None = None,
        ahead: BegunPrompts | None = None,
    ) -> None:
        """Keep what encoding needs.

        Args:
            components: whose tokenizer, limits and fingerprint count.
            cache: of embeddings.
            encode: token ids to (tokens, features) on the device; None is a `FastTextEncoder` of its own.
            ahead: what prompts may have been begun by, before they were asked for.
        """
        self._components = components
        self._cache = cache
        self._encode = encode or FastTextEncoder(components.text_encoder, components.device).encode
        self._ahead = ahead
        self._encoding = threading.Lock()  # the tokenizer keeps its truncation as state, the device is one

    def encode(self, prompt: str) -> tuple[PromptEmbedding, bool]:
        """The embedding of `prompt`, in host memory, and whether it came from the cache."""
        key = self._key(prompt)
        return self._cache.get(key, lambda: self._compute(key.prompt))

    def encode_ahead(self, prompt: str, *, wait: bool = False, whole: bool = False) -> bool:
        """Do a piece of encoding `prompt`, before it is asked for; False when nothing is left to do.

        Args:
            prompt: of some job to come.
            wait: for the piece to be done.
            whole: one piece is all of it, done as `encode` would, and waited for. Nothing else may be under way on the
                device.
        """
        key = self._key(prompt)
        if self._ahead is None or key in self._cache:
            return False
        with self._encoding:
            if whole:
                return self._ahead.do_whole(key.prompt, partial(self._compute_now, key.prompt))
            return self._ahead.advance(key.prompt, wait=wait)

    def _key(self, prompt: str) -> EmbeddingKey:
        parts = self._components
        return EmbeddingKey(
            text_encoder=parts.text_encoder_fingerprint,
            dtype=parts.dtype,
            max_prompt_tokens=parts.max_prompt_tokens,
            prompt=unicodedata.normalize("NFC", prompt),
        )

    def _compute(self, prompt: str) -> PromptEmbedding:
        with self._encoding:
            begun = self._ahead.take(prompt) if self._ahead else None
            return begun or self._compute_now(prompt)

    def _compute_now(self, prompt: str) -> PromptEmbedding:
        parts = self._components
        with torch.inference_mode():
            watch = stopwatch(parts.device)
            watch.start()
            tokens = tokenize(parts.tokenizer, prompt, parts.max_prompt_tokens)
            prompt_embeds = to_host(self._encode(tokens.ids))
            watch.stop()
        return PromptEmbedding(
            prompt_embeds=prompt_embeds,
            prompt_tokens=len(tokens.ids),
            truncated_tokens=tokens.truncated,
            elapsed_ms=watch.elapsed_ms,
        )
