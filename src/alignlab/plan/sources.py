"""What a plan reads of the data: all where it is small, else the first rows, which are said to be only those.

It knows nothing of tokens.
"""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from alignlab.data.module import Rows

CHEAP = 8_000_000  # characters that are read and counted


class FirstRows:
    """The first training rows of `rows`, of about CHEAP characters, in the place of all of them."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        # of a part, more than the share that may be skipped may be bad
        self.skipped_share = 1.0 if getattr(rows, "skipped_share", 0.0) else 0.0
        self.source_language = getattr(rows, "source_language", "auto")
        self.target_language = getattr(rows, "target_language", "auto")

    def has(self, split: str) -> bool:
        """The training split alone."""
        return split == "train"

    def read(self, split: str, kind: str, *, targets: bool = True) -> Iterator[dict]:
        """Those rows."""
        return _first(self.rows.read(split, kind, targets=targets))

    def fingerprint(self, split: str) -> str:
        """Other than that of all rows, so that nothing made of a part is taken for the whole."""
        return f"first {CHEAP} characters of {self.rows.fingerprint(split)}"

    def facts(self) -> dict[str, str | int | float]:
        """None: they would not be those of the run."""
        return {}


def is_cheap(rows: Rows, kind: str) -> bool:
    """Whether the training rows are few enough to be counted while somebody waits."""
    sizes = accumulate(_characters(row) for row in rows.read("train", kind))
    return not any(size > CHEAP for size in sizes)


def _first(rows: Iterator[dict]) -> Iterator[dict]:
    size = 0
    for row in rows:
        yield row
        size += _characters(row)
        if size > CHEAP:
            return


def _characters(value: Any) -> int:
    """Characters of all texts in a row."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_characters, value.values()))
    return sum(map(_characters, value)) if isinstance(value, list) else 0
