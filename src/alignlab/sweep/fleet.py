"""Jobs of a sweep on the machines of a Ray cluster, all of which see the folder of the sweep. Torch-free."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from alignlab.errors import UserError
from alignlab.sweep import outcome
from alignlab.sweep.cluster import Submitted
from alignlab.sweep.settings import Ray

WAIT = 0.5  # seconds between looks at signals
SAVING = 90.0  # seconds at most for jobs to write a checkpoint after a signal


def run_job(folder: str, environment: dict[str, str]) -> int:
    """What a machine of the cluster runs; returns the exit code of the job in `folder`."""
    return Submitted(folder=folder, environment=environment)()


@dataclass
class Fleet:
    """Gives jobs to Ray; `started` and `ended` are told of each, the latter with how it ended."""

    settings: Ray
    started: Callable[[Path], None]
    ended: Callable[[Path, str], None]
    received: int | None = None

    def run(self, folders: list[Path]) -> None:
        """Returns when all have ended; after signal N stops them and exits with 128 + N."""
        if not folders:
            return
        import ray

        connect(self.settings.address)
        before: dict[int, Any] = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        running: dict[Any, Path] = {}
        try:
            self._run(folders, running)
            if self.received is not None:
                self._stop(running)
        finally:
            ray.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _run(self, folders: list[Path], running: dict[Any, Path]) -> None:
        import ray

        of_each = ray.remote(num_cpus=self.settings.threads, num_gpus=self.settings.gpus, max_retries=0)(run_job)
        environment = {name: str(self.settings.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        waiting = list(folders)
        while (waiting or running) and self.received is None:
            while waiting and len(running) < self.settings.jobs:
                folder = waiting.pop(0)
                self.started(folder)
                running[of_each.remote(str(folder.resolve()), environment)] = folder
            for reference in ray.wait(list(running), timeout=WAIT)[0]:
                self.ended(running.pop(reference), _how(reference))

    def _stop(self, running: dict[Any, Path]) -> None:
        """Tells the jobs to stop, and waits until they have saved: Ray kills what runs when it shuts down.

        By a file: under load `ray.cancel`, asked every ten seconds, once did not reach a job within SAVING.
        """
        for folder in running.values():
            outcome.tell_to_stop(folder)
        end = time.monotonic() + SAVING
        while time.monotonic() < end and any(_is_running(folder) for folder in running.values()):
            time.sleep(WAIT)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number


def connect(address: str | None) -> None:
    """Finds the cluster at `address`, or starts one here; raises UserError where there is none."""
    import ray

    try:
        if address is None:
            ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
    except ConnectionError as error:
        raise UserError(
            f"sweep.address is {address}; no Ray cluster answers there\n"
            "start one with: ray start --head, or leave sweep.address out to use this machine alone"
        ) from error


def _how(reference: Any) -> str:
    import ray

    try:
        return f"exit code {ray.get(reference)}"
    except ray.exceptions.RayError as error:
        return f"lost by Ray: {type(error).__name__}"


def _is_running(folder: Path) -> bool:
    told = outcome.read(folder)
    return told is not None and told.status == "running"
