"""Without an NVIDIA driver these tests are not collected: there is nothing to run them on."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from zimage_ui.generator.untrained import DEFAULT, build_untrained_model

collect_ignore_glob = [] if shutil.which("nvidia-smi") else ["test_*.py"]

LIGHTHOUSE: dict[str, Any] = {"prompt": "a lighthouse at dusk", "width": 512, "height": 512, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_untrained_model(tmp_path_factory.mktemp("model") / "untrained", DEFAULT)


@pytest.fixture(scope="module")
def lighthouse(folder):
    """The stock pipeline's `LIGHTHOUSE`, flat 8-bit values: in bf16, and computed in fp32 with the same weights."""
    import torch
    from diffusers import ZImagePipeline

    stock = ZImagePipeline.from_pretrained(folder, dtype=torch.bfloat16).to("cuda")
    stock.set_progress_bar_config(disable=True)
    pictures = []
    for dtype in (torch.bfloat16, torch.float32):
        image = stock.to(dtype)(
            LIGHTHOUSE["prompt"], height=512, width=512, num_inference_steps=8, guidance_scale=0.0,
            generator=torch.Generator("cpu").manual_seed(LIGHTHOUSE["seed"]), output_type="pt",
        ).images[0]  # fmt: skip
        values = (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
        pictures.append(values.cpu().permute(1, 2, 0).flatten().int())
    return pictures
