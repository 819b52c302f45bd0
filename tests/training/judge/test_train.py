"""The judge learns, and says what it has learnt."""

import json
import random
from pathlib import Path

import pytest
import torch

from training.judge.__main__ import main
from training.judge.accuracy import measure_accuracy
from training.judge.augment import augment
from training.judge.examples import Column, Examples, Layer, examples_of, render_examples
from training.judge.network import JudgeNetwork, load_network, save_network
from training.judge.sight import look
from training.judge.train import ExamplePool, Trainer, one_cycle
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


def test_a_run_leaves_weights_and_a_report_of_its_accuracy(tmp_path: Path) -> None:
    command = f"--output {tmp_path} --device cpu --seconds 2 --batch 4 --processes 1 --pool 64 --fresh 8 --side 96"
    assert main(command.split()) == 0
    report = json.loads((tmp_path / "judge.json").read_text(encoding="utf-8"))
    assert report["steps"] >= 1
    assert report["accuracy_on_fresh_renders"]["background"]["accepted_of"] == 8
    assert (tmp_path / "judge.safetensors").stat().st_size < 3_000_000


def test_it_has_between_one_and_one_and_a_half_million_parameters() -> None:
    assert 1.0e6 <= sum(value.numel() for value in JudgeNetwork().parameters()) <= 1.5e6


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(1)}, tmp_path / "judge.safetensors")
    with pytest.raises(ValueError, match="other weights"):
        load_network(tmp_path / "judge.safetensors", CPU)


def test_a_chunk_is_decided_by_its_name_and_number() -> None:
    first, again = (render_examples("a", 1, SIDE, 4) for _ in range(2))
    assert first.scenes == again.scenes
    assert (first.pictures == again.pictures).all()
    assert (first.objects == again.objects).all()
    assert render_examples("b", 1, SIDE, 4).scenes != first.scenes


def test_what_is_moved_is_where_its_row_says() -> None:
    pictures = torch.full((16, 3, 96, 96), -1.0)
    pictures[:, :, 60:66, 24:30] = 1.0
    objects = torch.full((16, 1, len(Column)), float(Layer.NONE))
    objects[:, 0] = torch.tensor([Layer.THING, 0, 0, 27 / 96, 63 / 96, 0.1])
    moved, there = augment(pictures, objects)
    bright = (moved.mean(1) > 0).float()
    place = (torch.arange(96) + 0.5) / 96
    across = (bright.sum(1) * place).sum(1) / bright.sum((1, 2))
    down = (bright.sum(2) * place).sum(1) / bright.sum((1, 2))
    assert torch.allclose(across, there[:, 0, Column.X], atol=0.01)
    assert torch.allclose(down, there[:, 0, Column.Y], atol=0.01)
    assert not torch.equal(there, objects)


def test_the_rate_rises_and_falls_to_almost_nothing() -> None:
    rates = [one_cycle(step / 100) for step in range(101)]
    assert rates[0] < rates[8] == max(rates)
    assert rates[100] == pytest.approx(max(rates) / 1000)


def test_even_tiny_pictures_can_be_rendered() -> None:
    assert render_examples("tiny", 0, 64, 200).pictures.shape == (200, 64, 64, 3)
