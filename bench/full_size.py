"""The full-size architecture on a real GPU: saved to and loaded from a diffusers folder, then drawn with.

    python -m bench.full_size FOLDER [--runs 5]

The weights are random (speed and memory do not depend on their values), the sizes are those of Z-Image-Turbo: a 6.15 B
transformer in fp32 shards, as the hub has it, a Qwen3-4B text encoder in bf16 and the Flux VAE. The folder (33 GB) is
built once. Pictures are made by `zimage-ui generate --json`, each in a process of its own, then several in one process,
for medians. Writes bench/results/full_size.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.report import write_result

PROMPT = "A lighthouse on a cliff at dusk, waves breaking below, warm light in the window"


def build(folder: Path, device: str, tiny: bool, transformer_dtype: str = "float32") -> float:
    """Write the full-size random model to `folder` in diffusers layout.

    The small untrained model is built first; its tokenizer, scheduler and index stay, its parts are drawn anew in the
    sizes of `untrained.FULL`, on `device`: a GPU draws ten billion values in seconds.

    Args:
        folder: where it goes.
        device: draws the values.
        tiny: leave it at the small model, to try what uses it.
        transformer_dtype: of the transformer's shards; the hub has "float32", "bfloat16" is half the disk and time.

    Returns:
        The seconds it took.
    """
    import torch

    from zimage_ui.generator.untrained import build_untrained_model

    begun = time.perf_counter()
    build_untrained_model(folder)
    if tiny:
        return time.perf_counter() - begun
    generator = torch.Generator(device).manual_seed(0)
    for part, make in _full_size_parts(folder, getattr(torch, transformer_dtype)).items():
        with torch.device(device):
            model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:  # norms and biases keep what they were made with
                    parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        for old in (folder / part).glob("*"):
            old.unlink()
        model.save_pretrained(folder / part, max_shard_size="9GB")
        del model
        torch.cuda.empty_cache()
    told = {"name": "Z-Image-Turbo architecture, random weights", "trained": False, "profile": "turbo"}
    (folder / "zimage_ui.json").write_text(json.dumps(told), "utf-8")
    return time.perf_counter() - begun


def marker(folder: Path) -> dict[str, Any]:
    """What a model in `folder` says of itself, and its name on the disk."""
    path = folder / "zimage_ui.json"
    return {"folder": folder.name, **(json.loads(path.read_text("utf-8")) if path.is_file() else {})}


def _full_size_parts(folder: Path, transformer_dtype: Any) -> dict[str, Callable[[], Any]]:
    """Makers of the three parts: the configurations in `folder`, with the sizes of `untrained.FULL`."""
    import torch
    from diffusers import AutoencoderKL, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    from zimage_ui.generator.untrained import FULL

    transformer = {
        **ZImageTransformer2DModel.load_config(folder / "transformer"),
        **FULL.transformer,
        "n_kv_heads": FULL.transformer["n_heads"],
        "cap_feat_dim": FULL.text_encoder["hidden_size"],
    }
    vae = {**AutoencoderKL.load_config(folder / "vae"), **FULL.vae}
    text_encoder = {**Qwen3Config.from_pretrained(folder / "text_encoder").to_dict(), **FULL.text_encoder}
    del text_encoder["layer_types"]  # one for each layer: follows from their number
    return {
        "transformer": lambda: ZImageTransformer2DModel.from_config(transformer).to(transformer_dtype),
        "text_encoder": lambda: Qwen3Model(Qwen3Config(**text_encoder)).to(torch.bfloat16),
        "vae": lambda: AutoencoderKL.from_config(vae),
    }


def through_the_cli(folder: Path, side: int, output: Path, *flags: str) -> dict[str, Any]:
    """One picture by `zimage-ui generate --json` in a process of its own; adds the process's wall time."""
    command = [sys.executable, "-m", "zimage_ui", "generate", PROMPT, "--model", str(folder), "--seed", "7"]
    command += ["--width", str(side), "--height", str(side), "--output", str(output), "--json", *flags]
    begun = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {run.returncode}:\n{run.stderr}")
    return {"command": command[2:], "process_s": round(time.perf_counter() - begun, 3), **json.loads(run.stdout)}


def in_one_process(folder: Path, sides: list[int], runs: int) -> dict[str, Any]:
    """Medians of stage times over `runs` new prompts a size, in one warm process."""
    from zimage_ui.generator.zimage import ZImageGenerator
    from zimage_ui.request import GenerationRequest

    generator = ZImageGenerator(str(folder), embedding_cache_bytes=2**28)
    begun = time.perf_counter()
    info = generator.load(lambda _: None)
    loaded = time.perf_counter()
    generator.warmup(lambda _: None)
    figures: dict[str, Any] = {
        "dtype": f"{info.dtype}: {info.dtype_reason}",
        "memory_plan": f"{info.memory_plan}: {info.memory_plan_reason}",
        "load_s": round(loaded - begun, 2),
        "warmup_s": round(time.perf_counter() - loaded, 2),
        "sizes": {},
    }
    for side in sides:
        rows, walls, previews, result = [], [], [], None
        for run in range(-1, runs):
            request = GenerationRequest(
                prompt=f"{PROMPT}, {side} px, take {run}", width=side, height=side, seed=run + 1
            )
            started = time.perf_counter()
            result = generator.generate(request)
            if run >= 0:  # the first of a size is its warm-up
                walls.append((time.perf_counter() - started) * 1e3)
                rows.append({str(stage): ms for stage, ms in result.stage_ms.items()})
                previews.append(result.preview_ms)
        stages = {stage: round(statistics.median(row[stage] for row in rows), 2) for stage in rows[0]}
        accounted = [sum(row.values()) for row in rows]
        figures["sizes"][f"{side}x{side}"] = {
            "median_stage_ms": stages,
            "median_wall_ms": round(statistics.median(walls), 2),
            "wall_stdev_ms": round(statistics.stdev(walls), 2),
            "median_other_pct": round(
                statistics.median(100 * (wall - known) / wall for wall, known in zip(walls, accounted, strict=True)), 3
            ),
            "median_preview_ms": round(statistics.median(previews), 2),
            "nfe": result.nfe if result else None,
            "memory": {
                "allocated_peak_gib": round(result.memory.allocated_peak_bytes / 2**30, 2),
                "reserved_peak_gib": round(result.memory.reserved_peak_bytes / 2**30, 2),
            }
            if result and result.memory
            else None,
        }
    generator.close()
    return figures


def main() -> None:
    """Build the folder if needed, measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, to try this script")
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 512, 768, 1536])
    arguments = parser.parse_args()
    folder: Path = arguments.folder.absolute()
    figures: dict[str, Any] = {"prompt": PROMPT, "weights": "random, full size"}
    if not folder.is_dir():
        figures["build_s"] = round(build(folder, "cpu" if arguments.tiny else "cuda", arguments.tiny), 1)
    figures["size_gib"] = round(sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**30, 2)
    side = arguments.sides[0]
    figures["generate_json_cold"] = through_the_cli(folder, side, folder.parent / "cold.png")
    figures["generate_json_warm"] = through_the_cli(folder, side, folder.parent / "warm.png", "--warmup")
    figures["one_process"] = in_one_process(folder, arguments.sides, arguments.runs)
    print(json.dumps(figures, indent=2))
    if arguments.tiny:
        return
    print(write_result("full_size", figures, "torch", "diffusers", "transformers", "safetensors"))


if __name__ == "__main__":
    main()
