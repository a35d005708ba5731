"""Bytes that one process of a run takes, by part, and the largest micro-batch that fits.

Unusual: on a CPU the parts are what the heap grows to, on a GPU the tensors at the worst moment and a share of them for
gaps; what strategies add and take away is arithmetic on top. It knows nothing of data.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from alignlab.models.gpt import GPT
from alignlab.plan.hardware import Device
from alignlab.plan.heap import heap_size
from alignlab.plan.ledger import Book
from alignlab.plan.rehearsal import weights_of
from alignlab.tasks.task import TaskModule

PROCESS = 43 * 2**20  # bytes of code and buffers that a first step on a CPU loads; measured 2026-11-24, torch 2.13
GAPS = "gaps of the allocator"
GPU_GAPS = 0.06  # of the tensors' bytes; 0.02 to 0.10 in four runs on an H200, 2026-11-26, torch 2.11: docs/planning.md
TRIES = 8


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of each part at the worst moment of a step."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.parts.values())


def rehearsed(book: Book, *, steps: int, is_cpu: bool, share: dict[str, float]) -> dict[str, float]:
    """Bytes of the tensors of a book at its worst moment, by part, and on a CPU the gaps between them."""
    parts: dict[str, float] = dict(book.peak(share))
    if is_cpu:
        parts[GAPS] = max(0, heap_size(book.entries, steps) - sum(parts.values()))
    return parts


def along(first: dict[str, float], second: dict[str, float], distance: float) -> dict[str, float]:
    """The parts `distance` steps beyond `first`, where `second` is one step beyond it."""
    return {name: max(0.0, value + distance * (second[name] - value)) for name, value in first.items()}


def memory_of(
    task: TaskModule, found: dict[str, float], *, device: Device, ranks: int, strategy: str, ema: bool, libraries: int
) -> Memory:
    """What one of `ranks` processes takes whose tensors, unsharded, are those `found`; `libraries` on a CPU."""
    parts = {name: round(value) for name, value in found.items()}
    if ema:
        parts["moving average"] = sum(map(_size, task.parameters()))
    if strategy == "fsdp" and ranks > 1:
        parts |= {"gathered weights": _gathered(task.model), "gathered gradients": _gathered_gradients(task.model)}
    elif ranks > 1:  # in which DDP sends them
        parts["gradient buckets"] = sum(_size(p) for p in task.parameters() if p.requires_grad)
    if not device.is_cpu:
        parts[GAPS] = round(GPU_GAPS * sum(parts.values()))
    parts["libraries"] = libraries if device.is_cpu else device.workspaces
    return Memory(parts={name: size for name, size in parts.items() if size})


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def shard(parameter: Tensor, ranks: int) -> int:
    """Bytes of the largest rank's part of a parameter, which FSDP2 cuts along its first dimension."""
    rows = parameter.shape[0]
    return _size(parameter) // rows * -(-rows // ranks)


def shares(task: TaskModule, *, ranks: int, strategy: str) -> dict[str, float]:
    """The share of each part that one rank holds, where it is not all; see `TaskModule.configure_model`.

    Heads and references are not sharded.
    """
    if strategy != "fsdp" or ranks == 1:
        return {}
    inside = {id(p) for p in task.model.parameters()}

    def own(tensor: Tensor) -> int:
        return shard(tensor, ranks) if id(tensor) in inside else _size(tensor)

    learned = [p for p in task.parameters() if p.requires_grad]
    weights = weights_of(task)
    of_learned = sum(map(own, learned)) / sum(map(_size, learned))
    return {
        "weights": sum(map(own, weights)) / sum(map(_size, weights)),
        **dict.fromkeys(("gradients", "optimizer state", "optimizer work"), of_learned),
    }


def _gathered(model: GPT) -> int:
    """The root's weights, which stay, one block's and the next one's, which is fetched ahead."""
    blocks = [sum(map(_size, block.parameters())) for block in model.blocks]
    return sum(map(_size, model.parameters())) - sum(blocks) + sum(sorted(blocks)[-2:])


def _gathered_gradients(model: GPT) -> int:
    """The root's gradients and those of one block, before they are shared out."""

    def learned(module: nn.Module) -> int:
        return sum(_size(p) for p in module.parameters() if p.requires_grad)

    blocks = [learned(block) for block in model.blocks]
    return learned(model) - sum(blocks) + max(blocks)


def largest(total: Callable[[int], int], rows: int, room: int) -> int:
    """The most rows of a micro-batch whose `total` bytes fit in `room`, 0 where not one does.

    Memory grows in nearly straight lines, so a few tries suffice; the answer has been tried.
    """
    tried = {size: total(size) for size in {1, max(2, rows)}}
    for _ in range(TRIES):
        low, high = sorted(tried)[-2:] if min(tried.values()) <= room else sorted(tried)[:2]
        fitting = [size for size, bytes_ in tried.items() if bytes_ <= room]
        too_large = [size for size, bytes_ in tried.items() if bytes_ > room]
        if not fitting:
            return 0
        if too_large:
            low, high = max(fitting), min(too_large)
            if high - low == 1:
                return low
        slope = max(1.0, (tried[high] - tried[low]) / (high - low))
        guess = low + int((room - tried[low]) / slope)
        guess = max(low + 1, min(guess, high - 1)) if too_large else max(high + 1, min(guess, 64 * high))
        tried[guess] = total(guess)
    return max((size for size, bytes_ in tried.items() if bytes_ <= room), default=0)
