"""The jobs of a sweep as processes with frozen configurations, here or in a queue. Torch-free; knows no Hydra."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from alignlab.launch import freeze
from alignlab.sweep import outcome
from alignlab.sweep.cluster import Queue
from alignlab.sweep.fleet import Fleet
from alignlab.sweep.job import metric, refuse_others, say, swept
from alignlab.sweep.nursery import nursery
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.pool import Pool, Process, own_process
from alignlab.sweep.settings import Parallel, Ray, Slurm


@dataclass(frozen=True)
class Job:
    """What is trained where."""

    config: DictConfig
    folder: Path
    overrides: list[str]


def run_side_by_side(jobs: list[Job], settings: Parallel | Slurm | Ray) -> list[float | None]:
    """Runs what is not done yet; returns the monitored metric of each. Exits with 128 + N after signal N.

    Raises UserError where a folder holds the run of other overrides, before anything starts.
    """
    for job in jobs:
        refuse_others(job.folder, job.overrides)
    missing = []
    for job in jobs:
        before = outcome.read(job.folder)
        if before is not None and before.status in outcome.ENDED:
            say(f"job {job.folder.name}: {before.status} before")
            continue
        freeze(job.config, job.folder, job.overrides)
        outcome.let_go_on(job.folder)
        outcome.write(job.folder, Outcome(status="waiting"))
        missing.append(job)
    by_folder = {job.folder: job for job in missing}

    def started(folder: Path) -> None:
        say(f"job {folder.name}: {' '.join(swept(folder, by_folder[folder].overrides))}")

    def ended(folder: Path, how: str, *, is_stopped: bool = False) -> None:
        _ended(by_folder[folder], how, is_stopped=is_stopped)

    runner: Pool | Queue | Fleet
    if isinstance(settings, Slurm):
        runner = Queue(settings=settings, started=started, ended=ended)
    elif isinstance(settings, Ray):
        runner = Fleet(settings=settings, started=started, ended=ended)
    else:
        runner = Pool(
            size=settings.jobs or 1,
            start=nursery().start if all(map(_is_forked, jobs)) else _as_process,
            environment=settings.environment,
            started=started,
            ended=lambda folder, code: ended(folder, _how(code), is_stopped=-code in (signal.SIGTERM, signal.SIGINT)),
        )
    runner.run(list(by_folder))
    return [metric(job.config, job.folder) for job in jobs]


def _is_forked(job: Job) -> bool:
    """Whether the job may share a process that has done its imports: on Linux, one process on a CPU."""
    plain = {"accelerator": "cpu", "devices": 1}
    return sys.platform == "linux" and all(job.config.trainer.get(name) == value for name, value in plain.items())


def _as_process(folder: Path, environment: dict[str, str]) -> Process:
    return own_process([sys.executable, "-m", "alignlab.sweep", str(folder)], folder, environment)


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _ended(job: Job, how: str, *, is_stopped: bool) -> None:
    told = outcome.read(job.folder)
    if told is None or told.status in ("waiting", "running"):  # it could not write down how it ended
        told = Outcome(status="failed", error=f"{how}; see {job.folder / 'terminal.log'}")
        if is_stopped:  # before it had begun to listen
            told = Outcome(status="stopped")
        outcome.write(job.folder, told)
    value = metric(job.config, job.folder)
    reached = "" if value is None else f", best {job.config.monitor} {value:.5g}"
    say(f"job {job.folder.name} {told.status}{reached}" + (f": {told.error}" if told.error else ""))
