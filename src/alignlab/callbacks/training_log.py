"""Losses, learning rate, gradient norm, speed and model FLOPs utilization of training, every few optimizer steps."""

import logging
import math
import re
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from alignlab.callbacks.stopwatch import Stopwatch
from alignlab.models.config import flops_per_token
from alignlab.tasks.task import TaskModule

log = logging.getLogger(__name__)

# Dense bf16 tensor-core peak in FLOP/s, with sums in fp32, from the vendors' data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "A100": 312e12,
    "A800": 312e12,
    "H800": 989e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "RTX A6000": 155e12,
    "H20": 148e12,
    "A30": 165e12,
    "A10G": 70e12,
    "A10": 125e12,
    "V100": 125e12,
    "T4": 65e12,
    "RTX 5090": 209.5e12,
    "RTX 4090": 165e12,
    "RTX 4080": 97.5e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
    "MI250X": 383e12,
}


def peak_flops(device: str) -> float | None:
    """Peak of a GPU by its name, in FLOP/s; None where it is not known, as for a CPU or a laptop's slower namesake."""
    if "Laptop" in device:
        return None
    names = sorted(PEAK_FLOPS, key=len, reverse=True)  # a longer name is meant before its prefix
    return next((PEAK_FLOPS[name] for name in names if re.search(rf"\b{name}\b", device)), None)


class TrainingLog(Callback):
    """Logs every `every` optimizer steps under `train/`, and keeps the latest values for others to show.

    Logs every `eval_every` too, so that a validation is told beside the loss of its own step.
    """

    def __init__(self, *, every: int, eval_every: int, stopwatch: Stopwatch, row_tokens: int) -> None:
        self.every = every
        self.eval_every = eval_every
        self.stopwatch = stopwatch
        self.row_tokens = row_tokens
        self.latest: dict[str, float] = {}
        self.parameters = 0
        self.learning_rate = 0.0
        self.mark = (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Speed counts from here."""
        assert isinstance(pl_module, TaskModule)
        self.parameters = pl_module.model.parameter_count()
        self.mark = (self.stopwatch.seconds, pl_module.read_tokens)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Notes the rate that this step is made with: afterwards the groups hold the next one's."""
        self.learning_rate = max(group["lr"] for group in optimizer.param_groups)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs where it is due; the first step's loss is compared with what fresh weights must give."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        step = trainer.global_step
        is_due = step % self.every == 0 or step % self.eval_every == 0 or step in (1, trainer.max_steps)
        if not is_due:
            return
        assert isinstance(pl_module, TaskModule)
        losses = pl_module.step_losses()
        if step == 1:
            self._compare_start(losses["loss"], pl_module.expected_start)
        seconds, tokens = self.stopwatch.seconds, pl_module.read_tokens
        speed = (tokens - self.mark[1]) * trainer.world_size / max(seconds - self.mark[0], 1e-9)
        self.mark = (seconds, tokens)
        self.latest = {f"train/{name}": value for name, value in losses.items()}
        self.latest |= {f"train/{name}": value for name, value in pl_module.measures.items()}
        self.latest |= {
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": pl_module.gradient_norm,
            "train/tokens_per_second": speed,
        }
        if pl_module.skipped_steps:
            self.latest["train/skipped_steps"] = pl_module.skipped_steps
        if (peak := _peak(trainer)) is not None:
            flops = flops_per_token(pl_module.model.config, self.parameters, self.row_tokens)
            self.latest["train/mfu"] = flops * speed / (peak * trainer.world_size)
        if trainer.logger is not None:
            trainer.logger.log_metrics(self.latest, step=step)

    def _compare_start(self, loss: float, expected: float | None) -> None:
        if expected is not None and not math.isclose(loss, expected, rel_tol=0.1, abs_tol=0.1):
            log.warning("the first loss is %.3f; fresh weights give about %.3f: check the data", loss, expected)


def _peak(trainer: L.Trainer) -> float | None:
    device = trainer.strategy.root_device
    return peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
