"""A training step of a run, on weights without storage: the code of task and optimizer, as a trainer calls it.

Unusual: only the weights are fake. The batch is real, so that code which asks it questions gets answers. It knows
nothing of devices and of what fits.
"""

# B rows

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from alignlab.build import Parts
from alignlab.data.module import TextData
from alignlab.losses import CHUNK_LOGITS, IN_PLACE
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT, SHORT
from alignlab.models.kernels import ONE_STEP
from alignlab.plan.ledger import Book, Ledger
from alignlab.tasks.task import TaskModule

LOOKED_AT = 2000  # optimizer steps of the first epoch whose widths are read
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
TRUE = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


def without_storage(config: GPTConfig, *, recompute_activations: bool) -> GPT:
    """A GPT that takes no memory."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return GPT(config, recompute_activations=recompute_activations)


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Which examples make the widest micro-batch and one of mean width, and the positions of a mean one."""

    widest: np.ndarray  # (B,)
    middle: np.ndarray  # (B,)
    positions: float  # B x width, padding included


def widths(data: TextData, ranks: int) -> Widths:
    """Of the micro-batches of the first epoch."""
    order, size = data.order(ranks), data.batch_size
    train = data.examples("train")
    assert train is not None, "every datamodule has a train split"
    steps = range(min(order.steps_per_epoch, LOOKED_AT))
    if train.lengths is None:
        rows = order.step(0)[:size]
        positions = train.batch(rows, train.counts(rows), len(rows)).ids.numel()
        return Widths(widest=rows, middle=rows, positions=positions)
    batches = np.concatenate([order.step(step).reshape(-1, size) for step in steps])  # (N, B)
    longest = np.asarray(train.lengths)[batches].max(axis=1)
    pad_to = getattr(data, "pad_to", 1)
    longest = -(-longest // pad_to) * pad_to
    mean = float(longest.mean())
    middle = int(np.abs(longest - mean).argmin())
    return Widths(widest=batches[longest.argmax()], middle=batches[middle], positions=mean * size)


def batch_of(data: TextData, indices: np.ndarray, rows: int) -> Any:
    """A micro-batch of `rows` rows made of `indices`, repeated where they are too few."""
    train = data.examples("train")
    assert train is not None, "every datamodule has a train split"
    chosen = np.resize(indices, rows)
    return train.batch(chosen, train.counts(chosen), rows)


def autocast(precision: str) -> AbstractContextManager:
    """What the trainer puts around a step; on the CPU, whose kernels stand for those of every device."""
    return torch.autocast("cpu", MIXED[precision]) if precision in MIXED else nullcontext()


def cast(task: TaskModule, precision: str) -> None:
    """Gives the weights the type that a `-true` precision has them in."""
    if precision not in TRUE:
        return
    for module in task.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            other = nn.Parameter(parameter.detach().to(TRUE[precision]), requires_grad=parameter.requires_grad)
            setattr(module, name, other)


def attach(task: TaskModule, *, ranks: int, accumulate: int, horizon: int) -> SimpleNamespace:
    """What a step asks of its trainer."""
    plugin = SimpleNamespace(scaler=None)
    trainer = SimpleNamespace(
        world_size=ranks, accumulate_grad_batches=accumulate, max_steps=horizon, global_step=1, precision_plugin=plugin
    )
    task._trainer = trainer  # type: ignore[assignment]  # an attribute of Lightning's, set by its own trainer otherwise
    return trainer


def take_step(task: TaskModule, optimizer: torch.optim.Optimizer, batches: Iterable[Any], precision: str) -> None:
    """One optimizer step as the trainer takes it: the old gradients go after the first forward pass."""
    for number, batch in enumerate(batches):
        with autocast(precision):
            loss = task.training_step(batch, number)
        if number == 0:
            optimizer.zero_grad()
        loss.backward()
        del loss
    task.configure_gradient_clipping(optimizer, 1.0, None)
    optimizer.step()


@contextmanager
def as_on(kind: str) -> Iterator[None]:
    """Within it loss and attention go about their work as on devices of this kind, though the tensors are a CPU's."""
    tables: tuple[dict[str, Any], ...] = (CHUNK_LOGITS, IN_PLACE, SHORT, ONE_STEP)
    own = [(table, table["cpu"]) for table in tables]
    CHUNK_LOGITS["cpu"], IN_PLACE["cpu"], SHORT["cpu"] = CHUNK_LOGITS[kind], kind in IN_PLACE, SHORT.get(kind, 0)
    ONE_STEP["cpu"] = kind in ONE_STEP
    try:
        yield
    finally:
        for table, value in own:
            table["cpu"] = value


def rehearse(
    parts: Parts, batches: Sequence[Any], *, precision: str, ranks: int, horizon: int, steps: int, kind: str
) -> Book:
    """The book of `steps` optimizer steps, each over `batches`, on a device of a kind; its FLOPs are of one batch."""
    task = parts.task
    cast(task, precision)
    attach(task, ranks=ranks, accumulate=len(batches), horizon=horizon)
    ledger = Ledger()
    ledger.hold(weights_of(task), "weights")
    optimizer: Any = task.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    task.train()
    if steps == 1:  # which is to be one from the middle of a run
        _from_the_middle(ledger, task, optimizer)
    for _ in range(steps):
        with ledger, as_on(kind):
            ledger.hold([x for batch in batches for x in batch if isinstance(x, Tensor)], "batch")
            ledger.part = "activations"
            _take_noted_step(ledger, task, optimizer, batches, precision)
            ledger.hold(_states(optimizer), "optimizer state")
    ledger.book.flops /= steps * len(batches)
    return ledger.book


def _from_the_middle(ledger: Ledger, task: TaskModule, optimizer: torch.optim.Optimizer) -> None:
    """Leaves gradients behind, and room for what the optimizer keeps, as a step before would have."""
    with ledger:
        for name, parameter in task.named_parameters():
            if not parameter.requires_grad:
                continue
            ledger.part = "gradients"
            parameter.grad = torch.zeros_like(parameter)
            ledger.part = "optimizer state"
            kept = [torch.zeros_like(parameter) for _ in range(task.optim.numbers_per_weight(name, parameter))]
            state = optimizer.state[parameter]
            if len(kept) == 2:
                state |= {"step": torch.zeros(()), "exp_avg": kept[0], "exp_avg_sq": kept[1]}
            elif kept:
                state |= {"momentum": kept[0], "momentum_buffer": kept[0]}


def _states(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The tensors that an optimizer keeps."""
    return [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]


def weights_of(task: TaskModule) -> list[Tensor]:
    """The weights of the task, and of what it compares itself with."""
    return [value for module in (task, *task.reference) for value in (*module.parameters(), *module.buffers())]


def _take_noted_step(ledger: Ledger, task: TaskModule, optimizer: Any, batches: Sequence[Any], precision: str) -> None:
    """A step in which the ledger is told what each phase allocates for."""

    def note(part: str) -> None:
        ledger.part = part

    def note_update(*_: Any) -> None:
        ledger.hold([p.grad for p in task.parameters() if p.grad is not None], "gradients")
        note("optimizer work")

    handles = [
        task.model.register_forward_pre_hook(lambda *_: note("activations")),
        task.model.register_forward_hook(lambda *_: note("logits and loss")),
        optimizer.register_step_pre_hook(note_update),
    ]
    take_step(task, optimizer, batches, precision)
    for handle in handles:
        handle.remove()
