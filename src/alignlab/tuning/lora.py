"""Low-rank layers in the place of linear ones, merging them, and taking them away for a while.

Unusual: a low-rank layer holds the linear layer's own parameters under the same names, so that a state_dict has every
key of the plain GPT and, beside a target's `weight`, `lora_a`, `lora_b` and with DoRA `magnitude`. That is the whole
mapping: dropping those three names gives the plain model's keys. It knows nothing of tasks.
"""

# R rank, N inputs, M outputs of a linear layer

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab.models.gpt import GPT
from alignlab.models.narrow import HELD, NarrowEmbedding, NarrowLinear

ADDED = ("lora_a", "lora_b", "magnitude")


class LowRank(nn.Module):
    """W x + scale * B A x over a linear layer's frozen W; with DoRA each row of W + scale * B A keeps a learned length.

    `dropout` acts on the input of A. A begins as kaiming_uniform(a=sqrt(5)) and B as 0, as peft does.
    """

    def __init__(self, plain: nn.Linear, *, rank: int, scale: float, dropout: float, is_dora: bool) -> None:
        super().__init__()
        self.weight = plain.weight  # (M, N)
        self.bias = plain.bias
        self.storage = HELD
        self.scale = scale
        self.dropout = dropout
        rows, columns = plain.weight.shape
        wide = torch.promote_types(self.weight.dtype, torch.float32)  # the frozen weight may be narrow
        self.lora_a = nn.Parameter(self.weight.new_empty(rank, columns, dtype=wide))
        self.lora_b = nn.Parameter(self.weight.new_zeros(rows, rank, dtype=wide))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.magnitude = nn.Parameter(self._lengths()) if is_dora else None  # (M,)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., N) -> (..., M)."""
        dropped = F.dropout(hidden, self.dropout, self.training)
        reduced = F.linear(dropped, self.lora_a)  # (..., R)
        if self.magnitude is None:
            return _added(self.storage.product(hidden, self.weight, self.bias), reduced, self.lora_b, self.scale)
        # the length is a constant in the backward pass: section 4.3 of the paper
        ratio = self.magnitude / self._lengths()
        if not (self.training and self.dropout):  # both products then read the same input
            changed = _added(self.storage.product(hidden, self.weight, None), reduced, self.lora_b, self.scale) * ratio
            return changed if self.bias is None else changed + self.bias
        update = self.storage.product(dropped, self.weight, None) * (ratio - 1) + F.linear(reduced, self.lora_b) * (
            ratio * self.scale
        )
        return self.storage.product(hidden, self.weight, self.bias) + update

    def extra_repr(self) -> str:
        return f"rank={len(self.lora_a)}, scale={self.scale:g}, dropout={self.dropout:g}"

    def _lengths(self) -> Tensor:
        """Length of each row of W + scale * B A, (M,)."""
        with torch.no_grad():
            return torch.linalg.vector_norm(self.weight + self.lora_b @ self.lora_a * self.scale, dim=1)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain frozen linear layer that computes the same."""
        with torch.device("meta"):
            plain = nn.Linear(self.lora_a.shape[1], self.lora_b.shape[0], bias=self.bias is not None)
        weight = merged_weight(self.storage.widened(self.weight), self.lora_a, self.lora_b, self.magnitude, self.scale)
        plain.weight = nn.Parameter(weight, requires_grad=False)
        plain.bias = self.bias
        return plain.train(self.training)


def _added(base: Tensor, reduced: Tensor, up: Tensor, scale: float) -> Tensor:
    """base (..., M) + scale * reduced (..., R) times up (M, R), in one product without a second (..., M)."""
    flat = torch.addmm(base.flatten(0, -2), reduced.flatten(0, -2), up.t(), alpha=scale)
    return flat.view(base.shape)


@torch.no_grad()
def merged_weight(weight: Tensor, down: Tensor, up: Tensor, magnitude: Tensor | None, scale: float) -> Tensor:
    """The plain (M, N) weight of a low-rank layer: W + scale * B A, its rows of length `magnitude` where given."""
    merged = weight.double() + up.double() @ down.double() * scale
    if magnitude is not None:
        merged *= (magnitude.double() / torch.linalg.vector_norm(merged, dim=1))[:, None]
    return merged.to(torch.promote_types(weight.dtype, down.dtype))  # the weight may be narrow


def insert(model: GPT, targets: Iterable[str], *, rank: int, scale: float, dropout: float, is_dora: bool) -> None:
    """Puts a low-rank layer in the place of each layer of every block that `targets` names, in the model's order.

    Raises ValueError for a name that no layer of the model bears.
    """
    wanted, found = set(targets), set()
    if not wanted:
        raise ValueError("tuning.targets is empty; expected layers such as [query, value]")
    for block in model.blocks:
        for part in (block.get_submodule("attention"), block.get_submodule("feedforward")):
            for name, plain in list(part.named_children()):
                if name in wanted and type(plain) is nn.Linear:
                    setattr(part, name, LowRank(plain, rank=rank, scale=scale, dropout=dropout, is_dora=is_dora))
                    found.add(name)
    if missing := sorted(wanted - found):
        layers = [name for name, module in model.blocks[0].named_modules() if type(module) in (nn.Linear, LowRank)]
        known = ", ".join(name.rpartition(".")[2] for name in layers)
        raise ValueError(f"tuning.targets has {', '.join(missing)}; the layers of this model are {known}")


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within it every low-rank or narrow layer of a model or task is one plain layer, so that generation is fast.

    Afterwards the layers are back as they were, bit for bit: their weights are never written.
    """
    held: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(model.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, LowRank):
                    held.append((parent, name, child))
                    setattr(parent, name, child.merged())
                elif isinstance(child, NarrowLinear | NarrowEmbedding):
                    held.append((parent, name, child))
                    setattr(parent, name, child.widened())
        yield
    finally:
        for parent, name, layer in held:
            layer.train(parent.training)
            setattr(parent, name, layer)


def has_low_rank(state: Iterable[str]) -> bool:
    """Whether a state_dict's names include those of low-rank layers."""
    return any(name.rpartition(".")[2] in ADDED for name in state)


def without_low_rank(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state_dict of the plain model, the low-rank layers' part left out."""
    return {name: value for name, value in state.items() if name.rpartition(".")[2] not in ADDED}


def merge(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state_dict of the plain model in which the low-rank layers are merged."""
    plain = without_low_rank(state)
    for name, down in state.items():
        layer, _, kind = name.rpartition(".")
        if kind == "lora_a":
            up, length = state[f"{layer}.lora_b"], state.get(f"{layer}.magnitude")
            plain[f"{layer}.weight"] = merged_weight(plain[f"{layer}.weight"], down, up, length, scale)
    return plain
