"""`python -m training.judge`: trains the judge from nothing and states its accuracy on fresh renders.

Nothing heavy is imported here: the rendering processes start from this module too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.judge.accuracy import Accuracy
    from training.judge.examples import ExampleStream
    from training.judge.train import TrainingFigures

RESULTS = Path(__file__).parents[1] / "results"
WEIGHTS_FILE, REPORT_FILE = "judge.safetensors", "judge.json"
SIDE = 256


def options(arguments: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m training.judge", description=__doc__)
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, first renders included")
    parser.add_argument("--device", help="cuda (if nothing is said) or cpu")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the weights and the report")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--processes", type=int, default=max(1, min(16, os.cpu_count() or 1)), help="that render")
    parser.add_argument("--pool", type=int, default=100_000, help="pictures kept on the device (196 kB each)")
    parser.add_argument("--fresh", type=int, default=2_000, help="renders that the accuracy is measured on")
    parser.add_argument("--side", type=int, default=SIDE, help="of the pictures, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Train, measure, write; the exit status."""
    begun = time.monotonic()
    asked = options(arguments)
    if asked.device is None and not _has_gpu():
        raise SystemExit("There is no GPU that torch can use. If the CPU is meant, say --device cpu.")

    from training.judge.examples import ExampleStream

    with ExampleStream(f"training {asked.seed}", asked.side, asked.processes) as stream:
        figures, accuracy = _train_and_measure(asked, stream)
    report = _report(asked, figures, accuracy, time.monotonic() - begun)
    path = asked.output / REPORT_FILE
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, one in accuracy.items():
        print(f"{name:12} accepts {one['accepted_pct']:6.2f} % of {one['accepted_of']:4}   "
              f"rejects {one['rejected_pct'] if one['rejected_of'] else '-'} % of {one['rejected_of']}")  # fmt: skip
    print(f"{report['seconds']} s in all; {asked.output / WEIGHTS_FILE}, {path}")
    return 0


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _train_and_measure(asked: argparse.Namespace, stream: ExampleStream) -> tuple[TrainingFigures, dict[str, Accuracy]]:
    import torch

    from training.judge.accuracy import measure_accuracy
    from training.judge.examples import CHUNK, render_examples
    from training.judge.network import JudgeNetwork, load_network, save_network
    from training.judge.sight import look
    from training.judge.train import ExamplePool, Trainer, train

    torch.manual_seed(asked.seed)
    device = torch.device(asked.device or "cuda")
    trainer = Trainer(JudgeNetwork(), device)
    pool = ExamplePool(device, max(asked.batch, asked.pool))
    figures = train(trainer, stream, pool, batch=asked.batch, seconds=asked.seconds, report=print)
    save_network(trainer.network, asked.output / WEIGHTS_FILE)
    network = load_network(asked.output / WEIGHTS_FILE, device)  # what is stored is what is measured
    chunks = [
        stream.submit(render_examples, f"fresh {asked.seed}", number, asked.side)
        for number in range(-(-asked.fresh // CHUNK))
    ]
    examples = [chunk.result() for chunk in chunks]
    pictures = [picture for part in examples for picture in part.pictures][: asked.fresh]
    scenes = [scene for part in examples for scene in part.scenes][: asked.fresh]
    return figures, measure_accuracy(look(network, pictures), scenes, asked.seed)


def _report(
    asked: argparse.Namespace, figures: TrainingFigures, accuracy: dict[str, Accuracy], seconds: float
) -> dict[str, Any]:
    import numpy as np
    import PIL
    import torch

    cuda = asked.device != "cpu" and torch.cuda.is_available()
    return {
        "what": "a detector trained on renders of all combinations, never on a generated picture",
        "accuracy_on_fresh_renders": accuracy,
        "fresh_renders": asked.fresh,
        "steps": figures.steps,
        "batch": asked.batch,
        "pictures_rendered": figures.pictures_rendered,
        "last_loss": round(figures.last_loss, 5),
        "training_seconds": round(figures.seconds, 1),
        "seconds": round(seconds, 1),
        "device": torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads",
        "processes": asked.processes,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pillow": PIL.__version__,
        },
        "command": shlex.join(["python", "-m", "training.judge", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
