"""The trainer of a run: its horizon, its callbacks and how precision and strategy are chosen for the machine.

Every argument of Lightning's Trainer passes through; those that count something else than optimizer steps, or would
break exact resuming, are translated here. It knows nothing of tasks.
"""

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from alignlab import checkpoint as files
from alignlab.build import Parts, node
from alignlab.callbacks.agreement import Agreement
from alignlab.callbacks.checkpoints import Checkpoints
from alignlab.callbacks.figures import Figures
from alignlab.callbacks.patience import Patience
from alignlab.callbacks.predictions import Predictions
from alignlab.callbacks.progress import ProgressLine
from alignlab.callbacks.record import Record
from alignlab.callbacks.rhythm import Rhythm
from alignlab.callbacks.stopwatch import Stopwatch
from alignlab.callbacks.training_log import TrainingLog
from alignlab.callbacks.unfreezing import Unfreezing
from alignlab.errors import UserError
from alignlab.metrics import lower_is_better
from alignlab.sweep.settings import NAME, Search, settings_of, storage

log = logging.getLogger(__name__)

# arguments that this module or the data acts on, and does not pass on as they are
OURS = ("_target_", "max_time", "max_epochs", "limit_train_batches", "overfit_batches", "enable_progress_bar", "logger")


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """Those that the run itself asks afterwards."""

    record: Record
    checkpoints: Checkpoints
    all: list[Callback]


def devices_of(config: DictConfig) -> int:
    """Devices of this machine that train, one process each."""
    devices = config.trainer.get("devices", 1)
    if str(devices) in ("auto", "-1"):
        return 1 if config.trainer.get("accelerator") == "cpu" else max(1, torch.cuda.device_count())
    if isinstance(devices, str):
        named = [part for part in devices.split(",") if part.strip()]
        return len(named) if "," in devices else int(devices) if devices.isdecimal() else 1
    return max(1, devices) if isinstance(devices, int) else len(devices)


def ranks_of(config: DictConfig) -> int:
    """Processes that train together."""
    return devices_of(config) * int(config.trainer.get("num_nodes", 1))


def horizon_of(config: DictConfig, parts: Parts, ranks: int, command_line: list[str]) -> int:
    """Optimizer steps of the whole run. Steps or epochs on the `command_line` replace the other one of a recipe."""
    steps, epochs = config.trainer.get("max_steps"), config.trainer.get("max_epochs")
    typed = {override.lstrip("+").partition("=")[0] for override in command_line}
    if "trainer.max_steps" in typed and "trainer.max_epochs" not in typed:
        epochs = None
    if "trainer.max_epochs" in typed and "trainer.max_steps" not in typed:
        steps = None
    if epochs is not None and epochs > 0:
        of_epochs = epochs * parts.data.steps_per_epoch(ranks)
        return min(of_epochs, steps) if steps is not None and steps > 0 else of_epochs
    if steps is None or steps < 0:
        raise ValueError("neither trainer.max_steps nor trainer.max_epochs is set; expected one: the schedule needs it")
    return steps


