from pathlib import Path

import pytest

from bench import full_size


@pytest.mark.model
def test_the_parts_have_the_sizes_of_z_image_turbo(tmp_path: Path):
    import torch

    from zimage_ui.generator.untrained import build_untrained_model

    parts = full_size._full_size_parts(build_untrained_model(tmp_path / "small"), torch.bfloat16)
    with torch.device("meta"):
        models = {name: make() for name, make in parts.items()}
    millions = {name: round(sum(each.numel() for each in model.parameters()) / 1e6) for name, model in models.items()}
    assert millions == {"transformer": 6155, "text_encoder": 4022, "vae": 84}
    assert {str(models[part].dtype) for part in ("transformer", "text_encoder")} == {"torch.bfloat16"}
    assert models["transformer"].config.cap_feat_dim == models["text_encoder"].config.hidden_size
    assert len(models["text_encoder"].config.layer_types) == 36


@pytest.mark.model
def test_a_tiny_one_is_the_untrained_model_and_says_so(tmp_path: Path):
    assert full_size.build(tmp_path / "tiny", "cpu", tiny=True) > 0
    assert full_size.marker(tmp_path / "tiny")["trained"] is False
    assert full_size.marker(tmp_path) == {"folder": tmp_path.name}
