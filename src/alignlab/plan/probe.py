"""Seconds of a training step on this machine's CPU, from about five seconds of real ones.

Unusual: a step that would take too long is cut down in rows, then in layers, and the time of the whole follows from
two sizes of the part. It knows nothing of the data beyond one batch.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from alignlab.memory import keep_freed_memory
from alignlab.plan.rehearsal import attach, autocast, cast
from alignlab.tasks.task import TaskModule

SECONDS = 5.0  # of the probe
LONGEST = 2.0  # seconds, of one step in it
LARGEST = 2**32  # bytes of weights, gradients and optimizer state in it


@dataclass(frozen=True, kw_only=True)
class Probed:
    """`forward_backward` of one micro-batch and `update` of the weights, in seconds; `how` they were found."""

    forward_backward: float
    update: float
    how: str


def products_per_second(size: int, dtype: torch.dtype) -> float:
    """FLOP/s of square matrix products."""
    left, right = (torch.randn(size, size).to(dtype) for _ in range(2))
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / min(times)


def probe(
    make: Callable[[], TaskModule], batch: Callable[[int], Any], *, rows: int, least: int, flops: float,
    precision: str, accumulate: int, horizon: int,
) -> Probed:  # fmt: skip
    """The time of one micro-batch of `rows` rows, `flops` of which are in matrix products.

    make: the task, its weights without storage; batch: a micro-batch of so many rows; least: fewer would take another
    way through the loss, and its time.
    """
    keep_freed_memory()
    dtype = torch.float32 if precision.startswith("32") else torch.bfloat16
    task = make()
    layers = len(task.model.blocks)
    speed = products_per_second(max(256, min(2048, task.model.config.width)), dtype)
    expected = flops / speed  # of a step at full size, too low rather than too high
    if 4 * sum(p.numel() * 4 for p in task.parameters()) > LARGEST:
        return Probed(forward_backward=2 * expected, update=0.0, how="half the speed of its matrix products")
    part = min(rows, max(least, int(rows * LONGEST / max(expected, 1e-9) / 2)))
    if expected * part / rows > LONGEST and layers > 2:
        # as many as a step can afford: what lies between two depths is noise, too, and counts for all layers
        deep = min(layers, max(2, int(layers * LONGEST / 2 / (expected * part / rows))))
        one, more = (_timed(make(), batch(part), depth, precision, accumulate, horizon) for depth in (1, deep))
        forward, update = (a + (layers - 1) * max(0.0, b - a) / (deep - 1) for a, b in zip(one, more, strict=True))
        how = f"steps of 1 and {deep} layers on {part} of {rows} rows"
    else:
        forward, update = _timed(task, batch(part), layers, precision, accumulate, horizon)
        how = f"whole steps on {part} of {rows} rows" if part < rows else "whole steps"
    return Probed(forward_backward=forward * rows / part, update=update, how=how)


def _timed(
    task: TaskModule, batch: Any, depth: int, precision: str, accumulate: int, horizon: int
) -> tuple[float, float]:
    """Median seconds of forward and backward, and of the update, with `depth` blocks."""
    task.model.blocks = task.model.blocks[:depth]
    optimizer = made_real(task, precision, accumulate=accumulate, horizon=horizon)
    passes: list[float] = []
    updates: list[float] = []
    begun = time.perf_counter()
    while len(passes) < 3 or (time.perf_counter() - begun < SECONDS and len(passes) < 200):
        start = time.perf_counter()
        with autocast(precision):
            loss = task.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        del loss
        between = time.perf_counter()
        task.configure_gradient_clipping(optimizer, 1.0, None)
        optimizer.step()
        passes.append(between - start)
        updates.append(time.perf_counter() - between)
        if time.perf_counter() - begun > 2 * SECONDS and len(passes) > 1:
            break
    return statistics.median(passes[1:]), statistics.median(updates[1:])


def made_real(task: TaskModule, precision: str, *, accumulate: int, horizon: int) -> Any:
    """Gives a task and its reference weights of noise, ready for real steps; returns its optimizer."""
    for module in (task, *task.reference):
        fill(module)
    cast(task, precision)
    attach(task, ranks=1, accumulate=accumulate, horizon=horizon)
    optimizer: Any = task.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    task.train()
    return optimizer


def fill(module: nn.Module) -> None:
    """Gives every weight without storage one, with values of a usual size."""
    for part in module.modules():
        for name, weight in list(part.named_parameters(recurse=False)):
            if isinstance(weight, FakeTensor) or isinstance(weight.data, FakeTensor):
                setattr(part, name, nn.Parameter(_values(weight), requires_grad=weight.requires_grad))


def _values(like: Tensor) -> Tensor:
    made = torch.ones(like.shape, dtype=like.dtype)
    return made.normal_(std=0.02) if like.ndim > 1 else made
