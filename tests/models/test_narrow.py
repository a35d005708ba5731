"""Weights that stay as narrow as their file give, to the last bit, what the same weights in float32 give."""

import pytest
import torch
from torch import nn

from alignlab.models import narrow
from alignlab.models.kernels import gated_units, rms_norm
from alignlab.models.narrow import NarrowEmbedding, NarrowLinear, keep_narrow, linear


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_narrow_weight_is_its_wide_self(kind: torch.dtype, has_bias: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(24, 16).to(kind)
    biases = [torch.ones(24, requires_grad=True) if has_bias else None for _ in range(2)]
    inputs = [torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    one = linear(inputs[0], weight, biases[0])
    other = nn.functional.linear(inputs[1], weight.float(), biases[1])
    assert torch.equal(one, other)
    for result in (one, other):
        (result * torch.arange(24.0)).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)  # type: ignore[arg-type]
    if biases[0] is not None and biases[1] is not None:
        assert torch.equal(biases[0].grad, biases[1].grad)  # type: ignore[arg-type]


def test_a_large_table_in_blocks_is_its_wide_self(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow, "BLOCK", 7 * 16)  # 7 rows at a time, of 24
    torch.manual_seed(0)
    weight, inputs = torch.randn(24, 16).bfloat16(), [torch.randn(3, 5, 16) for _ in range(2)]
    inputs[1] = inputs[0].clone()
    one = linear(inputs[0].requires_grad_(), weight, torch.ones(24))
    other = nn.functional.linear(inputs[1].requires_grad_(), weight.float(), torch.ones(24))
    torch.testing.assert_close(one, other)
    for result in (one, other):
        (result * torch.arange(24.0)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    assert linear(inputs[0][:0], weight).shape == (0, 5, 24)


def test_no_wide_copy_is_kept_for_the_backward_pass() -> None:
    weight, kept = torch.randn(24, 16).bfloat16(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        linear(torch.randn(5, 16, requires_grad=True), weight)
    assert [tensor.data_ptr() for tensor in kept] == [weight.data_ptr()]


def test_layers_are_changed_and_widened_again() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.Linear(5, 6)).requires_grad_(False)
    model[0].bfloat16()
    model[1].weight.data = model[1].weight.data.bfloat16()
    keep_narrow(model)
    assert [type(layer) for layer in model] == [NarrowEmbedding, NarrowLinear, nn.Linear]
    ids = torch.arange(9)
    plain = nn.Sequential(model[0].widened(), model[1].widened(), model[2])
    assert [type(layer) for layer in plain] == [nn.Embedding, nn.Linear, nn.Linear]
    assert model(ids).dtype == torch.float32
    assert torch.equal(model(ids), plain(ids))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(ids), plain(ids))


def test_a_weight_that_learns_must_not_be_narrow() -> None:
    with pytest.raises(AssertionError, match=r"0 learns and is torch.bfloat16"):
        keep_narrow(nn.Sequential(nn.Linear(4, 5).bfloat16()))


def test_gated_units_keep_two_tensors_and_have_the_gradient_of_their_formula() -> None:
    torch.manual_seed(0)
    ours, theirs = ([torch.randn(7, 12).requires_grad_() for _ in range(2)] for _ in range(2))
    for one, other in zip(ours, theirs, strict=True):
        other.data = one.data.clone()
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        units = gated_units(*ours)
    assert len(kept) == 2
    plain = nn.functional.silu(theirs[0]) * theirs[1]
    assert torch.equal(units, plain)
    for result in (units, plain):
        result.square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_a_norm_keeps_its_input_alone_below_a_frozen_weight() -> None:
    torch.manual_seed(0)
    hidden, weight, kept = torch.randn(7, 12, requires_grad=True), torch.randn(12), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        frozen = rms_norm(hidden, weight, 1e-5)
    assert sum(tensor.numel() == hidden.numel() and tensor.data_ptr() != hidden.data_ptr() for tensor in kept) == 0
    (one,) = torch.autograd.grad(frozen.square().sum(), hidden)
    (other,) = torch.autograd.grad(rms_norm(hidden, weight.requires_grad_(), 1e-5).square().sum(), hidden)
    assert torch.equal(one, other)


def test_stand_ins_of_tensors_leave_the_shared_memory_alone() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    narrow._SCRATCH.held.clear()
    weight, hidden = torch.randn(8, 4).bfloat16(), torch.randn(3, 4)
    with torch.device("meta"):
        assert torch.equal(linear(hidden, weight), hidden @ weight.float().t())
    narrow._SCRATCH.held.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        linear(hidden, weight)
    assert torch.equal(linear(hidden, weight), hidden @ weight.float().t())
    first, second = torch.randn(8, 4).bfloat16(), torch.randn(6, 8).bfloat16()
    inputs = hidden.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(linear(linear(inputs, first), second).sum(), inputs)
    torch.testing.assert_close(gradient, (second.float() @ first.float()).sum(0).expand(3, 4))
