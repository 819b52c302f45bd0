"""How well the model's autoencoder keeps a picture: PSNR over fresh renders of all kinds."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch

from training.autoencoder import psnr_db, reconstructed
from training.pixels import to_bytes, to_floats
from training.world.render import render
from training.world.scene import Scene, draw_scene

SIDES = (256, 512)


def _shows_something(scene: Scene) -> bool:
    """A page of one colour is kept nearly without error, which would flatter the mean."""
    return scene.subject is not None or scene.is_scenic


def reconstruction_psnr_db(model: Path, side: int, pictures: int, seed: int, device: torch.device) -> float:
    """The mean PSNR in dB over so many renders of `side` pixels square, encoded to their mode and decoded, in fp32.

    What is compared are 8-bit pictures.

    Raises:
        OSError: `model` has no readable VAE.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True).float().eval().to(device)
    rng = random.Random(f"reconstruction {side} {seed}")
    found = []
    for _ in range(pictures):
        picture = torch.from_numpy(render(draw_scene(rng, _shows_something), side, side, rng.getrandbits(32)))
        pixels = to_floats(picture.to(device)[None])
        found.append(psnr_db(to_floats(to_bytes(reconstructed(vae, pixels))), pixels))
    return float(np.mean(found))
