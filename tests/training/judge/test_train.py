"""The judge learns, and says what it has learnt."""

import random
from pathlib import Path

import pytest
import torch

from training.judge.accuracy import measure_accuracy
from training.judge.examples import Examples, examples_of
from training.judge.network import JudgeNetwork, load_network, save_network
from training.judge.sight import look
from training.judge.train import ExamplePool, Trainer
from training.judge.verdict import CRITERIA
from training.world.scene import draw_scene

pytestmark = pytest.mark.model
SIDE = 96
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def sixteen() -> Examples:
    rng = random.Random(5)
    kinds = ["single", "pair", "group", "scenery"] * 4
    return examples_of([draw_scene(rng, lambda scene: True, kind) for kind in kinds], SIDE, rng)


def test_it_learns_sixteen_pictures_by_heart(tmp_path: Path) -> None:
    examples = sixteen()
    pool = ExamplePool(CPU, 16)
    pool.add(examples)
    trainer = Trainer(JudgeNetwork(), CPU)
    losses = [float(trainer.step(pool.draw(16), step / 100, augmented=False)) for step in range(100)]
    assert losses[10] < losses[0]
    assert losses[-1] < losses[0] / 20
    save_network(trainer.network, tmp_path / "judge.safetensors")
    seen = look(load_network(tmp_path / "judge.safetensors", CPU), list(examples.pictures))
    accuracy = measure_accuracy(seen, examples.scenes, seed=1)
    assert {name: one["accepted_pct"] for name, one in accuracy.items()} == dict.fromkeys(accuracy, 100.0)
    assert set(accuracy) == set(CRITERIA) - {"word"}
