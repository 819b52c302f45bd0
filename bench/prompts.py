"""Prompts that nobody has encoded before, all of about the same number of tokens, whatever the tokenizer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# With the chat template's own tokens; one bucket of 32 of captions, the last before the next.
LEAST_TOKENS, MOST_TOKENS = 57, 64
_WORDS = """
amber autumn bay birch blue boat bridge bright calm canyon castle cedar cliff cloud cold copper coral creek dawn
deer desert dune dusk eagle ember evening fern field fire fjord fog forest fox frost garden glass gold grass
green grey harbour hill horse house ice iron island ivory lake lantern leaf light lily maple marsh meadow mist
moon morning moss mountain night oak ocean old olive orchard owl path pine plain pond quiet rain red reed river
road rock rose ruin sand sea shore silver sky slate snow soft spring star stone storm stream summer sun swan
tower tree valley violet wall warm water wave white wild willow wind window winter wolf wood yellow
"""


class Prompt(NamedTuple):
    """A prompt and its tokens, those of the chat template included."""

    text: str
    tokens: int


def new_prompts(model: Path, seed: int) -> Iterator[Prompt]:
    """Endless prompts of `LEAST_TOKENS` to `MOST_TOKENS` for the tokenizer of the model at `model`, no two alike.

    Args:
        model: a folder in diffusers layout.
        seed: other prompts for another one.
    """
    from transformers import AutoTokenizer

    from zimage_ui.generator.encoding import tokenize

    tokenizer = AutoTokenizer.from_pretrained(model / "tokenizer", local_files_only=True)
    words, drawn, given = _WORDS.split(), random.Random(seed), set[str]()
    while True:
        prompt, tokens = "a view of", 0
        for word in drawn.sample(words, len(words)):
            longer = len(tokenize(tokenizer, f"{prompt} {word}", 512).ids)
            if longer <= MOST_TOKENS:
                prompt, tokens = f"{prompt} {word}", longer
            if tokens >= LEAST_TOKENS:
                break
        if prompt not in given:
            given.add(prompt)
            yield Prompt(prompt, tokens)
