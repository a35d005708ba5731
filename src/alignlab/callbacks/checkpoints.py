"""When checkpoints are written, what they hold beside the trainer's own, and how a run goes on from one."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from alignlab import checkpoint as files
from alignlab.callbacks.record import Record
from alignlab.errors import NotFinite
from alignlab.ranks import gathered
from alignlab.tasks.task import TaskModule


class Checkpoints(Callback):
    """Writes last.ckpt every `every` optimizer steps and after each validation, best.ckpt when `record` improved.

    `identity` is what rebuilds the model without other files (config, tokenizer, model); `position` what a resumed
    run must agree with: data, batch, tokenizer. Both are plain types.
    """

    def __init__(
        self, *, folder: Path, every: int, keep: int, record: Record, identity: dict[str, Any], position: dict[str, Any]
    ) -> None:
        self.folder = folder
        self.every = every
        self.keep = keep
        self.record = record
        self.identity = identity
        self.position = position
        self.saved_step: int | None = None
        self.random: list[dict[str, Any]] | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes last.ckpt where it is due; after a validation that follows, once more with its results."""
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step and trainer.global_step % self.every == 0 and trainer.val_check_batch != 1:
            self.save(trainer, "last.ckpt")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes best.ckpt if this validation was the best, and last.ckpt."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.record.is_improved:
            self.save(trainer, "best.ckpt")
        self.save(trainer, "last.ckpt")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes last.ckpt after the last step where no validation did."""
        if self.saved_step != trainer.global_step:
            self.save(trainer, "last.ckpt")

    def save(self, trainer: L.Trainer, name: str) -> None:
        """Writes one file; every rank must call it. Raises NotFinite where a weight is not finite."""
        with self.record.stopwatch.paused():
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            task = trainer.lightning_module
            assert isinstance(task, TaskModule)
            for part in ("state_dict", "current_model_state"):  # the second with a moving average
                if part in checkpoint:
                    checkpoint[part] = task.kept(checkpoint[part])
            if bad := files.not_finite(checkpoint["state_dict"]):
                raise NotFinite(
                    f"weights are not finite after step {trainer.global_step}: {', '.join(bad[:3])}; not saved. "
                    "Lower optim.lr; the checkpoint before is intact"
                )
            if trainer.is_global_zero and name == "last.ckpt" and self.saved_step != trainer.global_step:
                files.rotate(self.folder, self.keep)
            trainer.strategy.save_checkpoint(checkpoint, self.folder / name)
            trainer.strategy.barrier("checkpoint")
        if name == "last.ckpt":
            self.saved_step = trainer.global_step

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Adds what rebuilds the model and what the run goes on from."""
        # the trainer's own loop state counts micro-batches; the optimizer step is all that is needed
        checkpoint.pop("loops", None)
        checkpoint |= self.identity
        checkpoint["rng"] = gathered(files.random_state())
        checkpoint["position"] = {**self.position, "step": trainer.global_step}
        checkpoint["counters"] = {
            name: getattr(pl_module, name) for name in ("trained_tokens", "read_tokens", "skipped_steps")
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets the trainer to the optimizer step of the checkpoint, as if a run of one epoch had come that far."""
        step = checkpoint["position"]["step"]
        loop = trainer.fit_loop.epoch_loop
        loop.automatic_optimization.optim_progress.optimizer.step.total.ready = step
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        loop._batches_that_stepped = step
        for name, value in checkpoint["counters"].items():
            setattr(pl_module, name, value)
        if len(checkpoint["rng"]) == trainer.world_size:
            self.random = checkpoint["rng"]
        self.saved_step = step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Puts the random generators where they were, after everything that may have drawn from them."""
        if self.random is not None:
            files.restore_random_state(self.random[trainer.global_rank])
            self.random = None
