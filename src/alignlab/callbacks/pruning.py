"""A trial of a search ends at a validation where earlier trials were better at the same step."""

import math

import lightning as L
import optuna
from lightning.pytorch.callbacks import Callback

from alignlab.callbacks.rhythm import Pruned


class Pruning(Callback):
    """Reports the monitored metric of each validation to the study, which the first rank alone opens."""

    def __init__(self, *, storage: str, study: str, trial: int, monitor: str, random_trials: int) -> None:
        self.storage = storage
        self.study = study
        self.trial = trial
        self.monitor = monitor
        self.random_trials = random_trials

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raises Pruned on all ranks; not after the last step, which costs nothing more."""
        if trainer.global_step == 0 or trainer.global_step >= trainer.max_steps:
            return
        is_behind = False
        if trainer.is_global_zero and not getattr(pl_module, "is_cut_short", False):
            is_behind = self.is_behind(trainer.global_step, float(trainer.callback_metrics[self.monitor]))
        if trainer.strategy.broadcast(is_behind):
            raise Pruned(f"pruned at step {trainer.global_step}: earlier trials were better there")

    def is_behind(self, step: int, value: float) -> bool:
        """Tells the study `value` at `step`, and asks it; NaN is behind everything."""
        if math.isnan(value):
            return True
        # a trial prunes only beside enough others that have ended
        pruner = optuna.pruners.MedianPruner(n_startup_trials=self.random_trials)
        study = optuna.load_study(study_name=self.study, storage=self.storage, pruner=pruner)
        found = next(one for one in study.get_trials(deepcopy=False) if one.number == self.trial)
        trial = optuna.trial.Trial(study, found._trial_id)
        if step not in found.intermediate_values:  # it is there where a stopped trial validates again
            trial.report(value, step)
        return trial.should_prune()
