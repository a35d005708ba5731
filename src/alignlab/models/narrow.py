"""Frozen weights in the narrow type of their file: half the memory, and the results of wide weights.

Unusual: every bf16 or fp16 number is an fp32 number too, so a weight that is widened for each product loses nothing:
results are equal to the last bit. The wide copy lives for one product, and is made again in the backward pass. That of
a large table, such as an unembedding, is made in blocks of rows; its gradient is then summed up block by block, which
rounds otherwise. It knows nothing of which weights are frozen, nor why.
"""

# N inputs, M outputs of a linear layer, V rows of a table, D width

import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from alignlab import products

NARROW = (torch.bfloat16, torch.float16)
ALIGNMENT = 64  # rows of a table, for a GPU
BLOCK = 2**22  # numbers of a weight that are widened at one time: 16 MB of fp32


class _Scratch(threading.local):
    """A thread's memory for one wide copy at a time; anew for each, they would leave holes in a CPU's heap."""

    def __init__(self) -> None:
        self.held: dict[torch.dtype, Tensor] = {}

    def of(self, size: int, dtype: torch.dtype) -> Tensor:
        """(size,) numbers, which the next call overwrites."""
        if dtype in self.held and self.held[dtype].numel() >= size:
            return self.held[dtype][:size]
        with torch.inference_mode(False):  # what is made there cannot be written to elsewhere
            made = torch.empty(max(size, BLOCK), dtype=dtype, device="cpu")
        if type(made) is Tensor:  # in a mode that makes stand-ins of tensors it is one of them
            self.held[dtype] = made
        return made[:size]


_SCRATCH = _Scratch()


def _wide(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight as `dtype`, for one product and no longer."""
    is_here = type(weight) in (Tensor, nn.Parameter) and weight.device.type == "cpu"  # no stand-in of a tensor
    if not is_here or torch.compiler.is_compiling():
        return weight.to(dtype)
    return _SCRATCH.of(weight.numel(), dtype).view(weight.shape).copy_(weight)


class _WidenedLinear(torch.autograd.Function):
    """torch's linear over a frozen weight of a narrower type than the input's."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not ctx.needs_input_grad[1], "a weight that learns is not narrow"
        ctx.save_for_backward(weight)
        if weight.numel() <= BLOCK:
            return products.linear(hidden, _wide(weight, hidden.dtype), bias)
        flat = hidden.flatten(0, -2)
        result = flat.new_empty(len(flat), len(weight))
        if len(flat):
            for rows in _blocks(weight):
                products.write(result[:, rows], flat, _wide(weight[rows], flat.dtype))
        if bias is not None:
            result += bias
        return result.view(*hidden.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        of_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, None, of_bias
        if weight.numel() <= BLOCK:
            return products.linear(gradient, _wide(weight, gradient.dtype).t()), None, of_bias
        flat = gradient.flatten(0, -2)
        of_hidden = flat.new_zeros(len(flat), weight.shape[1])
        for rows in _blocks(weight):
            products.write(of_hidden, flat[:, rows], _wide(weight[rows], flat.dtype).t(), adds=True)
        return of_hidden.view(*gradient.shape[:-1], weight.shape[1]), None, of_bias


def _blocks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight that are widened together."""
    step = max(1, BLOCK // weight.shape[1])
    return (slice(start, start + step) for start in range(0, len(weight), step))


def linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """hidden (..., N) times weight (M, N), plus bias, in the type of hidden: (..., M)."""
    if weight.dtype not in NARROW or weight.dtype == hidden.dtype or torch.is_autocast_enabled(hidden.device.type):
        return products.linear(hidden, weight, bias)
    return _WidenedLinear.apply(hidden, weight, bias)


def aligned_linear(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (..., N) times weight (M, N), without bias: (..., M).

    Tensor cores are nearly twice as fast where M is a multiple of 8: GPT-2's 50,257 rows get some of zeros behind them.
    """
    missing, is_cast = -len(weight) % ALIGNMENT, torch.is_autocast_enabled(hidden.device.type)
    is_half = hidden.dtype in NARROW or is_cast
    if not missing or not is_half or hidden.device.type != "cuda" or not hidden.numel():
        return linear(hidden, weight)
    cast = weight.to(torch.get_autocast_dtype("cuda")) if is_cast else weight
    return F.linear(hidden, F.pad(cast, (0, 0, 0, missing)))[..., : len(weight)]


class Storage(NamedTuple):
    """How a frozen weight (M, N) is kept: its product with (..., N), plus a bias, and the numbers it stands for."""

    product: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    widened: Callable[[Tensor], Tensor]


HELD = Storage(product=linear, widened=lambda weight: weight.float() if weight.dtype in NARROW else weight)


class NarrowLinear(nn.Linear):
    """A linear layer whose weight is frozen and narrow, kept as `storage` says."""

    storage: Storage = HELD

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        return self.storage.product(hidden, self.weight, self.bias)

    def widened(self) -> nn.Module:
        """A plain layer that computes the same, faster."""
        with torch.device("meta"):
            plain = nn.Linear(self.in_features, self.out_features, bias=False)
        plain.weight = nn.Parameter(self.storage.widened(self.weight), requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)


class NarrowEmbedding(nn.Embedding):
    """A table whose rows are frozen and narrow; they are read in float32."""

    def forward(self, ids: Tensor) -> Tensor:
        """(...) -> (..., D)."""
        return super().forward(ids).float()

    def widened(self) -> nn.Module:
        """A plain table of the same rows."""
        return nn.Embedding.from_pretrained(self.weight.detach().float()).train(self.training)


def widen(parameter: nn.Parameter) -> None:
    """Makes a narrow parameter float32, in its place."""
    if parameter.dtype in NARROW:
        parameter.data = parameter.data.float()


def keep_narrow(model: nn.Module) -> None:
    """Gives every linear layer and table of a narrow weight the class that reads it; all of them must be frozen."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            is_plain = type(child) in (nn.Linear, nn.Embedding)
            if not isinstance(child, nn.Linear | nn.Embedding) or not is_plain or child.weight.dtype not in NARROW:
                continue
            assert not child.weight.requires_grad, f"{name} learns and is {child.weight.dtype}"
            narrow = narrow_linear(child, child.weight) if isinstance(child, nn.Linear) else narrow_table(child)
            setattr(parent, name, narrow)


def narrow_table(plain: nn.Embedding) -> NarrowEmbedding:
    """The table in the place of `plain`."""
    narrow = NarrowEmbedding(plain.num_embeddings, plain.embedding_dim, device="meta")
    narrow.weight = plain.weight
    return narrow.train(plain.training)


def narrow_linear(plain: nn.Linear, weight: Tensor, storage: Storage = HELD) -> NarrowLinear:
    """The layer in the place of `plain` whose `weight` is kept as `storage` says."""
    narrow = NarrowLinear(plain.in_features, plain.out_features, bias=False, device="meta")
    narrow.weight, narrow.bias, narrow.storage = weight, plain.bias, storage
    return narrow.train(plain.training)
