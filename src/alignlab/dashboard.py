"""What TensorBoard shows beside curves: which of them share a chart, and runs compared by their options.

Unusual: no list of all options is written (TensorBoard's "experiment" summary), for it would be taken from one run and
hide what only others have. TensorBoard then gathers the options and the metrics of all runs by itself.
"""

import math
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# what runs are compared by, beside what their command lines name
ALWAYS = (
    "task", "data", "model.layers", "model.width", "tokenizer", "tuning", "optim", "optim.lr", "datamodule.batch_size",
    "trainer.max_steps", "seed",
)  # fmt: skip
# what no result depends on
NEVER = (
    "hydra.", "sweep", "resume", "logger", "callbacks", "trust", "eval_every", "checkpoint_every", "keep_", "test",
    "trainer.log_every", "trainer.enable",
)  # fmt: skip

Value = bool | int | float | str


def lay_out(trainer: L.Trainer, monitor: str) -> None:
    """Puts training and validation on one chart, for the loss and for the monitored metric."""
    names = dict.fromkeys(["loss", monitor.partition("/")[2]])
    charts = {name: ["Multiline", [f"^train/{name}$", f"^val/{name}$"]] for name in names}
    for logger in _boards(trainer):
        logger.experiment.add_custom_scalars({"training and validation": charts})


def compare(trainer: L.Trainer, config: DictConfig, command_line: list[str], values: dict[str, Any]) -> None:
    """Logs what the run has reached, with its options, for the HPARAMS tab; to be called once, at the end."""
    from torch.utils.tensorboard.summary import hparams

    # few, for each is a chart of one dot; the last values of all others stand in the tab by themselves
    wanted = {
        f"best/{config.monitor}",
        "train/seconds",
        *(name for name in values if name.startswith("test/") and "/f1/" not in name),
    }
    reached = {name: float(value) for name, value in values.items() if name in wanted and _is_number(value)}
    for logger in _boards(trainer):
        _, start, end = hparams(hyperparameters(config, command_line), reached)
        for summary in (start, end):
            logger.experiment._get_file_writer().add_summary(summary, trainer.global_step)
        for name, value in reached.items():
            logger.experiment.add_scalar(name, value, trainer.global_step)
        logger.experiment.flush()


def hyperparameters(config: DictConfig, command_line: list[str]) -> dict[str, Value]:
    """By name: what runs are always compared by, and what this one's command line named."""
    named = [override.lstrip("+").partition("=")[0] for override in command_line]
    found = {name: _value(config, name) for name in (*ALWAYS, *named) if not name.startswith(NEVER)}
    return {name: value for name, value in found.items() if value is not None}


def _value(config: DictConfig, name: str) -> Value | None:
    try:
        value = OmegaConf.select(config, name)
    except OmegaConfBaseException:
        return None
    if isinstance(value, DictConfig):
        return str(value.get("_target_", "")).rpartition(".")[-1] or None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _boards(trainer: L.Trainer) -> list[TensorBoardLogger]:
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
