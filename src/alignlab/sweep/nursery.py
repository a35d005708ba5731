"""Jobs as forks of one process that has done the imports of all of them, which are most of the time of a short job.

`python -m alignlab.sweep.nursery` reads orders on standard input, a line each, and tells on standard output what was
forked and how it ended. It ends with its input; its jobs, whose parent is gone, then stop too. It is for jobs on CPUs:
a GPU that a parent has looked at is lost to its forks. Torch-free but for that process.
"""

import atexit
import contextlib
import functools
import gc
import itertools
import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

WAIT = 0.02  # seconds between looks at orders and at jobs that have ended
FOR_JOBS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)  # which the forking process leaves to them


@dataclass
class Forked:
    """A job, as far as a pool asks for what subprocess.Popen has; until it is forked a signal calls it off."""

    number: int
    parent: subprocess.Popen  # that forks it
    nursery: "Nursery"
    pid: int | None = None
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, -N after signal N; None while it runs."""
        if self.code is None:
            self.nursery.listen()
        if self.code is None and self.parent.poll() is not None and not (self.pid is not None and _lives(self.pid)):
            # it could not even import; or nobody was there to see how the job ended, and its outcome may tell
            self.code = self.parent.returncode if self.pid is None else -signal.SIGKILL
        return self.code

    def send_signal(self, number: int) -> None:
        """Signal `number` for the job, unless it has ended. Reads nothing, for a signal's handler may call it."""
        if self.code is None and self.pid is None:
            self.code = -number
        elif self.code is None and self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


@dataclass
class Nursery:
    """Orders jobs. The process that forks them is started with the first, and again where somebody ended it."""

    process: subprocess.Popen | None = None
    rest: bytes = b""  # of what it told, after the last whole line
    jobs: dict[int, Forked] = field(default_factory=dict)  # that have not ended, by number
    numbers: itertools.count = field(default_factory=itertools.count)

    def start(self, folder: Path, environment: dict[str, str]) -> Forked:
        """The job that is frozen in `folder`, with `environment` upon what was ours when the first job was ordered.

        What it prints goes to terminal.log there. Returns at once.
        """
        if self.process is None or self.process.poll() is not None:
            self._begin(folder)
        assert self.process is not None
        assert self.process.stdin is not None
        job = Forked(next(self.numbers), self.process, self)
        self.jobs[job.number] = job
        order = json.dumps({"number": job.number, "folder": str(folder), "environment": environment})
        with contextlib.suppress(BrokenPipeError):  # it has ended, as `poll` will find
            self.process.stdin.write(f"{order}\n".encode())
        return job

    def listen(self) -> None:
        """Hears what there is to hear: which jobs were forked, and which have ended."""
        while self.process is not None and self.process.stdout is not None:
            if not select.select([self.process.stdout], [], [], 0)[0]:
                return
            if not (told := os.read(self.process.stdout.fileno(), 65536)):
                return
            *lines, self.rest = (self.rest + told).split(b"\n")
            for line in lines:
                self._hear(**json.loads(line))

    def close(self) -> None:
        """Ends the process, and with it the jobs that still run."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process, self.rest = None, b""

    def _begin(self, folder: Path) -> None:
        self.listen()  # to the last words of one that has ended
        self.close()
        # one thread: a process that forks had better have no other
        own = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with open(folder / "terminal.log", "ab") as file:  # where a job that cannot begin is looked for
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alignlab.sweep.nursery"],
                env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, bufsize=0,
                start_new_session=True,  # Ctrl-C reaches the jobs through the pool, once
            )  # fmt: skip

    def _hear(self, number: int, pid: int, code: int | None) -> None:
        job = self.jobs[number]
        if code is not None:
            job.code = code if job.code is None else job.code
            del self.jobs[number]
        elif job.code is None:
            job.pid = pid
        else:  # called off meanwhile
            os.kill(pid, signal.SIGKILL)


@functools.cache
def nursery() -> Nursery:
    """The one of this process; it ends with it."""
    made = Nursery()
    atexit.register(made.close)
    return made


def _lives(pid: int) -> bool:
    """Whether the process runs; one that has ended and that nobody has asked for does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def serve() -> None:
    """Forks for every order until the input ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, FOR_JOBS)
    replies = os.dup(1)
    os.dup2(2, 1)  # nobody else tells

    import torch.utils.tensorboard  # noqa: F401  for those that follow

    import alignlab.run  # noqa: F401  the same

    gc.freeze()  # no job looks through what was imported, nor copies its pages
    running: dict[int, int] = {}  # pid -> number
    rest = b""
    while True:
        if select.select([0], [], [], WAIT if running else None)[0]:
            if not (told := os.read(0, 65536)):
                return
            *orders, rest = (rest + told).split(b"\n")
            for order in map(json.loads, orders):
                parent, number = os.getpid(), order.pop("number")
                if (pid := os.fork()) == 0:
                    os.close(replies)
                    become(**order, parent=parent)
                running[pid] = number
                _tell(replies, number=number, pid=pid, code=None)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            _tell(replies, number=running.pop(pid), pid=pid, code=os.waitstatus_to_exitcode(status))


def _tell(replies: int, **event: int | None) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is there to hear; the end of the input comes next
        os.write(replies, f"{json.dumps(event)}\n".encode())


def become(folder: str, environment: dict[str, str], parent: int) -> NoReturn:
    """Goes on as `python -m alignlab.sweep FOLDER`."""
    import torch

    from alignlab.sweep.__main__ import main

    os.setsid()
    os.environ.update(environment)
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))  # which was read when torch was imported
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for stream, path, mode in ((0, os.devnull, os.O_RDONLY), (1, f"{folder}/terminal.log", flags)):
        os.dup2(os.open(path, mode), stream)
    os.dup2(1, 2)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_JOBS)
    sys.argv[:] = ["alignlab.sweep", folder]
    main(Path(folder), parent)
    sys.exit(0)


if __name__ == "__main__":
    serve()
