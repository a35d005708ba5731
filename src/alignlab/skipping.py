"""Bad rows: told at once, or left out and counted, up to a share of all. Knows nothing of what makes a row bad."""

import logging
from collections.abc import Callable
from functools import cache

log = logging.getLogger(__name__)

TOLERATED = 0.01  # share of rows that on_bad_row=skip may lose


@cache
def _warn(text: str) -> None:
    """Once: files are read for their labels, for each split and for their hashes."""
    log.warning(text)


class BadRows:
    """Those of one reading, of which `share` may be left out: 0 none, 1 all. `what` are the rows read."""

    def __init__(self, share: float, what: str = "rows") -> None:
        self.share, self.what = share, what
        self.count, self.first = 0, ""

    def add(self, complaint: Callable[[], str], error: ValueError) -> None:
        """Counts one and tells the first; raises ValueError with the complaint where none may be left out."""
        if not self.share:
            raise ValueError(f"{complaint()} (data.on_bad_row=skip leaves such rows out)") from error
        self.count += 1
        if self.count == 1 and self.share < 1:
            self.first = complaint()
            _warn(f"skipping bad rows; the first: {self.first}")

    def close(self, rows: int) -> None:
        """Tells how many of all `rows` were left out; raises ValueError where they are too many."""
        if self.count > self.share * rows:
            raise ValueError(
                f"{self.count} of {rows} {self.what} are bad, more than the {100 * self.share:.0f} % that may be "
                f"skipped; first {self.first}"
            )
        if self.count and self.share < 1:
            _warn(f"skipped {self.count} of {rows} {self.what}")
