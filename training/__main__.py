"""`python -m training`: make the small model from nothing, on one GPU."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any


def main() -> None:
    """Make the small model."""
    given = _parse()
    # Not above: the rendering processes import this module, too, and have no use for torch.
    import torch

    if given["device"] is None and not torch.cuda.is_available():
        raise SystemExit("There is no GPU that torch can use. If the CPU is meant, say --device cpu.")

    from training.recipe import Options, Training

    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.recompile_limit = 64  # blocks are met in several dtypes, with gradients and without
    given["device"] = torch.device(given["device"] or "cuda")
    Training(Options(**given)).run()


def _parse() -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m training", description="Make the small model from nothing.")
    parser.add_argument("--output", type=Path, default=Path("zimage_ui/mini"), help="folder of the finished model")
    parser.add_argument("--run", type=Path, default=Path("training/run"), help="log, checkpoints and sample grids")
    parser.add_argument("--device", help="cuda (if nothing is said) or cpu")
    parser.add_argument("--vae-minutes", type=float, default=4.5)
    parser.add_argument("--flow-minutes", type=float, default=18)
    parser.add_argument("--distil-minutes", type=float, default=3)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the distillation's teacher")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="that render")
    parser.add_argument("--tokens", type=int, default=384 * 288, help="in a batch")
    parser.add_argument("--pictures", type=int, default=400_000, help="latents kept of 256x256")
    parser.add_argument("--start-from", type=Path, help="a finished model to go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="of learning, as a share of the usual one")
    parser.add_argument("--adamw", dest="muon", action="store_false", help="no Muon")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main()
