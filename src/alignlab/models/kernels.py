"""Elementwise steps of the backbone with gradients that read and write memory fewer times than autograd's.

On a CPU these steps are bound by memory, and make up a third of a small model's training time. Each is the formula in
its docstring, to rounding; compiled models and GPUs have fused kernels of their own, and so have half types.
Knows nothing of layers.
"""

# N rows, D width, F feed-forward units, B batch, H heads, T tokens, Dh head width

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab.products import has_idle_units, linear, outer, product

SLOPE = 2 * math.sqrt(2 / math.pi)  # of the sigmoid's argument at 0
CUBIC = 0.044715
ONE_STEP = {"cpu": True}  # kinds of device on which several layers are one function


def is_plain(values: Tensor) -> bool:
    """Whether `values` are computed op by op in fp32 or fp64 on a CPU, where passes over memory count."""
    is_full = values.dtype in (torch.float32, torch.float64) and values.device.type == "cpu"
    return is_full and not torch.compiler.is_compiling()


def gelu_tanh(units: Tensor) -> Tensor:
    """units/2 (1 + tanh(sqrt(2/pi) (units + 0.044715 units^3))) (Hendrycks and Gimpel 2016), of any shape."""
    return _GeluTanh.apply(units) if is_plain(units) else F.gelu(units, approximate="tanh")


def squared_relu(units: Tensor) -> Tensor:
    """relu(units)^2 (So et al. 2021), of any shape."""
    return _SquaredRelu.apply(units)


def takes_one_step(hidden: Tensor, *layers: nn.Module) -> bool:
    """Whether one function may stand for several layers: plain numbers, plain linear layers that nobody watches."""
    if not is_plain(hidden) or not ONE_STEP.get(hidden.device.type) or torch.is_autocast_enabled("cpu"):
        return False
    return all(type(one) is nn.Linear and one.weight.dtype == hidden.dtype and is_unwatched(one) for one in layers)


def applied(layer: nn.Module, hidden: Tensor) -> Tensor:
    """layer(hidden), (..., D) -> (..., F), by the fastest product where it is a plain linear one."""
    # takes_one_step asks for the class too, which a type checker cannot see
    if isinstance(layer, nn.Linear) and takes_one_step(hidden, layer) and has_idle_units():
        return linear(hidden, layer.weight, layer.bias)
    return layer(hidden)


def feed_forward(hidden: Tensor, up: nn.Linear, down: nn.Linear, activation: Callable[..., Tensor]) -> Tensor:
    """down(activation(up(hidden))), (..., D) -> (..., D); `activation` is gelu_tanh or squared_relu."""
    learns = torch.is_grad_enabled()  # which a function cannot see from within
    return _FeedForward.apply(hidden, up.weight, up.bias, down.weight, down.bias, activation, learns)


def gated_units(gate: Tensor, units: Tensor) -> Tensor:
    """silu(gate) * units (Shazeer 2020), of any shape; silu(gate) is computed again in the backward pass, not kept."""
    return _GatedUnits.apply(gate, units)


def rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """hidden / sqrt(mean(hidden^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019), (..., D)."""
    if is_plain(hidden) and hidden.dtype == weight.dtype:
        return _RMSNorm.apply(hidden, weight, eps)
    # one type for both: with two, torch leaves its fused kernel
    return F.rms_norm(hidden, weight.shape, weight.to(hidden.dtype), eps)


