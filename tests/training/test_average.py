import pytest
import torch

from training.average import RunningMean

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("one_thread")]


@pytest.fixture
def parameters():
    return [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(3, 1))]


def set_all(parameters, value):
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(value)


def test_it_starts_as_the_weights_are_and_follows_them(parameters):
    mean = RunningMean(parameters, decay=0.75, warmup_steps=2)
    assert all(not value.any() for value in mean.values)
    set_all(parameters, 1.0)
    mean.update(0)  # half of the past stays: 1 / 2
    assert mean.values[0].tolist() == [0.5, 0.5]
    mean.update(1_000)  # no more than the decay: 3 / 4
    assert mean.values[1].flatten().tolist() == [0.625] * 3


def test_swapped_in_only_within(parameters):
    mean = RunningMean(parameters, decay=0.9, warmup_steps=10)
    set_all(parameters, 3.0)
    with pytest.raises(KeyError), mean.swapped_in():
        assert parameters[0].tolist() == [0, 0]
        raise KeyError
    assert parameters[0].tolist() == [3, 3]
    assert mean.values[0].tolist() == [0, 0]


def test_keeping_it_does_not_tie_it_to_the_weights(parameters):
    mean = RunningMean(parameters, decay=0.9, warmup_steps=10)
    set_all(parameters, 3.0)
    mean.keep()
    assert parameters[0].tolist() == [0, 0]
    assert parameters[0].requires_grad
    set_all(parameters, 5.0)
    assert mean.values[0].tolist() == [0, 0]
