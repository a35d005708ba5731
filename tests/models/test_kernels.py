"""Elementwise steps equal torch's in value and gradient, in fp32 and fp64, and leave half types to torch."""

import pytest
import torch
import torch.nn.functional as F

from alignlab.models.kernels import causal_attention, gelu_tanh, rms_norm, rotated, squared_relu

SHAPE = (2, 3, 5, 8)


def halves(*shape: int) -> torch.Tensor:
    """Angles of pairs: the second half of the last dimension repeats the first."""
    angles = torch.randn(*shape[:-1], shape[-1] // 2, dtype=torch.double)
    return torch.cat((angles, angles), dim=-1)


def turned(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


WEIGHT = torch.rand(SHAPE[-1], dtype=torch.double) + 0.5
ANGLES = halves(1, 1, SHAPE[-2], SHAPE[-1])
STEPS = {
    "gelu": (gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "squared relu": (squared_relu, lambda x: F.relu(x).square()),
    "rms": (lambda x: rms_norm(x, WEIGHT.to(x), 1e-5), lambda x: F.rms_norm(x, (SHAPE[-1],), WEIGHT.to(x), 1e-5)),
    "rotation": (
        lambda x: rotated(x, ANGLES.cos().to(x), ANGLES.sin().to(x)),
        lambda x: turned(x, ANGLES.cos().to(x), ANGLES.sin().to(x)),
    ),
}


@pytest.mark.parametrize("dtype", [torch.double, torch.float, torch.bfloat16])
@pytest.mark.parametrize("name", STEPS)
def test_equals_torch_in_value_and_gradient(name, dtype):
    ours, torchs = STEPS[name]
    x = (3 * torch.randn(*SHAPE, dtype=torch.double)).to(dtype).requires_grad_()
    gradient = torch.randn(*SHAPE, dtype=torch.double).to(dtype)
    values = [step(x) for step in (ours, torchs)]
    gradients = [torch.autograd.grad(value, x, gradient)[0] for value in values]
    tolerance = {torch.double: 1e-12, torch.float: 2e-6, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance * 4)
    assert values[0].dtype == dtype


@pytest.mark.parametrize("name", STEPS)
def test_gradients_are_those_of_finite_differences(name):
    x = torch.randn(*SHAPE, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(STEPS[name][0], (x,))


@pytest.mark.parametrize("tokens", [1, 5, 64, 65, 150])  # BLOCK is 64
@pytest.mark.parametrize("dtype", [torch.double, torch.float])
def test_causal_attention_equals_torch_in_value_and_gradient(tokens, dtype):
    heads = [torch.randn(2, tokens, 3, 4, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    gradient = torch.randn(2, 3, tokens, 4, dtype=dtype)
    values = [causal_attention(*heads), F.scaled_dot_product_attention(*heads, is_causal=True)]
    gradients = [torch.autograd.grad(value, heads, gradient) for value in values]
    tolerance = {torch.double: 1e-12, torch.float: 3e-6}[dtype]
    torch.testing.assert_close(values[0], values[1], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance)


def test_the_weight_of_a_norm_learns_too():
    hidden = torch.randn(4, 6, dtype=torch.double)
    weight = torch.rand(6, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: rms_norm(hidden, w, 1e-5), (weight,))


def test_extreme_units_do_not_overflow():
    units = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    gelu_tanh(units).sum().backward()
    torch.testing.assert_close(units.grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
