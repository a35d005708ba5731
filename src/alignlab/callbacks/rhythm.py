"""When a run validates and when it stops, in completed optimizer steps.

Unusual: the trainer's own interval counts micro-batches and skips the last steps, and its reaction to a signal cuts an
accumulated step in two. Here every decision falls after a completed step.
"""

import signal
import sys
import time
from types import FrameType
from typing import Any

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.callbacks import Callback

from alignlab.callbacks.checkpoints import Checkpoints

NEVER = sys.maxsize


class Stopped(Exception):
    """The run was asked to stop by a signal, and has saved its state."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Pruned(Exception):
    """The run is a trial of a search, which gave it up."""


class Rhythm(Callback):
    """Validates every `every` optimizer steps and after the last; stops on SIGTERM, Ctrl-C or after `seconds`.

    With `is_first_measured` it validates before the first step too.
    """

    def __init__(
        self, *, every: int, seconds: float | None, checkpoints: Checkpoints, is_first_measured: bool = False
    ) -> None:
        self.every = every
        self.is_first_measured = is_first_measured
        self.seconds = seconds
        self.checkpoints = checkpoints
        self.received: int | None = None
        self.previous: dict[int, Any] = {}
        self.started = 0.0
        self.group: Any = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens for signals; the second one ends the process at once."""
        self.started = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            self.previous[number] = signal.signal(number, self._receive)
        if trainer.world_size > 1:  # on the host, so that asking does not wait for a device
            self.group = torch.distributed.new_group(backend="gloo")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validates where it is asked for, or the run was stopped between a step and the validation due after it."""
        trainer.val_check_batch = NEVER
        step = trainer.global_step
        is_due = self._is_due(trainer) if step > 0 else self.is_first_measured
        if is_due and self.checkpoints.record.validated_step != step:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After a completed step: stop, or validate, or go on."""
        trainer.val_check_batch = NEVER
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        is_late = self.seconds is not None and time.monotonic() - self.started > self.seconds
        if (asked := self._agree(trainer, self.received or (-1 if is_late else 0))) > 0:
            self.checkpoints.save(trainer, "last.ckpt")
            raise Stopped(asked)
        if asked < 0:
            trainer.should_stop = True
        if asked < 0 or self._is_due(trainer):
            trainer.val_check_batch = 1

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def _is_due(self, trainer: L.Trainer) -> bool:
        return trainer.global_step % self.every == 0 or trainer.global_step >= trainer.max_steps

    def _agree(self, trainer: L.Trainer, asked: int) -> int:
        """What any rank was asked: a signal before a time limit; ranks see a signal at different steps."""
        if trainer.world_size == 1:
            return asked
        votes = torch.tensor([max(asked, 0), -min(asked, 0)])
        torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX, group=self.group)
        return int(votes[0]) or -int(votes[1])

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            sys.stderr.write("second signal: ending at once\n")
            sys.stderr.flush()
            import os

            os._exit(128 + number)
        self.received = number
        sys.stderr.write(f"\n{signal.Signals(number).name}: saving after this step; once more ends at once\n")
