from itertools import islice
from pathlib import Path

import pytest

from bench.prompts import LEAST_TOKENS, MOST_TOKENS, new_prompts


@pytest.mark.model
def test_prompts_are_new_fill_their_bucket_and_come_again_for_the_same_seed(tmp_path: Path):
    from zimage_ui.generator.untrained import build_untrained_model

    model = build_untrained_model(tmp_path / "tiny")
    prompts = list(islice(new_prompts(model, seed=3), 20))
    assert len({prompt.text for prompt in prompts}) == 20
    assert all(LEAST_TOKENS <= prompt.tokens <= MOST_TOKENS for prompt in prompts)
    assert list(islice(new_prompts(model, seed=3), 20)) == prompts
    assert next(new_prompts(model, seed=4)) not in prompts
