import json
from pathlib import Path

import pytest

from bench.work import ModelWork, Work, block_matrices, caption_work, decoder_work, step_work, text_encoder_work
from zimage_ui.generator.fast.shapes import DenoiserShape

TRANSFORMER = {"dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "in_channels": 16, "cap_feat_dim": 2560}
TEXT_ENCODER = {
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 36,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "out_channels": 3,
    "use_post_quant_conv": False,
}
MODEL = ModelWork(TRANSFORMER, TEXT_ENCODER, VAE)


def test_work_adds_up():
    assert Work(1, 2) + Work(3, 4) * 2 == Work(7, 10)
    assert Work(7, 10).total == 17


def test_one_forward_at_one_megapixel_by_hand():
    # One block, one token: 4 x 3840² for attention's projections, 3 x 3840 x 10240 for the feed-forward; twice each.
    per_token = 2 * (4 * 3840**2 + 3 * 3840 * 10240)
    image, both = 64 * 64, 64 * 64 + 64
    products = per_token * (30 * both + 2 * image) + 2 * 2 * image * 64 * 3840
    attention = 4 * 3840 * (30 * both**2 + 2 * image**2)
    assert step_work(TRANSFORMER, MODEL.shape(1024, 1024, 40)) == Work(products, attention)
    assert products / 1e12 == pytest.approx(47.1, abs=0.05)
    assert attention / 1e12 == pytest.approx(8.5, abs=0.05)


def test_a_block_of_the_full_size_has_these_matrices():
    assert block_matrices(3840) == {
        "query, key, value": (3840, 11520),
        "out": (3840, 3840),
        "gate, up": (3840, 20480),
        "down": (10240, 3840),
    }


def test_a_prompt_through_the_text_encoder_by_hand():
    # Of a layer: 2560 x (4096 + 1024 + 1024) and 4096 x 2560 for attention, 3 x 2560 x 9728 for the feed-forward.
    layer = 2 * 40 * (2560 * 6144 + 4096 * 2560 + 3 * 2560 * 9728)
    assert text_encoder_work(TEXT_ENCODER, 40) == Work(35 * layer, 35 * 4 * 40**2 * 4096)
    assert text_encoder_work(TEXT_ENCODER, 40).total * 36 / 35 / 1e12 == pytest.approx(0.29, abs=0.005)


def test_decoding_one_megapixel():
    work = decoder_work(VAE, 128, 128)
    assert work.total / 1e12 == pytest.approx(10.5, abs=0.05)
    assert work.attention == 4 * (128 * 128) ** 2 * 512


def test_a_picture_is_its_parts_and_the_caption_is_refined_once():
    shape = MODEL.shape(832, 1248, 57)
    assert (shape.height, shape.width, shape.caption_tokens) == (156, 104, 64)
    forwards = MODEL.forwards(832, 1248, 57, 8)
    assert forwards == step_work(TRANSFORMER, shape) * 8 + caption_work(TRANSFORMER, shape)
    assert MODEL.picture(832, 1248, 57, 8) == MODEL.encode(57) + forwards + MODEL.decode(832, 1248)


def test_it_is_read_from_a_folder(tmp_path: Path):
    for part in ("transformer", "text_encoder", "vae"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(getattr(MODEL, part)))
    assert ModelWork.of_folder(tmp_path) == MODEL


@pytest.mark.model
class TestAgainstTorchsCounter:
    """torch counts what the stock modules really do."""

    @staticmethod
    def counted(run) -> int:
        import torch
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.utils.flop_counter import FlopCounterMode

        # The counter does not know the CPU's own kernel for attention; the plain one consists of matrix products.
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops()

    def test_the_transformer(self):
        import torch
        from diffusers import ZImageTransformer2DModel

        sizes = {"dim": 96, "n_layers": 3, "n_refiner_layers": 2, "in_channels": 16, "cap_feat_dim": 40}
        model = ZImageTransformer2DModel(**sizes, n_heads=2, n_kv_heads=2, axes_dims=[16, 16, 16])
        latents, caption = torch.zeros(16, 1, 12, 20), torch.zeros(37, 40)
        shape = DenoiserShape(12, 20, 64)
        expected = step_work(sizes, shape) + caption_work(sizes, shape)
        # What the count leaves out: the modulation of five blocks and the final layer, the time's embedding, and the
        # projection of caption tokens that the stock final layer does for nothing.
        left_out = 2 * (5 * 96 * 4 * 96 + 96 * 96 + 256 * 1024 + 1024 * 96) + 2 * 64 * 96 * 64
        run = self.counted(lambda: model([latents], torch.zeros(1), [caption]))
        assert run == expected.total + left_out

    def test_the_text_encoder(self):
        import torch
        from transformers import Qwen3Config, Qwen3Model

        sizes = {**TEXT_ENCODER, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "head_dim": 16}
        model = Qwen3Model(Qwen3Config(**sizes, vocab_size=32, attn_implementation="sdpa"))
        run = self.counted(lambda: model(torch.zeros(1, 11, dtype=torch.long), use_cache=False))
        assert run == 2 * text_encoder_work(sizes, 11).total

    def test_the_decoder(self):
        import torch
        from diffusers import AutoencoderKL

        vae = AutoencoderKL(
            up_block_types=["UpDecoderBlock2D"] * 3,
            down_block_types=["DownEncoderBlock2D"] * 3,
            block_out_channels=[8, 16, 16],
            norm_num_groups=4,
            layers_per_block=2,
            latent_channels=16,
        )
        assert self.counted(lambda: vae.decode(torch.zeros(1, 16, 6, 10))) == decoder_work(vae.config, 6, 10).total
