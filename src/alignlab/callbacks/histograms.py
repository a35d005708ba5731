"""How weights and gradients are spread, as histograms in TensorBoard: on request, for they take time and disk.

Unusual: the gradient is the one before clipping. It knows nothing of tasks beyond their weights.
"""

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from alignlab.types import PositiveInt


class Histograms(Callback):
    """Writes weights/NAME and gradients/NAME of every matrix that learns, each `every` optimizer steps."""

    def __init__(self, *, every: PositiveInt = 100) -> None:
        self.every = every

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Writes them where they are due: at the first step too."""
        step = trainer.global_step
        if step % self.every or not trainer.is_global_zero:
            return
        boards = [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for name, weight in pl_module.named_parameters():
            if not weight.requires_grad or weight.ndim < 2 or isinstance(weight, DTensor):
                continue
            for board in boards:
                short = name.removeprefix("model.")
                board.add_histogram(f"weights/{short}", weight.detach().float(), step)
                if weight.grad is not None:
                    board.add_histogram(f"gradients/{short}", weight.grad.float(), step)
