"""Muon: orthogonality, the size of its update, and its manners as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from alignlab.optim import AdamW, Muon
from alignlab.optim.muon import MuonWithAdamW, orthogonalized


def muon_over(*weights, **numbers):
    return Muon(**numbers).build([(f"blocks.{i}.up.weight", weight) for i, weight in enumerate(weights)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 16, 64)])
def test_singular_values_come_near_one(shape, dtype):
    torch.manual_seed(0)
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    spectrum = torch.logspace(0, -2.5, shape[1])
    found = orthogonalized(7 * u * spectrum @ v, dtype=dtype).float()
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.8
    assert values.max() < 1.2
    torch.testing.assert_close(found, u @ v, atol=0.15, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_matrix_stays_zero(dtype):
    assert (orthogonalized(torch.zeros(2, 4, 8, dtype=dtype)) == 0).all()


def test_large_entries_of_a_half_type_have_a_norm():
    matrices = 1e4 * torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = orthogonalized(matrices, dtype=torch.float32)
    torch.testing.assert_close(orthogonalized(matrices.half(), dtype=torch.float32), expected, atol=0.02, rtol=0)


def test_first_step_by_hand():
    """grad = diag(3, 4) is orthogonalized to I: each diagonal weight falls by lr * 0.2 * sqrt(2), after the decay."""
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float32))
    optimizer = muon_over(weight, lr=0.5, weight_decay=0.1, newton_schulz_steps=12)
    weight.grad = torch.diag(torch.tensor([3.0, 4.0]))
    optimizer.step()
    kept, step = 1 - 0.5 * 0.1, 0.5 * 0.2 * 2**0.5
    torch.testing.assert_close(weight.data, torch.full((2, 2), kept) - step * torch.eye(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(optimizer.state[weight]["momentum"], 0.05 * weight.grad)


@pytest.mark.parametrize("shape", [(64, 64), (64, 256), (256, 64)])
def test_update_has_adamw_s_size(shape):
    """Its root mean square is lr * 0.2 whatever the shape, as AdamW's is between 0.2 and 0.4 lr in training."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(shape))
    weight.grad = torch.randn(shape)
    muon_over(weight, lr=1.0).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.05)


def test_a_matrix_moves_the_same_alone_and_in_a_batch_with_its_transpose():
    torch.manual_seed(0)
    start = torch.randn(8, 16)
    alone, first, turned = nn.Parameter(start.clone()), nn.Parameter(start.clone()), nn.Parameter(start.T.clone())
    alone.grad, first.grad, turned.grad = start * 2, start * 2, start.T * 2
    muon_over(alone).step()
    muon_over(first, turned).step()
    torch.testing.assert_close(first, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.T, alone, atol=1e-5, rtol=0)


def test_the_rest_moves_exactly_as_under_adamw():
    torch.manual_seed(0)
    ours = [("embed.weight", nn.Parameter(torch.randn(5, 4))), ("norm.weight", nn.Parameter(torch.randn(4)))]
    theirs = copy.deepcopy(ours)
    settings = {"lr": 0.01, "weight_decay": 0.3}
    optimizers = (Muon(**settings).build(ours), AdamW(**settings).build(theirs))
    for _ in range(3):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)


def test_a_weight_without_gradient_is_left_alone():
    still, moved, norm = nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4, 4)), nn.Parameter(torch.ones(4))
    optimizer = Muon().build([("a.weight", still), ("b.weight", moved), ("norm.weight", norm)])
    moved.grad = torch.eye(4)
    optimizer.step()
    assert torch.equal(still, torch.ones(4, 4))
    assert torch.equal(norm, torch.ones(4))
    assert not torch.equal(moved, torch.ones(4, 4))
    assert set(optimizer.state) == {moved}


def test_closure_runs_with_gradients_and_its_loss_is_returned():
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = muon_over(weight)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 16.0
    assert weight.square().sum() < 16.0


def test_orthogonal_groups_hold_matrices_only():
    with pytest.raises(AssertionError, match="matrices only"):
        MuonWithAdamW([{"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}], lr=0.1)
