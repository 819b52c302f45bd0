import json

import pytest
import torch

from training.run import learning_rate, save_atomically, set_learning_rate

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


def test_a_stage_is_over_when_its_time_is_spent(make_stage, clock):
    stage = make_stage(4)
    seen = []
    while not stage.is_over:
        seen.append(stage.progress)
        clock.tick()
    assert seen == [0, 0.25, 0.5, 0.75]
    clock.tick()
    assert (stage.elapsed_s, stage.progress) == (5, 1)


def test_a_stage_that_starts_late_has_its_whole_time(make_stage, clock):
    clock.now_s = 1e6
    assert make_stage(4).elapsed_s == 0


def test_time_before_an_interruption_counts(make_stage, clock):
    stage = make_stage(10)
    stage.spent_s = 8
    clock.tick()
    assert stage.progress == 0.9
    assert not stage.is_over
    clock.tick()
    assert stage.is_over


def test_a_stage_without_time_is_over_at_once(make_stage):
    stage = make_stage(0)
    assert stage.is_over
    assert stage.progress == 1


def test_the_log_is_printed_and_kept(make_stage, clock, capsys):
    stage = make_stage(10)
    stage.log(loss=0.5)
    clock.tick()
    stage.log(loss=0.25, what={"a": 1})
    kept = (stage.folder / "log.jsonl").read_text("utf-8")
    assert capsys.readouterr().out == kept
    assert [json.loads(line) for line in kept.splitlines()] == [
        {"stage": "test", "elapsed_s": 0.0, "loss": 0.5},
        {"stage": "test", "elapsed_s": 1.0, "loss": 0.25, "what": {"a": 1}},
    ]


def test_the_learning_rate_rises_by_steps_and_falls_with_time():
    def at(step, progress):
        return learning_rate(2.0, step, progress, warmup_steps=10, decay_from=0.5)

    assert [at(step, 0) for step in (0, 4, 9, 10, 5_000)] == pytest.approx([0.2, 1, 2, 2, 2])
    assert [at(99, progress) for progress in (0.5, 0.75, 0.9, 1)] == pytest.approx([2, 1, 0.4, 0.02])
    assert at(4, 0.75) == pytest.approx(0.5)


def test_each_group_gets_its_share_of_the_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "peak_lr": peak} for peak in (1.0, 0.1)]
    optimizer = torch.optim.SGD(groups, 1.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


def test_what_cannot_be_saved_leaves_the_old_file(tmp_path):
    path = tmp_path / "content.pt"
    save_atomically({"step": 1}, path)
    with pytest.raises((AttributeError, TypeError), match=r"pickle|local object"):
        save_atomically({"step": lambda: 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
