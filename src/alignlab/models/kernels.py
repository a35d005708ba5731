"""Elementwise steps of the backbone with gradients that read and write memory fewer times than autograd's.

On a CPU these steps are bound by memory, and make up a third of a small model's training time. Each is the formula in
its docstring, to rounding; compiled models and GPUs have fused kernels of their own, and so have half types.
Knows nothing of layers.
"""

# N rows, D width, B batch, H heads, T tokens, Dh head width

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SLOPE = 2 * math.sqrt(2 / math.pi)  # of the sigmoid's argument at 0
CUBIC = 0.044715
BLOCK = 64  # queries whose scores are computed together


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


def causal_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(Dh)) value, each query over the keys up to its own; all (B, H, T, Dh), T short."""
    return _CausalAttention.apply(query, key, value)


class _GeluTanh(torch.autograd.Function):
    """As units * sigmoid(s (units + c units^3)), which needs an exponential where tanh costs three times as much."""

    @staticmethod
    def forward(ctx: Any, units: Tensor) -> Tensor:
        square, slope = units * units, units.new_tensor(SLOPE)
        open_share = torch.add(slope, square, alpha=SLOPE * CUBIC).mul_(units).sigmoid_()
        output = units * open_share
        if ctx.needs_input_grad[0]:  # the derivative while all of it is at hand: one tensor is kept, as by torch
            shut = torch.addcmul(output, output, open_share, value=-1)
            torch.add(slope, square, alpha=3 * SLOPE * CUBIC, out=square)
            ctx.save_for_backward(torch.addcmul(open_share, square, shut, out=shut))
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (derivative,) = ctx.saved_tensors
        return gradient * derivative


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
        norm = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        scale = norm.square_().div_(hidden.shape[-1]).add_(eps).rsqrt_()
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
        return _turned(heads, cosine, sine, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(gradient, cosine, sine, -1), None, None


def _turned(heads: Tensor, cosine: Tensor, sine: Tensor, direction: int) -> Tensor:
    output, half = heads * cosine, heads.shape[-1] // 2
    first, second = heads.split(half, dim=-1)
    output[..., :half].addcmul_(second, sine[..., :half], value=-direction)
    output[..., half:].addcmul_(first, sine[..., half:], value=direction)
    return output


class _CausalAttention(torch.autograd.Function):
    """BLOCK queries at a time, so that half of the scores are never computed; the shares are kept, as flash would not.

    With g the gradient and S the shares: d value = S^T g, d scores = softmax's gradient of g value^T, and from them
    d query = d scores key and d key = d scores^T query, both / sqrt(Dh).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads, tokens = query.shape[:2], query.shape[2]
        query, key, value = (part.flatten(0, 1) for part in (query, key, value))  # (B H, T, Dh)
        query = query * query.shape[-1] ** -0.5
        mixed, shares = torch.empty_like(query), []
        later = query.new_full((min(BLOCK, tokens),) * 2, -math.inf).triu_(1)
        for start, end in _blocks(tokens):
            scores = torch.bmm(query[:, start:end], key[:, :end].transpose(1, 2))
            scores[:, :, start:].add_(later[: end - start, : end - start])
            shares.append(scores.softmax(dim=-1))
            _multiply(shares[-1], value[:, :end], mixed[:, start:end])
        ctx.save_for_backward(query, key, value, *shares)
        return mixed.unflatten(0, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *shares = ctx.saved_tensors
        heads, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        of_query, of_key, of_value = (torch.empty_like(part) for part in (query, key, value))
        for (start, end), share in reversed(list(zip(_blocks(query.shape[1]), shares, strict=True))):
            given = gradient[:, start:end]
            of_share = torch.bmm(given, value[:, :end].transpose(1, 2))
            of_scores = torch._softmax_backward_data(of_share, share, -1, share.dtype)
            _multiply(of_scores, key[:, :end], of_query[:, start:end])
            is_last = end == query.shape[1]  # it sees all keys, so it writes what the others add to
            _multiply(of_scores.transpose(1, 2), query[:, start:end], of_key[:, :end], adds=not is_last)
            _multiply(share.transpose(1, 2), given, of_value[:, :end], adds=not is_last)
        of_query *= query.shape[-1] ** -0.5
        return of_query.unflatten(0, heads), of_key.unflatten(0, heads), of_value.unflatten(0, heads)


def _multiply(left: Tensor, right: Tensor, target: Tensor, *, adds: bool = False) -> None:
    """Writes the products of two batches to `target`, or adds them to it."""
    if adds:
        target += torch.bmm(left, right)
    elif target.is_contiguous():
        torch.bmm(left, right, out=target)
    else:
        target.copy_(torch.bmm(left, right))  # torch would write there one matrix at a time


def _blocks(tokens: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, tokens)) for start in range(0, tokens, BLOCK)]
