"""Products of fp32 matrices on CPUs whose widest units torch's own products leave idle.

torch multiplies fp32 matrices by MKL, which takes AVX2 on processors that are not Intel's. oneDNN, which torch brings
along for half types, takes AVX-512: on two cores of an AMD EPYC of Zen 5 (torch 2.13) 450 to 510 GFLOP/s where MKL has
200 to 225. Both add up in fp32. Everywhere else these functions are torch's own. torch's counter of FLOPs does not see
oneDNN's products. Knows nothing of layers.
"""

# N rows of a batch, D inputs, M outputs

import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WORTH = 3 * 2**20  # multiplications, below which the call takes longer than it saves
THIN = 16  # inputs or outputs, with fewer of which it never saves anything


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T + bias, (N, D), (M, D), (M,) -> (N, M), which may be written to. No gradients."""
    if not is_wide(rows, weight, len(rows)):
        result = rows @ weight.t()
        return result if bias is None else result.add_(bias)  # torch's own would first copy the bias to each row
    count, step = len(rows), row_step(len(rows))
    missing = -count % step
    if not missing:
        return _onednn(rows, weight, bias)
    if len(weight) > weight.shape[1] and 3 * missing < count:  # fewer numbers are copied where rows of zeros are added
        padded = _onednn(F.pad(rows, (0, 0, 0, missing)), weight, bias)
        return torch.ops.aten._unsafe_view(padded[:count], (count, len(weight)))
    whole, result = count - count % step, rows.new_empty(count, len(weight))
    result[:whole] = _onednn(rows[:whole], weight, bias)
    torch.mm(rows[whole:], weight.t(), out=result[whole:])
    if bias is not None:
        result[whole:] += bias
    return result


def outer(gradients: Tensor, rows: Tensor) -> Tensor:
    """gradients^T rows, (N, M), (N, D) -> (M, D): of a weight, from those of its results and inputs. No gradients."""
    if gradients.shape[1] < THIN or not is_wide(gradients.t(), rows.t(), gradients.shape[1]):
        return gradients.t() @ rows
    whole = len(rows) - len(rows) % row_step(len(rows))
    left, right = gradients[:whole].t(), rows[:whole].t()
    # oneDNN copies one of the two, to have it row by row; if that is the right one, the result is copied too
    of_left, of_right = left.numel(), right.numel() + len(left) * len(right)
    result = _onednn(right, left).t().contiguous() if of_right < of_left else _onednn(left, right)
    return result if whole == len(rows) else result.addmm_(gradients[whole:].t(), rows[whole:])


def row_step(rows: int) -> int:
    """What numbers of rows should be multiples of: oneDNN keeps code, some 100 KB, for each that it has met."""
    if rows <= 64 or not has_idle_units():
        return 1
    return max(64, 2 ** (rows.bit_length() - 5))  # 16 numbers between 2^n and 2^(n + 1)


def write(target: Tensor, rows: Tensor, weight: Tensor, *, adds: bool = False) -> None:
    """rows weight^T, written to `target` (N, M) of any strides, or added to it. No gradients."""
    if is_wide(rows, weight, len(rows)):
        (target.add_ if adds else target.copy_)(product(rows, weight))
    elif adds:
        target.addmm_(rows, weight.t())
    else:
        torch.mm(rows, weight.t(), out=target)


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's linear, (..., D), (M, D), (M,) -> (..., M), with gradients of any order."""
    is_plain = hidden.dim() > 1 and not torch._C._are_functorch_transforms_active()
    if is_plain and is_wide(hidden, weight, hidden.numel() // max(1, hidden.shape[-1])):
        return _Linear.apply(hidden, weight, bias)
    return F.linear(hidden, weight, bias)


def is_wide(left: Tensor, right: Tensor, rows: int) -> bool:
    """Whether oneDNN is asked for the product of `rows` rows, (..., D), with (M, D)."""
    if torch.compiler.is_compiling() or rows * right.numel() < WORTH or not has_idle_units():
        return False
    if min(right.shape) < THIN or not torch.backends.mkldnn.enabled or torch.is_autocast_enabled("cpu"):
        return False
    return all(
        type(one) in (Tensor, nn.Parameter)  # no stand-ins of tensors, and no sharded ones
        and (one.dtype, one.device.type, one.layout) == (torch.float32, "cpu", torch.strided)
        for one in (left, right)
    )


@cache
def has_idle_units() -> bool:
    """Whether this is a CPU whose units of 512 bits MKL does not use: AMD's since Zen 5, family 26.

    Zen 4 takes AVX-512 in halves of 256 bits, so nothing is idle there.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    family = re.search(r"family\s*:?\s*(\d+)", described := _processor(), re.IGNORECASE)
    is_amd = "AuthenticAMD" in described and family is not None and int(family[1]) >= 26
    return is_amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


def _processor() -> str:
    """What names the processor: on Linux the file that has its vendor, elsewhere what Python knows."""
    known = Path("/proc/cpuinfo")
    return known.read_text(errors="replace") if known.is_file() else platform.processor()


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """rows weight^T + bias."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # other strides take a kernel hundreds of times slower
    bias = None if bias is None else bias.contiguous()  # its strides are passed over
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
