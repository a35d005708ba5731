"""Gradual unfreezing: which blocks learn is a function of the optimizer step, from the top down.

Unusual: what is still frozen is known to the optimizer already, and simply has no gradient yet; a resumed run is
therefore where it was without any state of its own.
"""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from alignlab.tasks.task import TaskModule


class Unfreezing(Callback):
    """At first only what follows the blocks learns; each `every` optimizer steps one block more, the embedding last."""

    def __init__(self, *, every: int, learning: frozenset[str]) -> None:
        self.every = every
        self.learning = learning

    def learning_at(self, task: TaskModule, step: int) -> set[str]:
        """Names of the parameters that learn in the optimizer step after `step` others."""
        depths = {name: task.depth_of(name) for name in self.learning}
        lowest = max(depths.values()) - step // self.every
        return {name for name, depth in depths.items() if depth >= lowest}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Freezes what does not learn at this step yet."""
        self._set(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Lets the next block learn where it is due."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step and trainer.global_step % self.every == 0:
            self._set(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Among ranks every gradient is computed, for they wait for each other; those not due yet are dropped."""
        assert isinstance(pl_module, TaskModule)
        if trainer.world_size > 1:
            waiting = self.learning - self.learning_at(pl_module, trainer.global_step)
            for name, parameter in pl_module.named_parameters():
                if name in waiting:
                    parameter.grad = None

    def _set(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, TaskModule)
        if trainer.world_size > 1:
            return
        learning = self.learning_at(task, trainer.global_step)
        for name, parameter in task.named_parameters():
            parameter.requires_grad_(name in learning)
