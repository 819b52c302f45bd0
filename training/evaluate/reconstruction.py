"""How well the model's autoencoder keeps a picture: PSNR over fresh renders of all kinds."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from training.pixels import to_floats
from training.world.render import render
from training.world.scene import draw_scene

SIDES = (256, 512)


def reconstruction_psnr_db(model: Path, side: int, pictures: int, seed: int, device: torch.device) -> float:
    """The mean PSNR in dB over so many renders of `side` pixels square, encoded to their mode and decoded, in fp32.

    Raises:
        OSError: `model` has no readable VAE.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(model / "vae", local_files_only=True).float().eval().to(device)
    rng = random.Random(f"reconstruction {side} {seed}")
    found = []
    for _ in range(pictures):
        picture = render(draw_scene(rng, lambda scene: True), side, side, rng.getrandbits(32))
        with torch.inference_mode():
            pixels = to_floats(torch.from_numpy(picture).to(device)[None])
            decoded = vae.decode(vae.encode(pixels).latent_dist.mode()).sample[0]
            again = ((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        found.append(psnr_db(picture, again))
    return float(np.mean(found))


def psnr_db(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio of 8-bit pictures, 10 log10(255² / mean squared error); infinite if they are equal."""
    error = float(np.mean((picture.astype(np.float64) - other) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
