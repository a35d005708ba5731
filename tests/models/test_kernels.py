"""Elementwise steps equal torch's in value and gradient, in fp32 and fp64, and leave half types to torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alignlab.models.config import GPTConfig
from alignlab.models.gpt import FeedForward
from alignlab.models.kernels import (
    feed_forward,
    gelu_tanh,
    rms_norm,
    rotated,
    squared_relu,
    takes_one_step,
)  # fmt: skip

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


def test_the_weight_of_a_norm_learns_too():
    hidden = torch.randn(4, 6, dtype=torch.double)
    weight = torch.rand(6, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(lambda w: rms_norm(hidden, w, 1e-5), (weight,))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [gelu_tanh, squared_relu])
def test_feed_forward_equals_its_layers_in_value_and_gradient(activation, bias):
    up, down = nn.Linear(8, 12, bias=bias).double(), nn.Linear(12, 8, bias=bias).double()
    hidden = (3 * torch.randn(*SHAPE, dtype=torch.double)).requires_grad_()
    inputs = [hidden, *up.parameters(), *down.parameters()]
    values = [feed_forward(hidden, up, down, activation), down(activation(up(hidden)))]
    gradients = [torch.autograd.grad(value, inputs, torch.ones_like(value).cumsum(-1)) for value in values]
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("frozen", ["up", "down", "hidden"])
@pytest.mark.parametrize("activation", [gelu_tanh, squared_relu])
def test_feed_forward_learns_what_is_not_frozen(activation, frozen):
    up, down, hidden = nn.Linear(8, 12).double(), nn.Linear(12, 8).double(), torch.randn(3, 8, dtype=torch.double)
    inputs = {"up": up.weight, "down": down.weight, "hidden": hidden}
    learned = [one.requires_grad_(name != frozen) for name, one in inputs.items() if name != frozen]
    inputs[frozen].requires_grad_(False)
    values = [feed_forward(hidden, up, down, activation), down(activation(up(hidden)))]
    gradients = [torch.autograd.grad(value.square().sum(), learned) for value in values]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=1e-12)


def test_feed_forward_is_not_for_layers_that_are_watched_or_wrapped():
    hidden, plain, seen = torch.randn(2, 4), nn.Linear(4, 4), []
    assert takes_one_step(hidden, plain, plain)
    assert not takes_one_step(hidden.bfloat16(), plain)
    assert not takes_one_step(hidden, torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes_one_step(hidden, plain)
    block = FeedForward(GPTConfig(layers=1, width=4, heads=1, context=4, vocabulary=9, activation="relu2"))
    whole = block(hidden)
    block.up.register_forward_hook(lambda _, __, units: seen.append(units.shape))
    torch.testing.assert_close(block(hidden), whole)
    assert seen == [(2, 16)]


def test_nothing_stands_for_a_layer_that_is_called_otherwise():
    hidden, layer, seen = torch.randn(2, 4), nn.Linear(4, 4), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))
    assert not takes_one_step(hidden, layer)
    handle.remove()
    assert takes_one_step(hidden, layer)
    layer.forward = lambda units: 2 * units
    assert not takes_one_step(hidden, layer)


@pytest.mark.parametrize(("learning", "more"), [(None, 0), ("up", 64 * 8), ("down", 64 * 32)])
@pytest.mark.parametrize("activation", [gelu_tanh, squared_relu])
def test_feed_forward_keeps_what_learning_weights_need(activation, learning, more):
    layers = {"up": nn.Linear(8, 32), "down": nn.Linear(32, 8)}
    for name, layer in layers.items():
        layer.weight.requires_grad_(name == learning)
        layer.bias.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one.numel()) or one, lambda one: one):
        feed_forward(torch.randn(64, 8, requires_grad=True), layers["up"], layers["down"], activation)
    assert sum(kept) == 2 * 8 * 32 + 64 * 32 + more  # the weights, what the gradient of the units is made of


def test_what_feed_forward_gives_may_be_written_to():
    up, down = nn.Linear(8, 32), nn.Linear(32, 8)
    feed_forward(torch.randn(2, 3, 8), up, down, squared_relu).mul_(3).sum().backward()
    assert up.weight.grad is not None


def test_extreme_units_do_not_overflow():
    units = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    gelu_tanh(units).sum().backward()
    torch.testing.assert_close(units.grad, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))
