"""Jobs side by side, no more than so many at once; a signal stops them all, a second one ends them at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

WAIT = 0.1  # seconds between looks at the processes


class Process(Protocol):
    """What a pool asks of a job that runs, as of subprocess.Popen."""

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""

    def send_signal(self, number: int, /) -> None:
        """Signal `number`, unless it has ended."""

    def kill(self) -> None:
        """Ends it at once."""


def own_process(command: list[str], folder: Path, environment: dict[str, str]) -> Process:
    """`command`, with `environment` upon ours; what it prints goes to terminal.log in `folder`."""
    with open(folder / "terminal.log", "ab") as file:
        return subprocess.Popen(
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )


@dataclass
class Pool:
    """Runs the job of each folder: `start(folder, environment)` gives a process of its own.

    `started` and `ended` are told of each, the latter with its exit code.
    """

    size: int
    start: Callable[[Path, dict[str, str]], Process]
    environment: Callable[[int], dict[str, str]]
    started: Callable[[Path], None]
    ended: Callable[[Path, int], None]
    running: dict[int, tuple[Path, Process]] = field(default_factory=dict)
    received: int | None = None

    def run(self, folders: list[Path]) -> None:
        """Returns when all have ended; exits with 128 + N after signal N, when what was running has stopped."""
        waiting = list(folders)
        before: dict[int, Any] = {
            number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            while self.running or (waiting and self.received is None):
                while waiting and self.received is None and len(self.running) < self.size:
                    self._start(waiting.pop(0))
                self._collect()
                time.sleep(WAIT)
        finally:
            for _, process in self.running.values():
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if self.received is not None:
            raise SystemExit(128 + self.received)

    def _start(self, folder: Path) -> None:
        place = next(number for number in range(self.size) if number not in self.running)
        self.started(folder)
        process = self.start(folder, self.environment(place))
        self.running[place] = (folder, process)
        if self.received is not None:  # while it started
            process.send_signal(self.received)

    def _collect(self) -> None:
        for place, (folder, process) in list(self.running.items()):
            if (code := process.poll()) is not None:
                del self.running[place]
                self.ended(folder, code)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for _, process in self.running.values():
            process.send_signal(signal.SIGKILL if self.received is not None else number)
        self.received = number
