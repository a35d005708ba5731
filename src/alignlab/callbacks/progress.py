"""What a person sees while a run trains: one line that moves on a terminal, one line per validation everywhere."""

import logging
import math
import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from alignlab.callbacks.training_log import TrainingLog

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.2


class ProgressLine(Callback):
    """Step, loss, learning rate, tokens per second and time left; validation results as lines of the log."""

    def __init__(self, *, training_log: TrainingLog, console: Console) -> None:
        self.training_log = training_log
        self.console = console
        self.bar: Progress | None = None
        self.started = 0.0
        self.first_step = 0
        self.shown = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the line, on a terminal only."""
        self.started, self.first_step = time.monotonic(), trainer.global_step
        if not (trainer.is_global_zero and self.console.is_terminal):
            return
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[values]}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self.bar.start()
        self.bar.add_task("training", total=trainer.max_steps, completed=trainer.global_step, values="")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Moves the line a few times a second."""
        now = time.monotonic()
        if self.bar is None or now - self.shown < REFRESH_SECONDS:
            return
        self.shown = now
        done = trainer.global_step - self.first_step
        left = (trainer.max_steps - trainer.global_step) * (now - self.started) / max(done, 1)
        latest = self.training_log.latest
        values = (
            f"loss {latest.get('train/loss', math.nan):.3f}  lr {latest.get('train/learning_rate', math.nan):.1e}  "
            f"{latest.get('train/tokens_per_second', 0.0):,.0f} tokens/s  {clock(left)} left"
        )
        self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, values=values)
        self.bar.refresh()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """One line with the results."""
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        latest = {name: v for name, v in self.training_log.latest.items() if name == "train/loss"}
        measured = trainer.callback_metrics.items()
        # those of single classes, such as val/f1/Sports, stand in a table of the logger and in metrics.json
        latest |= {name: float(v) for name, v in measured if name.startswith("val/") and name.count("/") == 1}
        text = "  ".join(f"{name} {_short(value)}" for name, value in latest.items())
        log.info("step %d of %d  %s  (%s)", trainer.global_step, trainer.max_steps, text, clock(self._elapsed()))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Removes the line."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Removes the line before an error is shown."""
        self._close()

    def _elapsed(self) -> float:
        return time.monotonic() - self.started if self.started else 0.0

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
            sys.stderr.flush()


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(value: float) -> str:
    return f"{value:z.4f}" if abs(value) < 100 else f"{value:,.1f}"  # z: no -0.0000