def rotated(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """heads * cosine + (-second half, first half) * sine, (B, H, T, Dh); cosine and sine (B or 1, 1, T, Dh).

    The two halves of `cosine` are equal, and those of `sine`: a pair turns by one angle.
    """
    if is_plain(heads):
        return _Rotation.apply(heads, cosine, sine)
    first, second = heads.chunk(2, dim=-1)
    return heads * cosine + torch.cat((-second, first), dim=-1) * sine


def inverse_rms(hidden: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(hidden^2) + eps), (..., D) -> (..., 1). No gradients."""
    length = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
    return length.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()


class _GeluTanh(torch.autograd.Function):
    """As units * sigmoid(s (units + c units^3)), which needs an exponential where tanh costs three times as much."""

    @staticmethod
    def forward(ctx: Any, units: Tensor) -> Tensor:
        output = torch.empty_like(units)
        if (derivative := _gelu_tanh(units, output, differentiates=ctx.needs_input_grad[0])) is not None:
            ctx.save_for_backward(derivative)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative


def _gelu_tanh(units: Tensor, target: Tensor, *, differentiates: bool) -> Tensor | None:
    """Writes to `target`, which may be the units; the derivative while all of it is at hand, where it is wanted."""
    square, slope = units * units, units.new_tensor(SLOPE)
    open_share = torch.add(slope, square, alpha=SLOPE * CUBIC).mul_(units).sigmoid_()
    torch.mul(units, open_share, out=target)
    if not differentiates:
        return None
    steepness = torch.add(slope, square, alpha=3 * SLOPE * CUBIC, out=square)
    return torch.lerp(steepness.mul_(target), units.new_ones(()), open_share, out=square)


class _FeedForward(torch.autograd.Function):
    """Units and their gradients are written over where torch would take new memory, which is not in the cache."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None,
        activation: Callable[..., Tensor], learns: bool,
    ) -> Tensor:  # fmt: skip
        rows = hidden.flatten(0, -2)  # (N, D)
        wants_hidden, wants_up, wants_up_bias, wants_down, *_ = ctx.needs_input_grad
        units = product(rows, up, up_bias)  # (N, F)
        kept: Tensor | None  # of which the gradient of the units is made
        if activation is squared_relu:
            kept = units.relu_()
            active = kept.square()
        else:
            kept = _gelu_tanh(units, units, differentiates=learns and (wants_hidden or wants_up or wants_up_bias))
            active = units
        ctx.activation, ctx.shape = activation, hidden.shape
        ctx.save_for_backward(rows if wants_up else None, up, down, kept, active if wants_down else None)
        return torch.ops.aten._unsafe_view(product(active, down, down_bias), hidden.shape)  # may be written to

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, up, down, kept, active = ctx.saved_tensors
        wants_hidden, wants_up, wants_up_bias, wants_down, wants_down_bias, *_ = ctx.needs_input_grad
        of_hidden = of_up = of_up_bias = None
        gradient = gradient.flatten(0, -2)
        of_down = outer(gradient, active) if wants_down else None
        of_down_bias = gradient.sum(dim=0) if wants_down_bias else None
        if wants_hidden or wants_up or wants_up_bias:
            of_units = product(gradient, down.t())
            if ctx.activation is squared_relu:
                torch.addcmul(of_units.new_zeros(()), of_units, kept, value=2, out=of_units)
            else:
                of_units *= kept
            of_hidden = product(of_units, up.t()).view(ctx.shape) if wants_hidden else None
            of_up = outer(of_units, rows) if wants_up else None
            of_up_bias = of_units.sum(dim=0) if wants_up_bias else None
        return of_hidden, of_up, of_up_bias, of_down, of_down_bias, None, None


def is_unwatched(layer: nn.Module) -> bool:
    """Whether nothing is to happen when a module is called but its class's forward, for which a function may stand."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(layer) and not nn.modules.module._has_any_global_hook()


class _SquaredRelu(torch.autograd.Function):
    """The gradient, 2 relu(units), takes one pass over memory instead of torch's four."""

    @staticmethod
    def forward(ctx: Any, units: Tensor) -> Tensor:
        positive = F.relu(units)
        ctx.save_for_backward(positive)
        return positive.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return torch.addcmul(gradient.new_zeros(()), gradient, positive, value=2)


class _GatedUnits(torch.autograd.Function):
    """Keeps its two inputs, where autograd would keep silu(gate) too."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, units: Tensor) -> Tensor:
        ctx.save_for_backward(gate, units)
        return F.silu(gate).mul_(units)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, units = ctx.saved_tensors
        of_gate = torch.ops.aten.silu_backward(gradient * units, gate)
        return of_gate, F.silu(gate).mul_(gradient)


class _RMSNorm(torch.autograd.Function):
    """With n = hidden r and r = 1 / sqrt(mean(hidden^2) + eps): d hidden = r (g w - n mean(g w n)), d w = sum g n.

    Below a frozen weight n is computed again from hidden, which the residual stream keeps anyway.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = inverse_rms(hidden, eps)
        normalized = hidden * scale
        ctx.save_for_backward(normalized if ctx.needs_input_grad[1] else hidden, weight, scale)
        return normalized * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        kept, weight, scale = ctx.saved_tensors
        normalized = kept if ctx.needs_input_grad[1] else kept * scale
        of_hidden = of_weight = None
        if ctx.needs_input_grad[1]:
            of_weight = torch.linalg.vecdot(gradient.flatten(0, -2), normalized.flatten(0, -2), dim=0)
        if ctx.needs_input_grad[0]:
            weighted = gradient * weight
            mean = torch.linalg.vecdot(weighted, normalized).div_(weight.shape[0]).unsqueeze(-1)
            of_hidden = weighted.addcmul_(normalized, mean, value=-1).mul_(scale)
        return of_hidden, of_weight, None


class _Rotation(torch.autograd.Function):
    """The gradient turns back by the same angles, so nothing of the heads is kept."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return turned(heads, cosine, sine, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return turned(gradient, cosine, sine, -1), None, None


def turned(heads: Tensor, cosine: Tensor, sine: Tensor, direction: int, output: Tensor | None = None) -> Tensor:
    """`rotated`, or with direction -1 turned back, written to `output` where it is given. No gradients."""
    output, half = torch.mul(heads, cosine, out=output), heads.shape[-1] // 2
    first, second = heads.split(half, dim=-1)
    output[..., :half].addcmul_(second, sine[..., :half], value=-direction)
    output[..., half:].addcmul_(first, sine[..., half:], value=direction)
    return output
