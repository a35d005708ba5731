"""Jobs as forks of one process that has done the imports of all of them, which are most of the time of a short job.

`python -m alignlab.sweep.nursery` reads orders on standard input, a line each, and tells on standard output what was
forked and how it ended. It ends with its input; its jobs, whose parent is gone, then stop too. It is for jobs on CPUs:
a GPU that a parent has looked at is lost to its forks. Torch-free but for that process.
"""

import atexit
import functools
import gc
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


@dataclass
class Forked:
    """A job, as far as a pool asks for what subprocess.Popen has."""

    pid: int
    nursery: "Nursery"

    def poll(self) -> int | None:
        """Its exit code, -N after signal N; None while it runs."""
        return self.nursery.code_of(self.pid)

    def send_signal(self, number: int) -> None:
        """Signal `number` for the job, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Ends it at once."""
        self.send_signal(signal.SIGKILL)


@dataclass
class Nursery:
    """Starts jobs. The process that forks them is started with the first, and again where somebody ended it."""

    process: subprocess.Popen | None = None
    rest: bytes = b""  # of what it told, after the last whole line
    codes: dict[int, int] = field(default_factory=dict)  # of jobs that have ended

    def start(self, folder: Path, environment: dict[str, str]) -> Forked:
        """The job that is frozen in `folder`, with `environment` upon ours; its words go to terminal.log there."""
        if self.process is None or self.process.poll() is not None:
            self.close()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alignlab.sweep.nursery"],
                env={**os.environ, **environment}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                start_new_session=True,  # Ctrl-C reaches the jobs through the pool, once
            )  # fmt: skip
        assert self.process.stdin is not None
        order = json.dumps({"folder": str(folder), "environment": environment})
        try:
            self.process.stdin.write(f"{order}\n".encode())
            while (pid := self._listen(None)) is None and self.process.poll() is None:
                pass
        except BrokenPipeError:
            pid = None
        if pid is None:  # it could not even import; it has said why
            self.codes[pid := -self.process.pid] = self.process.wait()
        return Forked(pid, self)

    def code_of(self, pid: int) -> int | None:
        """The exit code of a job; None while it runs."""
        self._listen(0)
        if pid not in self.codes and (self.process is None or self.process.poll() is not None) and not _lives(pid):
            self.codes[pid] = -signal.SIGKILL  # nobody was there to see how it ended; its outcome may tell
        return self.codes.get(pid)

    def close(self) -> None:
        """Ends the process, and with it the jobs that still run."""
        if self.process is not None:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        self.process, self.rest = None, b""

    def _listen(self, seconds: float | None) -> int | None:
        """Hears what it tells within that time, or until it tells something; the pid of a job it has forked, if any."""
        assert self.process is not None
        assert self.process.stdout is not None
        forked = None
        while select.select([self.process.stdout], [], [], seconds)[0]:
            if not (told := os.read(self.process.stdout.fileno(), 65536)):
                break
            *lines, self.rest = (self.rest + told).split(b"\n")
            for line in lines:
                event = json.loads(line)
                if event["code"] is None:
                    forked = event["pid"]
                else:
                    self.codes[event["pid"]] = event["code"]
            seconds = 0
        return forked


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
    import torch.utils.tensorboard  # noqa: F401  for those that follow

    import alignlab.run  # noqa: F401  the same

    gc.freeze()  # no job looks through what was imported, nor copies its pages
    replies = os.dup(1)
    os.dup2(2, 1)  # nobody else tells
    running, rest = 0, b""
    while True:
        if select.select([0], [], [], WAIT if running else None)[0]:
            if not (told := os.read(0, 65536)):
                return
            *orders, rest = (rest + told).split(b"\n")
            for order in orders:
                parent = os.getpid()
                if (pid := os.fork()) == 0:
                    os.close(replies)
                    become(**json.loads(order), parent=parent)
                running += 1
                os.write(replies, f"{json.dumps({'pid': pid, 'code': None})}\n".encode())
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            running -= 1
            ended = {"pid": pid, "code": os.waitstatus_to_exitcode(status)}
            os.write(replies, f"{json.dumps(ended)}\n".encode())


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
    sys.argv[:] = ["alignlab.sweep", folder]
    main(Path(folder), parent)
    sys.exit(0)


if __name__ == "__main__":
    serve()