def make_callbacks(config: DictConfig, folder: Path, parts: Parts, position: dict[str, Any]) -> Callbacks:
    """What every run does, what the configuration adds, and early stopping and averaging where asked for."""
    horizon = position["horizon"]
    every = config.eval_every or max(1, -(-horizon // parts.task.validations))
    stopwatch = Stopwatch()
    record = Record(
        folder=folder, monitor=config.monitor, lower_is_better=lower_is_better(config.monitor), stopwatch=stopwatch
    )
    checkpoints = Checkpoints(
        folder=folder / "checkpoints",
        every=config.checkpoint_every or every,
        keep=config.keep_checkpoints,
        record=record,
        identity={
            "config": OmegaConf.to_container(config, resolve=True),
            "model": parts.task.model.config.to_dict(),
            "tokenizer": parts.task.tokenizer.state(),
            "base": parts.base,
            "lora_scale": parts.lora_scale,
            "found": parts.data.found(),
        },
        position=position,
    )
    seconds = _seconds(config.trainer.get("max_time"))
    training_log = TrainingLog(
        every=config.trainer.get("log_every_n_steps") or 50,
        eval_every=every,
        stopwatch=stopwatch,
        row_tokens=_row_tokens(parts),
    )
    all_of_them: list[Callback] = [
        Agreement(settings=OmegaConf.to_container(config, resolve=False)),
        training_log,
        record,
        Rhythm(every=every, seconds=seconds, checkpoints=checkpoints, is_first_measured=config.eval_first),
    ]
    extras = [extra for extra in (config.callbacks or {}).values() if extra is not None]  # null leaves one out
    all_of_them += [instantiate(extra, _convert_="all") for extra in extras]
    if config.ema is not None:
        all_of_them.insert(0, EMAWeightAveraging(decay=config.ema))
    if (unfreeze_every := config.tuning.get("unfreeze_every")) is not None:
        all_of_them.append(Unfreezing(every=unfreeze_every, learning=parts.report.learning))
    all_of_them += [Predictions(path=folder / "predictions.jsonl", data=parts.data), Figures(data=parts.data)]
    if config.patience is not None or config.stop_at is not None:
        all_of_them.append(_early_stopping(config, mode="min" if record.lower_is_better else "max"))
    all_of_them += _pruning(config)
    if config.trainer.get("enable_progress_bar", True):
        all_of_them.append(ProgressLine(training_log=training_log, console=Console(stderr=True)))
    return Callbacks(record=record, checkpoints=checkpoints, all=[*all_of_them, checkpoints])


def _early_stopping(config: DictConfig, *, mode: str) -> Patience:
    """What ends the training after `patience` validations without a better monitored metric, or one good enough."""
    patience = sys.maxsize if config.patience is None else config.patience
    return Patience(config.monitor, patience=patience, stopping_threshold=config.stop_at, mode=mode, check_finite=False)


def _pruning(config: DictConfig) -> list[Callback]:
    """For a trial of a search, what reports to its study."""
    settings = settings_of(config)
    if not isinstance(settings, Search) or settings.trial is None or settings.study is None or not settings.prunes:
        return []
    from alignlab.callbacks.pruning import Pruning  # optuna is needed here only

    return [
        Pruning(
            storage=storage(settings.study),
            study=NAME,
            trial=settings.trial,
            monitor=config.monitor,
            random_trials=settings.random_trials,
        )
    ]


def _row_tokens(parts: Parts) -> int:
    return getattr(parts.data, "max_length", None) or parts.task.model.config.context


def _seconds(value: Any) -> float | None:
    """`max_time` in seconds: "DD:HH:MM:SS" or the keywords of a timedelta."""
    if value is None:
        return None
    try:
        if isinstance(value, str):
            days, hours, minutes, seconds = (int(part) for part in value.split(":"))
            return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
        return timedelta(**OmegaConf.to_container(value)).total_seconds()  # type: ignore[arg-type]
    except (TypeError, ValueError, AttributeError):
        raise ValueError(
            f"trainer.max_time is {value}; expected days:hours:minutes:seconds such as 00:01:30:00, or {{hours: 1.5}}"
        ) from None


def make_trainer(
    config: DictConfig, folder: Path, callbacks: list[Callback], horizon: int, purge_step: int
) -> L.Trainer:
    """Lightning's trainer for `horizon` optimizer steps; the logger drops what it holds from `purge_step` on."""
    plain: dict[str, Any] = OmegaConf.to_container(config.trainer, resolve=True)  # type: ignore[assignment]
    arguments = {name: value for name, value in plain.items() if name not in OURS}
    arguments["precision"] = resolve_precision(arguments.get("precision"), arguments.get("accelerator", "auto"))
    arguments["strategy"] = resolve_strategy(arguments.get("strategy", "auto"), ranks_of(config))
    if str(arguments["precision"]) in ("16", "16-mixed") and arguments.get("accelerator") == "cpu":
        log.warning("trainer.precision is %s, which CPUs have not; computing in bf16-mixed", arguments["precision"])
        arguments["precision"] = "bf16-mixed"
    loggers: Any = False
    if config.logger and config.trainer.get("logger", True) is not False:
        found: dict[str, Any] = {"save_dir": str(folder)}
        if purge_step > 1 and "TensorBoard" in config.logger["_target_"]:
            found["purge_step"] = purge_step
        elif purge_step > 1:  # the table of a run that goes on would be written over
            found["version"] = f"{config.logger.get('version', 'log')}-from-step-{purge_step}"
        loggers = node(config.logger, **found)
    return _trainer(
        {
            "num_sanity_val_steps": 0,
            "profiler": Untimed(),
            **arguments,
            "max_steps": horizon,
            "max_epochs": -1,
            "val_check_interval": sys.maxsize,
            "check_val_every_n_epoch": None,
            "logger": loggers,
            "callbacks": callbacks,
            "plugins": [files.CheckpointFiles()],
            "default_root_dir": str(folder),
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "use_distributed_sampler": False,
        }
    )


def _trainer(arguments: dict[str, Any]) -> L.Trainer:
    """Raises UserError with the first line of what the trainer says to its arguments."""
    try:
        return L.Trainer(**arguments)
    except (ValueError, TypeError, MisconfigurationException) as error:
        raise UserError(f"trainer: {str(error).splitlines()[0]}") from error


class Untimed(PassThroughProfiler):
    """No profiler. Lightning's own none makes a generator for each hook of each callback, 80 in a step."""

    _nothing = nullcontext()

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]  # as it is used
        """A context that does nothing, the same each time."""
        return self._nothing


def resolve_precision(asked: str | int | None, accelerator: str) -> Any:
    """None is bf16-mixed where the device multiplies bf16 natively, 16-mixed on older GPUs, else 32-true."""
    if asked is not None:
        return asked
    if accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if accelerator == "mps" or (accelerator in ("gpu", "auto") and torch.backends.mps.is_available()):
        return "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


def resolve_strategy(asked: Any, ranks: int) -> Any:
    """`fsdp` is FSDP2, whose checkpoints are one file; on one device both it and ddp are plain training.

    Several devices without a strategy are ddp.
    """
    if ranks == 1 and asked in ("ddp", "fsdp"):
        return "auto"
    if ranks > 1 and asked == "auto":
        return "ddp"
    if asked == "fsdp":
        strategy: Strategy = ModelParallelStrategy(
            data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False
        )
        return strategy
    return asked


def require_possible(config: DictConfig) -> None:
    """Raises ValueError for arguments of the trainer that mean nothing, or not on this machine; nothing is read yet."""
    _seconds(config.trainer.get("max_time"))
    if (norm := config.trainer.get("gradient_clip_val")) is not None and norm < 0:
        raise ValueError(f"trainer.gradient_clip_val is {norm}; expected a number >= 0, or null: do not clip")
    if not isinstance(micro := config.trainer.get("accumulate_grad_batches", 1), int) or micro < 1:
        raise ValueError(f"trainer.accumulate_grad_batches is {micro}; expected a whole number, at least 1")
    _require_device(config)


def _require_device(config: DictConfig) -> None:
    """Raises ValueError where the trainer asks for a GPU that this machine does not have."""
    accelerator = config.trainer.get("accelerator", "auto")
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and not torch.backends.mps.is_available():
        raise ValueError("trainer.accelerator is gpu, but this machine has no GPU that torch can use; use trainer=cpu")
    devices = config.trainer.get("devices", 1)
    if accelerator in ("gpu", "cuda") and isinstance(devices, int) and devices > max(1, torch.cuda.device_count()):
        raise ValueError(f"trainer.devices is {devices}; this machine has {torch.cuda.device_count()} GPU")
