"""Jobs of a sweep in Slurm's queue, through submitit: what is sent there, and what the sweep hears of it. Torch-free.

Unusual: a job is one task on one node, which starts its ranks by itself as it does on any machine; so Slurm's
variables, by which Lightning would look for ranks, are kept from it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from alignlab.errors import UserError
from alignlab.sweep import outcome
from alignlab.sweep.job import say
from alignlab.sweep.settings import Slurm

if TYPE_CHECKING:
    import submitit

WAIT = 0.5  # seconds between looks at the jobs
SAVING = 90.0  # seconds at most to stop after a step and write a checkpoint
NOTICE = 120  # seconds from Slurm's word that time is up to the end
OF_THE_QUEUE = ("SLURM_", "SLURMD_", "SUBMITIT_")


class Submitted:
    """What a node runs: the job of `folder` as a process of its own, with the variables in `environment`."""

    def __init__(self, *, folder: str, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.process: subprocess.Popen | None = None  # where it runs, not where it is sent from

    def __call__(self) -> int:
        """Runs the job; returns its exit code."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(OF_THE_QUEUE)}
        with open(Path(self.folder) / "terminal.log", "ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alignlab.sweep", self.folder],
                env=kept | self.environment, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            # not `wait`, which holds a lock that `checkpoint` may need
            while self.process.poll() is None and not outcome.is_to_stop(Path(self.folder)):
                time.sleep(WAIT)
        finally:
            if self.process.poll() is None:  # it is to stop, or was interrupted
                self.process.terminate()
                self._wait()
        return self.process.returncode

    def _wait(self) -> None:
        """Until the job has ended, which may be asked for more than once meanwhile."""
        assert self.process is not None
        while self.process.poll() is None:
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(WAIT)

    def checkpoint(self) -> "submitit.helpers.DelayedSubmission":
        """Lets the job save; returns what goes back to the queue. Called when time is up, inside a signal handler."""
        import submitit

        if self.process is not None:
            self.process.terminate()
            end = time.monotonic() + SAVING
            while time.monotonic() < end and not _has_ended(self.process.pid):
                time.sleep(0.1)
        again = Submitted(folder=self.folder, environment=self.environment)
        return submitit.helpers.DelayedSubmission(again)


def _has_ended(pid: int) -> bool:
    """Whether the child has ended, which is left for `poll` to notice."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # it was noticed
        return True


@dataclass
class Queue:
    """Sends jobs as one array; `started` and `ended` are told of each, the latter with the state it was left in."""

    settings: Slurm
    started: Callable[[Path], None]
    ended: Callable[[Path, str], None]
    received: int | None = None

    def run(self, folders: list[Path]) -> None:
        """Returns when all have ended; after signal N cancels them and exits with 128 + N."""
        if not folders:
            return
        before: dict[int, Any] = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        running = dict(zip(folders, self._sent(folders), strict=True))
        try:
            while running and self.received is None:
                for folder, job in list(running.items()):
                    if job.done():
                        del running[folder]
                        self.ended(folder, f"{job.state} in the queue")
                time.sleep(WAIT)
        finally:
            for job in running.values():
                job.cancel(check=False)
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _sent(self, folders: list[Path]) -> "list[submitit.Job[int]]":
        executor = executor_of(self.settings, folders[0].parent / ".submitit")
        environment = {name: str(self.settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        for folder in folders:
            self.started(folder)
        jobs = executor.submit_array([Submitted(folder=str(one.resolve()), environment=environment) for one in folders])
        say(f"sent to {self.settings.cluster}: {', '.join(job.job_id for job in jobs)}")
        return jobs

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def executor_of(settings: Slurm, folder: Path) -> "submitit.AutoExecutor":
    """What sends jobs as `settings` say; raises UserError where there is no Slurm."""
    import submitit

    restarts = {f"{settings.cluster}_max_num_timeout": settings.restarts}
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=settings.cluster, **restarts)
    except RuntimeError as error:
        raise UserError(
            "sweep=slurm finds no srun on this machine\nstart it where sbatch works, or on this machine: sweep=parallel"
        ) from error
    executor.update_parameters(
        name="alignlab", nodes=1, tasks_per_node=1, timeout_min=settings.minutes, cpus_per_task=settings.threads,
        gpus_per_node=settings.gpus, stderr_to_stdout=True, slurm_array_parallelism=settings.jobs,
        slurm_signal_delay_s=NOTICE, slurm_additional_parameters=dict(settings.sbatch or {}),
    )  # fmt: skip
    if settings.memory_gb is not None:
        executor.update_parameters(mem_gb=settings.memory_gb)
    if settings.partition is not None:
        executor.update_parameters(slurm_partition=settings.partition)
    return executor
