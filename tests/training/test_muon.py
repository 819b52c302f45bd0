import pytest
import torch

from training.muon import StackedMuon, orthogonalised

pytestmark = pytest.mark.model


def _twins(*shapes):
    torch.manual_seed(0)
    values = [torch.randn(shape) for shape in shapes]
    return [[torch.nn.Parameter(value.clone()) for value in values] for _ in range(2)]


def test_it_steps_as_the_library_does_matrix_by_matrix():
    ours, theirs = _twins((24, 24), (24, 24), (48, 24), (24, 48))
    optimizers = (
        StackedMuon(ours, 1e-2, weight_decay=0.1),
        torch.optim.Muon(theirs, 1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(4):
        gradients = [torch.randn_like(parameter) for parameter in ours]
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        # The two round their bf16 products in another order.
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)


def test_all_singular_values_come_close_to_one():
    values = torch.linalg.svdvals(orthogonalised(torch.randn(3, 16, 40)).float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_a_matrix_without_gradient_stays():
    matrix = torch.nn.Parameter(torch.ones(4, 4))
    StackedMuon([matrix], 1.0, weight_decay=0.5).step()
    assert torch.equal(matrix, torch.ones(4, 4))
