"""One run in one folder, from a frozen configuration to its summary: build, fit, test, record.

Every process that trains comes through here: the command itself, a rank of several, a stage of a recipe; the last two
as `python -m alignlab.run FOLDER`. It knows nothing of how the configuration was composed.
"""

import json
import logging
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.utils import instantiate
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from alignlab import checkpoint as files
from alignlab.build import Parts, build, keeps_narrow
from alignlab.callbacks.rhythm import Pruned, Stopped
from alignlab.dashboard import compare, lay_out
from alignlab.folders import STAGES
from alignlab.memory import keep_freed_memory
from alignlab.origin import Origin, origin, origin_of
from alignlab.summary import resuming, show_summary
from alignlab.sweep.outcome import PRUNED_CODE
from alignlab.tasks.reference import fingerprint
from alignlab.trainer import Callbacks, horizon_of, make_callbacks, make_trainer, ranks_of, require_possible

log = logging.getLogger(__name__)


def execute(config: DictConfig, folder: Path, *, command_line: list[str] | None = None) -> dict[str, Any]:
    """Trains as `config` says, in `folder`; goes on from the newest good checkpoint that is there. Returns the metrics.

    Raises ValueError for what a user can mend, Stopped after a signal, NotFinite where training diverged.
    """
    require_possible(config)
    instantiate(config.tuning, _convert_="all").require()
    if config.trainer.get("accelerator") == "cpu":
        keep_freed_memory()
    newest = files.newest_good(folder / "checkpoints")
    checkpoint = files.read(newest) if newest is not None else None
    if newest is not None and int(os.environ.get("RANK", "0")) == 0:
        files.set_aside(newest)
    start: Origin | None = None
    if checkpoint is not None:
        start = origin_of(checkpoint, str(newest), resumes=True, as_stored=keeps_narrow(config))
    elif config.init_from:
        start = origin(config.init_from, as_stored=keeps_narrow(config))
    parts = build(config, start, command_line=command_line, resumes=checkpoint is not None)
    if checkpoint is not None and not config.init_from:
        parts.task.is_fresh = True
    if (monitor := parts.task.monitored(config.monitor)) != config.monitor:
        log.info("monitor is %s: these data have no %s", monitor, config.monitor)
        config.monitor = monitor
        _freeze_again(config, folder)
    ranks = ranks_of(config)
    horizon = horizon_of(config, parts, ranks, command_line or [])
    position = _position(config, parts, ranks)
    if checkpoint is not None:
        _compare(position, checkpoint["position"], config.resume_with)
        log.info("going on from %s at step %d of %d", newest, checkpoint["position"]["step"], horizon)
        if (before := checkpoint["position"]["horizon"]) != horizon:
            log.info("the horizon changes from %d to %d steps, and the learning-rate schedule with it", before, horizon)
    first_step = checkpoint["position"]["step"] if checkpoint is not None else 0
    del start
    callbacks = make_callbacks(config, folder, parts, {**position, "horizon": horizon})
    trainer = make_trainer(config, folder, callbacks.all, horizon, purge_step=first_step + 1)
    _describe(config, parts, trainer, horizon)
    is_ended = first_step >= horizon or (checkpoint is not None and _has_ended_early(trainer, checkpoint, horizon))
    is_trained = checkpoint is not None and is_ended and _is_validated(callbacks, checkpoint)
    if is_trained and _is_measured(config, parts, folder):
        log.info("nothing left to do: %s has done its %d steps", folder, first_step)
        return _written(folder)
    if config.compile:
        parts.task.model.compile_parts()
    del checkpoint
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
            logger.experiment.add_text("config", f"```\n{OmegaConf.to_yaml(config)}```", first_step)
    if first_step == 0:
        lay_out(trainer, config.monitor)
    os.environ.pop("PL_GLOBAL_SEED", None)  # with which Lightning's strategies would seed every rank alike once more
    torch.manual_seed(config.seed + 1_000_003 * trainer.global_rank)  # each rank its own dropout
    if (device := trainer.strategy.root_device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        trainer.fit(parts.task, datamodule=parts.data, ckpt_path=newest)
    except SIGTERMException:  # inside a validation; it is a SystemExit that says all is well
        raise Stopped(signal.SIGTERM) from None
    except Pruned:
        compare(trainer, config, command_line or [], callbacks.record.values)
        raise
    _finish(config, parts, trainer, callbacks)
    compare(trainer, config, command_line or [], callbacks.record.values)
    show_summary(folder, callbacks.record.values, kind=parts.data.kind, horizon=horizon)
    return dict(callbacks.record.values)


def _freeze_again(config: DictConfig, folder: Path) -> None:
    """What reads the folder later, such as a sweep's table, finds what the data changed."""
    path = folder / ".hydra" / "config.yaml"
    if path.is_file() and int(os.environ.get("RANK", "0")) == 0:
        path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")


def execute_until_stopped(config: DictConfig, folder: Path, *, command_line: list[str] | None = None) -> None:
    """`execute`; exits with 128 + its number after a signal, as a shell expects, and with PRUNED_CODE when pruned."""
    try:
        execute(config, folder, command_line=command_line)
    except Stopped as stopped:
        is_stage = folder.parent.name == STAGES and (folder.parent.parent / ".hydra").is_dir()
        log.info("%s; go on with: python train.py %s", stopped, resuming(folder.parent.parent if is_stage else folder))
        raise SystemExit(stopped.exit_code) from None
    except Pruned as pruned:
        log.info("%s", pruned)
        raise SystemExit(PRUNED_CODE) from None


def _position(config: DictConfig, parts: Parts, ranks: int) -> dict[str, Any]:
    """What a run must agree with to go on exactly."""
    position = {
        "data": parts.fingerprint,
        "tokenizer": parts.task.tokenizer.fingerprint,
        "batch_size": parts.data.batch_size * parts.data.accumulate * ranks,
    }
    if parts.task.reference:
        (reference,) = parts.task.reference
        position["reference"] = fingerprint(reference)
    return position


def _compare(now: dict[str, Any], before: dict[str, Any], allowed: Any) -> None:
    differing = [name for name in now if now[name] != before.get(name, now[name]) and name not in (allowed or [])]
    if differing:
        told = "; ".join(f"{name} was {before[name]}, is {now[name]}" for name in differing)
        raise ValueError(
            f"the run cannot go on exactly: {told}. Restore it, or allow it: resume_with=[{','.join(differing)}]"
        )


def _describe(config: DictConfig, parts: Parts, trainer: L.Trainer, horizon: int) -> None:
    model = parts.task.model
    versions = {name.rpartition("/")[2]: value for name, value in parts.facts.items() if "/version/" in name}
    for name, value in parts.facts.items():
        if "/version/" not in name:
            log.info("data  %s: %s", name, f"{value:,}" if isinstance(value, int) else value)
    if versions:
        log.info("data  versions: %s", ", ".join(f"{name} {value}" for name, value in versions.items()))
    per_epoch = parts.data.steps_per_epoch(trainer.world_size)
    window = parts.data.batch_size * parts.data.accumulate * trainer.world_size
    if (train := parts.data.examples("train")) is not None and len(train) < window:
        log.warning(
            "a step takes %d examples and there are %d: they repeat within it; lower datamodule.batch_size",
            window,
            len(train),
        )
    log.info(
        "model  %s parameters; vocabulary %d, context %d",
        f"{model.parameter_count():,}",
        model.config.vocabulary,
        model.config.context,
    )
    log.info("tuning  %s", parts.report)
    log.info(
        "training  %d steps, %d an epoch; %s on %d x %s",
        horizon,
        per_epoch,
        trainer.precision,
        trainer.world_size,
        trainer.strategy.root_device.type,
    )


def _is_measured(config: DictConfig, parts: Parts, folder: Path) -> bool:
    """Whether metrics.json holds what comes after the last step; a run may be killed before that."""
    values = _written(folder)
    tests = config.test and parts.data.examples("test") is not None
    return "train/seconds" in values and (not tests or any(name.startswith("test/") for name in values))


def _has_ended_early(trainer: L.Trainer, checkpoint: dict[str, Any], horizon: int) -> bool:
    """Whether `patience` or `stop_at` ended the run; one that is asked for more steps goes on."""
    early = trainer.early_stopping_callback
    if early is None or checkpoint["position"]["horizon"] != horizon:
        return False
    reason = checkpoint["callbacks"].get(early.state_key, {}).get("stopping_reason")
    return reason not in (None, EarlyStoppingReason.NOT_STOPPED.value)


def _written(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _is_validated(callbacks: Callbacks, checkpoint: dict[str, Any]) -> bool:
    state = checkpoint["callbacks"].get(callbacks.record.state_key)
    if state is None or state["validated_step"] != checkpoint["position"]["step"]:
        return False
    callbacks.record.load_state_dict(state)
    return True


def _finish(config: DictConfig, parts: Parts, trainer: L.Trainer, callbacks: Callbacks) -> None:
    """What comes after the last step: counters into the record, and the test split on the best weights."""
    record, task = callbacks.record, parts.task
    early = trainer.early_stopping_callback
    if early is not None and early.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
        told = (early.stopping_reason_message or "").removesuffix(" Signaling Trainer to stop.")
        log.info("training  ended early, at step %d: %s", trainer.global_step, told)
    seconds = record.stopwatch.seconds
    record.values |= {
        "train/seconds": seconds,
        "train/tokens_per_second": task.read_tokens * trainer.world_size / max(seconds, 1e-9),
        "trained_tokens": int(task.trained_tokens),
        "skipped_steps": task.skipped_steps,
        "parameters": task.model.parameter_count(),
        "trained_parameters": parts.report.learned_parameters,
        "step": trainer.global_step,
    }
    if (device := trainer.strategy.root_device).type == "cuda":
        record.values["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    record.write(trainer)
    best = callbacks.checkpoints.folder / "best.ckpt"
    if not best.is_file() and trainer.is_global_zero:  # without a validation split the last is the best there is
        best.write_bytes((callbacks.checkpoints.folder / "last.ckpt").read_bytes())
    if config.test and parts.data.examples("test") is not None:
        task.load_state_dict(task.completed(files.read(best)["state_dict"]))
        trainer.test(task, datamodule=parts.data, verbose=False)
        # not what `test` returns: that is only what went to the logger
        measured = trainer.callback_metrics.items()
        record.values |= {name: float(value) for name, value in measured if name.startswith("test/")}
        record.write(trainer)
