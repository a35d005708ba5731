"""What a training step allocates, written down in order while the step runs on tensors without storage.

Unusual: nothing is modelled by formulas. The task's own code runs on fake tensors, and each storage that appears or
goes is an entry. What a kernel allocates inside itself is not seen. It knows nothing of tasks.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

PARTS = (
    "weights", "gradients", "optimizer state", "low-precision copies", "activations", "logits and loss",
    "optimizer work", "batch",
)  # fmt: skip


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


# torch 2.13 counts the attention kernels of GPUs only
_OF_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class Entry(NamedTuple):
    """A block that appears, or goes where `size` is 0."""

    block: int
    size: int  # bytes


@dataclass
class Book:
    """The entries of some steps, what each block is for, and the FLOPs of forward and backward in matrix products."""

    entries: list[Entry] = field(default_factory=list)
    parts: dict[int, str] = field(default_factory=dict)
    flops: float = 0.0

    def peak(self, share: dict[str, float] | None = None) -> dict[str, int]:
        """Bytes of each part at the moment when most are held, where one rank holds only a `share` of some parts."""
        share = share or {}
        held: dict[int, float] = {}
        now = most = 0.0
        at = 0
        for place, (block, size) in enumerate(self.entries):
            own = size * share.get(self.parts[block], 1.0)
            now += own - held.pop(block, 0)
            if size:
                held[block] = own
            if now > most:
                most, at = now, place
        held = {}
        for block, size in self.entries[: at + 1]:
            if size:
                held[block] = size * share.get(self.parts[block], 1.0)
            else:
                held.pop(block, None)
        parts = dict.fromkeys(PARTS, 0.0)
        for block, own in held.items():
            parts[self.parts[block]] += own
        return {name: round(size) for name, size in parts.items()}


class Ledger(TorchDispatchMode):
    """Within it every operation is written into `book`; `part` is what new blocks are for, unless told otherwise.

    Reading a number out of a tensor without storage gives 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.part = "activations"
        self._blocks: dict[int, int] = {}  # storage -> block
        self._weights: set[int] = set()  # storages
        self._count = 0

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Writes `tensors` down as `part`, those too that are there already."""
        for tensor in tensors:
            self._add(tensor, part)
            storage = tensor.untyped_storage()._cdata
            self.book.parts[self._blocks[storage]] = part
            if part == "weights":
                self._weights.add(storage)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default and type(args[0]) is not Tensor:
            return 1 if not args[0].is_floating_point() else 1.0
        result = function(*args, **kwargs)
        if self.part != "optimizer work":
            self._count_products(function._overloadpacket, args, kwargs, result)
        is_copy = function is torch.ops.aten._to_copy.default and self._is_weight(args[0])
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor, "low-precision copies" if is_copy else self.part)
        return result

    def _count_products(self, packet: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> None:
        if packet in _OF_CPU:
            self.book.flops += _OF_CPU[packet](*(a.shape if isinstance(a, Tensor) else a for a in args))
        elif packet in flop_registry:
            self.book.flops += flop_registry[packet](*args, **kwargs, out_val=result)

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._weights

    def _add(self, tensor: Tensor, part: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._blocks or not storage.nbytes():
            return
        self._count += 1
        self._blocks[storage._cdata] = self._count
        self.book.entries.append(Entry(self._count, storage.nbytes()))
        self.book.parts[self._count] = part
        weakref.finalize(storage, self._gone, storage._cdata)

    def _gone(self, storage: int) -> None:
        self._weights.discard(storage)
        self.book.entries.append(Entry(self._blocks.pop(storage), 0))
