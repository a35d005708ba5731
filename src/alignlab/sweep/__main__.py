"""`python -m alignlab.sweep FOLDER`: the job of a sweep whose configuration is frozen in FOLDER, as a process."""

import fcntl
import os
import signal
import sys
import threading
import time
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from alignlab.errors import guard
from alignlab.sweep.job import attempt

LOOK = 1.0  # seconds


def main(folder: Path, parent: int) -> None:
    """Trains, and writes down what came of it; stops as after SIGTERM when `parent`, which started it, is gone.

    Waits while another process trains there: one that a killed sweep left, or that stands in a queue twice.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's word to the whole job that time is up; our parent answers
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    with guard(), open(folder / ".hydra" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
        assert isinstance(config, DictConfig)
        attempt(config, folder, [str(one) for one in OmegaConf.load(folder / ".hydra" / "overrides.yaml")])


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(Path(sys.argv[1]), os.getppid())
