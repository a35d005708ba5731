"""Ends a training that no longer gets better; a validation that could not be measured says nothing about that."""

import math

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class Patience(EarlyStopping):
    """Lightning's early stopping, which passes over validations whose texts were not written in time."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compares the monitored metric, where there is one."""
        is_unmeasured = math.isnan(float(trainer.callback_metrics.get(self.monitor, 0.0)))
        if is_unmeasured and getattr(pl_module, "is_cut_short", False):
            return
        super().on_validation_end(trainer, pl_module)
