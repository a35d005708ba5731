"""What the sets that are made from installed packages share: shares of splits, the cache, hashes.

A set says how it makes its rows and what keeps some of them together; each group goes whole to one split, told by a
hash of it. Knows nothing about where rows come from. Imports no torch.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

from alignlab.rows.installed import index_of, kept, kept_rows, versions_of
from alignlab.rows.kinds import Kind
from alignlab.types import BelowOne

Split = Literal["train", "val", "test"]


def number_of(text: str) -> int:
    """A number below 2**64 that differs from text to text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


@dataclass(frozen=True, kw_only=True)
class Embedded(ABC):
    """Rows of one kind that installed packages hold; `val` and `test` are shares of the groups."""

    val: BelowOne = 0.1
    test: BelowOne = 0.1

    name: ClassVar[str]
    kind: ClassVar[Kind]
    packages: ClassVar[tuple[str, ...]]
    rules: ClassVar[int]  # raised when the rows change, so that caches are made again
    source_language: ClassVar[str] = "en"
    target_language: ClassVar[str] = "en"

    def __post_init__(self) -> None:
        if not 0 <= self.val + self.test < 1:
            raise ValueError(f"data.val={self.val} and data.test={self.test} leave nothing to train on")

    @abstractmethod
    def made(self) -> Iterator[tuple[str, dict]]:
        """(what keeps rows together, row in canonical columns) of all rows."""

    def has(self, split: Split) -> bool:
        """Whether the split has a share."""
        return split == "train" or getattr(self, split) > 0

    def read(self, split: Split, kind: str | None = None, *, targets: bool = True) -> Iterator[dict]:
        """The rows of a split, made first where the cache has none. Raises ValueError for another kind."""
        if kind not in (None, self.kind):
            raise ValueError(
                f"data={self.name} holds rows of {self.kind}; this task needs rows of {kind}: see data=files"
            )
        return ({**row, "row": number} for number, row in enumerate(kept_rows(self._folder, split)))

    def fingerprint(self, split: Split) -> str:
        """Content hash of the split's rows."""
        return index_of(self._folder)["hashes"][split]

    def facts(self) -> dict[str, str | int | float]:
        """Versions of all that was read, and content hashes."""
        index = index_of(self._folder)
        facts: dict[str, str | int | float] = {"data": self.name}
        facts |= {f"data/{split}/hash": value for split, value in index["hashes"].items()}
        return facts | {f"data/version/{name}": version for name, version in index["versions"].items()}

    @cached_property
    def _folder(self) -> Path:
        versions = versions_of(self.packages)

        def splits() -> tuple[dict[str, list[dict]], dict]:
            rows: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
            for group, row in self.made():
                rows[self._side(group)].append(row)
            return rows, {"versions": versions}

        return kept(self.name, [self.rules, versions, asdict(self)], splits)

    def _side(self, group: str) -> Split:
        place = number_of(f"{self.name} {group}") / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"
