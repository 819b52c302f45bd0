import json
import random

import pytest
import torch

from training.flow import FlowTrainer, flow_loss, make_optimizers
from training.muon import StackedMuon

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]

CPU = torch.device("cpu")


def loss_of(velocity, pool):
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        rng = random.Random(1)
        return sum(flow_loss(velocity, pool.draw(rng), CPU).item() for _ in range(20)) / 20


def train(trainer, clock):
    trainer.train(clock.tick, lambda: None)


@pytest.mark.parametrize("muon", [True, False])
def test_it_learns_a_handful_of_pictures(make_velocity, pool, make_stage, clock, muon):
    velocity = make_velocity(0)
    before = loss_of(velocity, pool)
    trainer = FlowTrainer(velocity, pool, make_stage(60), muon=muon, rate=30)
    train(trainer, clock)
    assert trainer.step == 60
    assert before > 1.8  # of noise and pictures, both of unit variance
    assert loss_of(velocity, pool) < 0.75 * before


def test_the_loss_of_the_true_direction_is_none(pool):
    batch = pool.draw(random.Random(0))

    def truth(noisy, sigma, captions):
        assert captions is batch.captions
        return (noisy - batch.latents) / sigma[:, None, None, None]

    assert flow_loss(truth, batch, CPU) < 1e-6


def test_sigmas_are_shifted_towards_noise(pool):
    seen = []

    def velocity(noisy, sigma, captions):
        seen.append(sigma)
        return noisy

    for _ in range(500):
        flow_loss(velocity, pool.draw(random.Random(0)), CPU)
    sigmas = torch.cat(seen)
    assert sigmas.min() >= 0
    assert sigmas.max() <= 1
    # The shift by 3 takes evenly drawn quartiles to 3/6, 3/4 and 9/10.
    found = torch.quantile(sigmas, torch.tensor([0.25, 0.5, 0.75])).tolist()
    assert found == pytest.approx([0.5, 0.75, 0.9], abs=0.03)


def test_the_running_mean_is_kept_apart_and_swapped_in(make_velocity, pool, make_stage, clock):
    velocity = make_velocity(0)
    fresh = [parameter.detach().clone() for parameter in velocity.parameters]
    trainer = FlowTrainer(velocity, pool, make_stage(3), rate=10)
    with trainer.averaged():
        assert all(map(torch.equal, fresh, velocity.parameters))
    train(trainer, clock)
    trained = [parameter.detach().clone() for parameter in velocity.parameters]
    with trainer.averaged():
        mean = [parameter.detach().clone() for parameter in velocity.parameters]
        assert not torch.equal(mean[0], trained[0])
        assert not torch.equal(mean[0], fresh[0])
    assert all(map(torch.equal, trained, velocity.parameters))
    trainer.finish()
    assert all(map(torch.equal, mean, velocity.parameters))


def test_interrupted_it_goes_on_bitwise_as_without(make_velocity, pool, make_stage, clock, tmp_path):
    path = tmp_path / "flow.pt"
    first = make_velocity(0)
    trainer = FlowTrainer(first, pool, make_stage(8))
    trainer.train(clock.tick, lambda: trainer.save(path) if trainer.step == 2 else None)

    clock.now_s = 1_000
    torch.manual_seed(99)
    second, later = make_velocity(1), make_stage(8)
    again = FlowTrainer(second, pool, later)
    again.load(path)
    assert (again.step, later.elapsed_s) == (2, 2)
    train(again, clock)
    assert again.step == trainer.step == 8
    assert all(map(torch.equal, first.parameters, second.parameters))
    with trainer.averaged(), again.averaged():
        assert all(map(torch.equal, first.parameters, second.parameters))


def test_a_finished_run_goes_on_with_more_time(make_velocity, pool, make_stage, clock, tmp_path):
    velocity = make_velocity(0)
    trainer = FlowTrainer(velocity, pool, make_stage(2))
    train(trainer, clock)
    trainer.finish()
    trainer.save(tmp_path / "flow.pt")
    again = FlowTrainer(make_velocity(1), pool, make_stage(5))
    again.load(tmp_path / "flow.pt")
    assert all(map(torch.equal, velocity.parameters, again.velocity.parameters))
    train(again, clock)
    assert again.step == 5


def test_loading_nothing_is_an_error(make_velocity, pool, make_stage, tmp_path):
    with pytest.raises(FileNotFoundError):
        FlowTrainer(make_velocity(0), pool, make_stage(1)).load(tmp_path / "flow.pt")


def test_what_is_logged(make_velocity, pool, make_stage, clock):
    stage = make_stage(11)
    velocity = make_velocity(0)
    pauses = []
    trainer = FlowTrainer(velocity, pool, stage)
    trainer.train(clock.tick, lambda: pauses.append(trainer.step))
    lines = [json.loads(line) for line in (stage.folder / "log.jsonl").read_text("utf-8").splitlines()]
    *lines, last = lines
    assert [line["step"] for line in lines] == [0, 1, 10]
    assert last["steps"] == trainer.step
    assert pauses == [1, 2, 11]  # so many steps are done
    for line in lines:
        assert line["pictures"] == 8
        assert len(line["largest"]) == 3
        assert line["largest"].keys() <= velocity.named_parameters.keys()


@pytest.mark.parametrize("muon", [True, False])
def test_every_parameter_is_in_exactly_one_group(make_velocity, muon):
    velocity = make_velocity(0)
    optimizers = make_optimizers(velocity, muon=muon)
    grouped = [
        id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    ]
    assert sorted(grouped) == sorted(map(id, velocity.parameters))
    assert len(optimizers) == (2 if muon else 1)


def test_muon_has_the_matrices_within_the_blocks(make_velocity):
    velocity = make_velocity(0)
    muon = make_optimizers(velocity, muon=True)[1]
    assert isinstance(muon, StackedMuon)
    chosen = {id(parameter) for group in muon.param_groups for parameter in group["params"]}
    names = {name for name, parameter in velocity.named_parameters.items() if id(parameter) in chosen}
    rooms = {name.split(".")[1] for name in names}
    assert rooms == {"layers", "noise_refiner", "context_refiner"}
    assert not any("adaLN" in name or "norm" in name for name in names)
    # Of each of the six blocks of the small model: four matrices of attention, three of the feed-forward layer.
    transformer = [name for name in names if name.startswith("transformer.")]
    assert len(transformer) == 4 * 7
    assert len(names) - len(transformer) == 2 * 7


def test_rates_are_scaled_and_remembered(make_velocity):
    usual, slow = (make_optimizers(make_velocity(0), muon=True, scale=scale) for scale in (1.0, 0.25))
    for one, other in zip(usual, slow, strict=True):
        for group, scaled in zip(one.param_groups, other.param_groups, strict=True):
            assert scaled["lr"] == scaled["peak_lr"] == group["peak_lr"] / 4
