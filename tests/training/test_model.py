import json
import shutil

import pytest
import torch
from safetensors import safe_open

from training.model import (
    ModelSizes,
    Parts,
    build_text_encoder,
    build_transformer,
    build_vae,
    load_model,
    save_model,
)
from zimage_ui.generator.layout import open_model_folder
from zimage_ui.generator.profiles import find_profile
from zimage_ui.generator.sources import BUNDLED_FOLDER

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def parts(sizes):
    return Parts(build_vae(sizes), build_text_encoder(sizes, 100, 0), build_transformer(sizes))


def test_the_usual_model_fits_32_mb():
    with torch.device("meta"):
        sizes = ModelSizes()
        built = build_vae(sizes), build_text_encoder(sizes, 1_100, 0), build_transformer(sizes)
    assert 28e6 < 2 * sum(parameter.numel() for part in built for parameter in part.parameters()) < 32e6


def test_the_usual_sizes_are_those_of_the_bundled_model():
    sizes = ModelSizes()
    config = {
        part: json.loads((BUNDLED_FOLDER / part / "config.json").read_text("utf-8"))
        for part in ("vae", "text_encoder", "transformer")
    }
    assert config["vae"].items() >= _plain(build_vae(sizes)).items()
    assert config["transformer"].items() >= _plain(build_transformer(sizes)).items()
    ours = json.loads(build_text_encoder(sizes, config["text_encoder"]["vocab_size"], 0).config.to_json_string())
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"):
        assert config["text_encoder"][name] == ours[name]


def _plain(part):
    """What was chosen of a part's configuration, as JSON has it; its scale is learned."""
    config = json.loads(part.to_json_string())
    return {
        name: value for name, value in config.items() if name not in ("scaling_factor", "shift_factor", "_name_or_path")
    }


def test_the_autoencoder_makes_latents_an_eighth_as_wide(sizes):
    vae = build_vae(sizes)
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 48, 64)).latent_dist.mean
        assert latents.shape == (1, 16, 6, 8)
        assert vae.decode(latents).sample.shape == (1, 3, 48, 64)


def test_pad_tokens_are_not_zero(parts):
    assert parts.transformer.x_pad_token.norm() > 0
    assert parts.transformer.cap_pad_token.norm() > 0


def test_saving_and_loading_gives_the_rounded_weights(parts, tmp_path):
    save_model(tmp_path, parts)
    again = load_model(tmp_path)
    for name in ("vae", "text_encoder", "transformer"):
        before, after = getattr(parts, name).state_dict(), getattr(again, name).state_dict()
        assert before.keys() == after.keys()
        for key, value in before.items():
            assert value.dtype == after[key].dtype == torch.float32
            assert torch.equal(value.bfloat16().float(), after[key]), key


def test_it_is_stored_in_bf16_and_whole(parts, tmp_path):
    save_model(tmp_path, parts)
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, "pt") as stored:
            assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"BF16"}  # noqa: SIM118


def test_no_folder_of_the_trainer_is_stored(parts, tmp_path):
    save_model(tmp_path / "first", parts)
    save_model(tmp_path / "second", load_model(tmp_path / "first"))
    for path in (tmp_path / "second").rglob("*.json"):
        assert str(tmp_path) not in path.read_text("utf-8")
    for first in (tmp_path / "first").rglob("*.json"):
        assert first.read_text("utf-8") == (tmp_path / "second" / first.relative_to(tmp_path / "first")).read_text(
            "utf-8"
        )


def test_the_product_knows_it_as_mini(parts, tmp_path, tokenizer_folder):
    save_model(tmp_path, parts)
    shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    files = open_model_folder(tmp_path)
    profile = find_profile(str(tmp_path), files.marker, files.transformer.config, files.scheduler)
    assert profile.name == "mini"
    assert files.marker["trained"] is True
