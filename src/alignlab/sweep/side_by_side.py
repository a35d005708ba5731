"""The jobs of a sweep as child processes with frozen configurations. Torch-free; knows nothing of Hydra's launchers."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from alignlab.launch import freeze
from alignlab.sweep import outcome
from alignlab.sweep.job import metric, refuse_others, say, swept
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.pool import Pool
from alignlab.sweep.settings import Parallel


@dataclass(frozen=True)
class Job:
    """What is trained where."""

    config: DictConfig
    folder: Path
    overrides: list[str]


def run_side_by_side(jobs: list[Job], settings: Parallel) -> list[float | None]:
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
        outcome.write(job.folder, Outcome(status="waiting"))
        missing.append(job)
    by_folder = {job.folder: job for job in missing}
    pool = Pool(
        size=settings.jobs or 1,
        command=lambda folder: [sys.executable, "-m", "alignlab.sweep", str(folder)],
        environment=settings.environment,
        started=lambda folder: say(f"job {folder.name}: {' '.join(swept(folder, by_folder[folder].overrides))}"),
        ended=lambda folder, code: _ended(by_folder[folder], code),
    )
    pool.run([job.folder for job in missing])
    return [metric(job.config, job.folder) for job in jobs]


def _ended(job: Job, code: int) -> None:
    told = outcome.read(job.folder)
    if told is None or told.status in ("waiting", "running"):  # it could not write down how it ended
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        told = Outcome(status="failed", error=f"{how}; see {job.folder / 'terminal.log'}")
        outcome.write(job.folder, told)
    value = metric(job.config, job.folder)
    reached = "" if value is None else f", best {job.config.monitor} {value:.5g}"
    say(f"job {job.folder.name} {told.status}{reached}" + (f": {told.error}" if told.error else ""))
