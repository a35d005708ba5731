"""Time spent on training itself: from fetching the first batch to the end of the last step, less what interrupts it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds of training; stands still inside `paused()`, which nests."""

    def __init__(self) -> None:
        self.before = 0.0
        self.started: float | None = None
        self.depth = 0

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self.before + (time.perf_counter() - self.started if self.started is not None else 0.0)

    def start(self) -> None:
        """Starts or goes on."""
        if self.started is None and self.depth == 0:
            self.started = time.perf_counter()

    def stop(self) -> None:
        """Stands still until `start`."""
        self.before, self.started = self.seconds, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what happens inside."""
        was_running = self.started is not None
        self.stop()
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1
            if was_running:
                self.start()
