"""Rows in memory, for tests that need no file."""

from collections.abc import Iterator
from typing import Any


class FakeRows:
    """Splits as lists of canonical rows."""

    def __init__(
        self, *, skipped_share: float = 0.0, languages: tuple[str, str] = ("auto", "auto"), **splits: list
    ) -> None:
        self.splits = splits
        self.skipped_share = skipped_share
        self.source_language, self.target_language = languages

    def has(self, split: str) -> bool:
        return split in self.splits

    def read(self, split: str, kind: str, *, targets: bool = True) -> Iterator[dict[str, Any]]:
        return ({**row, "row": number} for number, row in enumerate(self.splits[split]))

    def fingerprint(self, split: str) -> str:
        return str(hash(str(self.splits[split])))

    def facts(self) -> dict[str, str | int | float]:
        return {}
