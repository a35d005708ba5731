"""What a run shows beside curves: lengths and a first example of the data, confusion, calibration, texts of a task."""

from typing import TYPE_CHECKING

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from alignlab.callbacks.samples import plain
from alignlab.data.encoded import LEFT, RIGHT
from alignlab.data.module import TextData
from alignlab.data.splits import EncodedData
from alignlab.tasks.confusion import Confusion
from alignlab.tasks.task import TaskModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 40  # classes at most whose names and counts are written out


class Figures(Callback):
    """Draws what the task measured, and writes its texts, after a validation and after the test.

    Before the first step it shows the data: the lengths of the training examples, and the first of them with what is
    learned of it in bold.
    """

    def __init__(self, *, data: TextData) -> None:
        self.rows = data

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Shows the data."""
        if trainer.global_step or not trainer.is_global_zero:
            return
        if not isinstance(self.rows, EncodedData) or (train := self.rows.splits.get("train")) is None:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_figure("data/lengths", lengths_drawn(train.lengths), 0)
                logger.experiment.add_text("data/example", marked(train.sample(self.rows.tokenizer)), 0)

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
                for name, bins in task.bins.items():
                    if name.startswith(stage):
                        logger.experiment.add_figure(name, calibration_drawn(bins), trainer.global_step)
                for name, text in task.texts.items():
                    if name.startswith((stage, "train/")):
                        logger.experiment.add_text(name, text, trainer.global_step)


def drawn(table: Confusion) -> "Figure":
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
                axes.text(column, row, text, ha="center", va="center", color=shade, fontsize=9)
    return figure


def calibration_drawn(bins: Tensor) -> "Figure":
    """Hits over confidence for each of the bins (15, 3), whose examples the area of a dot shows."""
    from matplotlib.figure import Figure

    examples, confidence, hits = bins[bins[:, 0] > 0].T
    figure = Figure(figsize=(4, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#1c2330", linewidth=1)
    axes.scatter(confidence / examples, hits / examples, s=20 + 300 * examples / examples.sum(), color="#2f6fde")
    error = float((confidence - hits).abs().sum() / examples.sum())
    axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1))
    axes.set_title(f"{int(examples.sum())} examples, off by {error:.3f} on average", loc="left", fontsize=9)
    return figure


def lengths_drawn(lengths: np.ndarray) -> "Figure":
    """How many of the training examples have how many tokens."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(lengths, bins=min(40, max(1, int(lengths.max() - lengths.min()) + 1)), color="#2f6fde")
    axes.set(xlabel="tokens", ylabel="examples")
    told = f"{len(lengths):,} examples, mean {lengths.mean():.1f}, longest {lengths.max()}"
    axes.set_title(told, loc="left", fontsize=9)
    return figure


def marked(sample: str) -> str:
    """An example whose learned parts stand between brackets, as Markdown that shows them bold."""
    parts = [part.split(RIGHT) for part in sample.split(LEFT)]
    first, rest = parts[0][0], parts[1:]
    return plain(first) + "".join(f"<strong>{plain(learned)}</strong>{plain(after)}" for learned, after in rest)
