"""What a run has reached: the last and the best validation, in memory, in metrics.json and in the logger."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from alignlab.callbacks.stopwatch import Stopwatch
from alignlab.whole import whole

log = logging.getLogger(__name__)
UNMEASURED = "this validation has no %s: raise task.seconds, or lower datamodule.generate_rows"


class Record(Callback):
    """Keeps the flat table that becomes metrics.json, and knows which validation was the best by `monitor`."""

    def __init__(self, *, folder: Path, monitor: str, lower_is_better: bool, stopwatch: Stopwatch) -> None:
        self.path = folder / "metrics.json"
        self.monitor = monitor
        self.lower_is_better = lower_is_better
        self.stopwatch = stopwatch
        self.values: dict[str, float | int | str] = {}
        self.best_step: int | None = None
        self.validated_step: int | None = None
        self.is_improved = False

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validation is not training time."""
        self.stopwatch.stop()
        self.stopwatch.depth += 1
        for name in [name for name in trainer.callback_metrics if name.startswith("val/")]:
            del trainer.callback_metrics[name]  # the trainer keeps those of the validation before

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing yet: the task logs its results after this."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the results over, and says whether they are the best so far."""
        self.stopwatch.depth -= 1
        results = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self.monitor not in results and getattr(pl_module, "is_cut_short", False):
            log.warning(UNMEASURED, self.monitor)
            results[self.monitor] = math.nan
            trainer.callback_metrics[self.monitor] = torch.tensor(math.nan)
        if self.monitor not in results:
            known = ", ".join(sorted(results))
            raise ValueError(f"monitor is {self.monitor!r}, which this task does not measure; accepted: {known}")
        self.values |= results
        if trainer.global_step == 0:
            self.values |= {f"start/{name}": value for name, value in results.items()}
        self.validated_step = trainer.global_step
        self.is_improved = self._is_better(results[self.monitor])
        if self.is_improved:
            self.best_step = trainer.global_step
            self.values |= {f"best/{name}": value for name, value in results.items()}
            self.values["best/step"] = self.best_step
        if trainer.logger is not None:
            charts = {name: value for name, value in results.items() if "/f1/" not in name}  # not one for each class
            trainer.logger.log_metrics(charts, step=trainer.global_step)
        self.write(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training time starts with the first batch."""
        self.stopwatch.start()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Training time goes on after a validation."""
        self.stopwatch.start()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Training time ends with the last step."""
        self.stopwatch.stop()

    def write(self, trainer: L.Trainer) -> None:
        """Writes metrics.json beside and renames it, so that a reader never sees half of it."""
        if not trainer.is_global_zero:
            return
        finite = {name: _plain(value) for name, value in self.values.items()}
        with whole(self.path) as path:
            path.write_text(json.dumps(finite, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know; plain types."""
        return {
            "values": dict(self.values),
            "best_step": self.best_step,
            "validated_step": self.validated_step,
            "seconds": self.stopwatch.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.values = dict(state_dict["values"])
        self.best_step = state_dict["best_step"]
        self.validated_step = state_dict["validated_step"]
        self.stopwatch.before = state_dict["seconds"]

    def _is_better(self, value: float) -> bool:
        """By the monitored metric; of two that are equal, as shares of a few rows often are, the later one wins."""
        before = self.values.get(f"best/{self.monitor}")
        if before is None or math.isnan(float(before)):
            return True
        return value <= float(before) if self.lower_is_better else value >= float(before)


def _plain(value: float | int | str) -> float | int | str | None:
    """JSON has no NaN and no infinity: null stands for them."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
