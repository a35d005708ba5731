"""Processes side by side, no more than so many at once; a signal stops them all, a second one ends them at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

WAIT = 0.1  # seconds between looks at the processes


@dataclass
class Pool:
    """Runs `command(folder)` for each folder; what it prints goes to terminal.log there.

    `started` and `ended` are told of each, the latter with its exit code.
    """

    size: int
    command: Callable[[Path], list[str]]
    environment: Callable[[int], dict[str, str]]
    started: Callable[[Path], None]
    ended: Callable[[Path, int], None]
    running: dict[int, tuple[Path, subprocess.Popen]] = field(default_factory=dict)
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
        with open(folder / "terminal.log", "ab") as file:
            process = subprocess.Popen(
                self.command(folder),
                env={**os.environ, **self.environment(place)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches it through us, once
            )
        self.running[place] = (folder, process)

    def _collect(self) -> None:
        for place, (folder, process) in list(self.running.items()):
            if (code := process.poll()) is not None:
                del self.running[place]
                self.ended(folder, code)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        for _, process in self.running.values():
            process.send_signal(signal.SIGKILL if self.received is not None else number)
        self.received = number
