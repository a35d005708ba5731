"""Products of fp32 matrices on CPUs whose widest units torch's own products leave idle.

torch multiplies fp32 matrices by MKL, which takes AVX2 on processors that are not Intel's. oneDNN, which torch brings
along for half types, takes AVX-512 wherever it is: on two cores of an AMD EPYC of Zen 5 (torch 2.13), 450 to 510
GFLOP/s where MKL has 200 to 225. Both add up in fp32. Everywhere else these functions are torch's own.
Knows nothing of layers.
"""

# N rows of a batch, D inputs, M outputs

import platform
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH = 2**21  # multiplications, below which the call takes longer than it saves
STEP = 64  # rows; oneDNN makes code for each number of them, which takes a millisecond, so their numbers are rounded


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T + bias, (N, D), (M, D), (M,) -> (N, M), of memory of its own. No gradients."""
    if not is_wide(rows, weight, len(rows) * weight.numel()):
        result = rows @ weight.t()
        return result if bias is None else result.add_(bias)  # torch's own would first copy the bias to each row
    missing = -len(rows) % STEP if len(rows) > STEP else 0
    result = _onednn(F.pad(rows, (0, 0, 0, missing)) if missing else rows, weight, bias)
    return torch.ops.aten._unsafe_view(result[: len(rows)], (len(rows), len(weight))) if missing else result


def outer(gradients: Tensor, rows: Tensor) -> Tensor:
    """gradients^T rows, (N, M), (N, D) -> (M, D): of a weight, from those of its results and inputs. No gradients."""
    if not is_wide(gradients, rows, gradients.numel() * rows.shape[1]):
        return gradients.t() @ rows
    whole = len(rows) - len(rows) % STEP if len(rows) > STEP else len(rows)
    left, right = gradients[:whole].t(), rows[:whole].t()
    is_right_less = rows.shape[1] < gradients.shape[1]  # oneDNN first copies one of the two, to have it row by row
    result = _onednn(right, left).t().contiguous() if is_right_less else _onednn(left, right)
    return result if whole == len(rows) else result.addmm_(gradients[whole:].t(), rows[whole:])


def write(target: Tensor, rows: Tensor, weight: Tensor, *, adds: bool = False) -> None:
    """rows weight^T, written to `target` (N, M) of any strides, or added to it. No gradients."""
    if is_wide(rows, weight, len(rows) * weight.numel()):
        (target.add_ if adds else target.copy_)(product(rows, weight))
    elif adds:
        target.addmm_(rows, weight.t())
    else:
        torch.mm(rows, weight.t(), out=target)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear, (..., D), (M, D), (M,) -> (..., M), with gradients of any order."""
    if is_wide(hidden, weight, hidden.numel() * len(weight)):
        return _Linear.apply(hidden, weight, bias)
    return F.linear(hidden, weight, bias)


def is_wide(left: Tensor, right: Tensor, multiplications: int) -> bool:
    """Whether oneDNN is asked for a product of so many `multiplications`."""
    if torch.compiler.is_compiling() or multiplications < WORTH or not has_idle_units():
        return False
    if not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    if any(type(one) not in (Tensor, nn.Parameter) or one.dtype != torch.float32 for one in (left, right)):
        return False  # stand-ins of tensors, and sharded ones
    return left.device.type == "cpu" and right.device.type == "cpu"


@cache
def has_idle_units() -> bool:
    """Whether this CPU has AVX-512 and is one on which MKL does not use it."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _processor()


def _processor() -> str:
    """What names the processor: on Linux the file that has its vendor, elsewhere what Python knows."""
    described = Path("/proc/cpuinfo")
    return described.read_text(errors="replace") if described.is_file() else platform.processor()


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T + bias; the weight of any strides."""
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """Its gradients are products of the same kind, and have gradients themselves."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(hidden if ctx.needs_input_grad[1] else None, weight if ctx.needs_input_grad[0] else None)
        result = product(hidden.flatten(0, -2), weight, bias)
        return torch.ops.aten._unsafe_view(result, (*hidden.shape[:-1], len(weight)))  # may be written to

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_weight = of_hidden = None
        if weight is not None:
            of_hidden = linear(gradient, weight.t())
        if hidden is not None:
            inputs = hidden.flatten(0, -2)
            of_weight = linear(rows.t(), inputs.t()) if torch.is_grad_enabled() else outer(rows, inputs)
        return of_hidden, of_weight, rows.sum(dim=0) if ctx.needs_input_grad[2] else None
