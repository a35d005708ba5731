"""Tables of counts, such as a confusion matrix, as figures in TensorBoard; and the texts that a task shows."""

from typing import TYPE_CHECKING

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from alignlab.tasks.task import Table, TaskModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 40  # classes at most whose names and counts are written out


class Figures(Callback):
    """Draws each table of the task, and writes its texts, after a validation and after the test."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the tables of this validation."""
        self._draw(trainer, pl_module, "val/")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the tables of the test."""
        self._draw(trainer, pl_module, "test/")

    def _draw(self, trainer: L.Trainer, task: L.LightningModule, stage: str) -> None:
        assert isinstance(task, TaskModule)
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, table in task.tables.items():
                    if name.startswith(stage):
                        logger.experiment.add_figure(name, drawn(table), trainer.global_step)
                for name, text in task.texts.items():
                    if name.startswith((stage, "train/")):
                        logger.experiment.add_text(name, text, trainer.global_step)


def drawn(table: Table) -> "Figure":
    """A heat map of shares of each truth, with the counts written in."""
    from matplotlib.figure import Figure  # 0.3 s, when something is drawn

    shares = table.counts / table.counts.sum(dim=1, keepdim=True).clamp(min=1)
    classes = len(table.names)
    side = min(4 + 0.35 * classes, 16)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="truth")
    if classes <= NAMED:
        axes.set_xticks(range(classes), table.names, rotation=90)
        axes.set_yticks(range(classes), table.names)
        for row in range(classes):
            for column in range(classes):
                shade = "white" if shares[row, column] > 0.5 else "black"
                text = f"{int(table.counts[row, column])}"
                axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=7)
    return figure
