"""`data=files`: rows of the user's own files, in canonical columns, with every mistake told by file, row and field.

Unusual: nothing is held whole; validation can be cut from the training files, text by its last characters, other kinds
by a hash of what rows share; two plain-text files with a source-target task are read line by line side by side.
Knows nothing about tokens or tasks. Imports no torch.
"""

import difflib
import functools
import glob
import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from alignlab.rows import formats
from alignlab.rows.broken import BadRecord
from alignlab.rows.kinds import COLUMNS, BadRow, Kind, canonical, columns_of, group_key
from alignlab.skipping import TOLERATED, BadRows
from alignlab.types import BelowOne

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
Paths = str | list[str] | None
_FIRST_COLUMN: dict[Kind, str] = {"labels": "text", "response": "source", "chat": "instruction", "prompts": "prompt"}


@dataclass(frozen=True, kw_only=True)
class Files:
    """Rows of files: each split a path, a glob or a list of them.

    `columns` maps a canonical column to the file's own name, or its number from 0 (a .csv or .tsv then has no header
    line). Without `val`, the share `holdout` of the training files is held out.
    """

    train: Paths = None
    val: Paths = None
    test: Paths = None
    columns: dict[str, str | int] = field(default_factory=dict)
    holdout: BelowOne = 0.1
    seed: int = 0
    on_bad_row: Literal["raise", "skip"] = "raise"
    encoding_errors: Literal["raise", "replace"] = "raise"
    source_language: str = "auto"
    target_language: str = "auto"

    def __post_init__(self) -> None:
        for name in self.columns:
            if name not in COLUMNS:
                raise ValueError(f"data.columns.{name} is no canonical column; {_closest(name, COLUMNS)}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"data.holdout is {self.holdout}; expected a share from 0 to below 1")

    def check(self) -> None:
        """Raises ValueError for a path that leads to no file, so that a mistake is told before anything is loaded."""
        for split in ("train", "val", "test"):
            self.paths(split)

    def has(self, split: Split) -> bool:
        """Whether the split was given, or is held out of the training files."""
        return getattr(self, split) is not None or self._is_held_out(split)

    def paths(self, split: Split) -> list[Path]:
        """The split's files; a held-out split's are those of train. ValueError for a path that leads to no file."""
        given = self.train if self._is_held_out(split) else getattr(self, split)
        listed = [given] if isinstance(given, str) else given or []
        return [path for pattern in listed for path in _found(str(pattern), split)]

    def read(self, split: Split, kind: Kind, *, targets: bool = True) -> Iterator[dict]:
        """Rows in canonical columns and "row", their number from 0 within the split's files.

        `targets=False`: what is to be predicted may be missing. Text of plain-text files comes in blocks, "continues"
        true where the next row goes on in the same document. Raises ValueError with file, row number and field.
        """
        if not self.has(split):
            raise ValueError(f"data.{split} is not given; set data.{split}=PATH")
        self._refuse_unused_columns(kind)
        self._log_holdout(split, kind)
        paths = self.paths(split)
        if kind == "text" and paths:
            plain = [path for path in paths if formats.suffix_of(path) not in formats.TABULAR]
            yield from self._text_blocks(split, plain)
            paths = [path for path in paths if path not in plain]
            yield from self._rows(split, kind, paths, targets, first=len(plain))
        else:
            yield from self._rows(split, kind, paths, targets, first=0)

    @property
    def skipped_share(self) -> float:
        """Of all rows, what may be left out as bad."""
        return TOLERATED if self.on_bad_row == "skip" else 0.0

    def place(self, split: Split, kind: Kind, number: int) -> str:
        """Where row `number` of a split stands; reads the files again."""
        for path, raw_rows in self._raw(kind, self.paths(split), targets=False):
            rows = sum(1 for _ in raw_rows)
            if number < rows:
                return f"row {number} of {path}"
            number -= rows
        return f"row {number} of {split}"

    def fingerprint(self, split: Split) -> str:
        """Hash of the split's files and of every option that changes its rows."""
        options = {k: v for k, v in asdict(self).items() if k not in ("train", "val", "test")}
        part = split if self._is_cut(split) else "all"
        content = [_digest(path, path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths(split)]
        identity = json.dumps([1, part, options, content], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def facts(self) -> dict[str, str | int | float]:
        """What to log with the run: each split's files and content hash."""
        facts: dict[str, str | int | float] = {"data": "files"}
        for split in ("train", "val", "test"):
            if self.has(split):
                facts[f"data/{split}/files"] = ", ".join(map(str, self.paths(split)))
                facts[f"data/{split}/hash"] = self.fingerprint(split)
        if self._is_held_out("val"):
            facts["data/holdout"] = self.holdout
        return facts

    def _is_held_out(self, split: Split) -> bool:
        return split == "val" and self.val is None and self.train is not None and self.holdout > 0

    def _is_cut(self, split: Split) -> bool:
        """Whether the split is a part of the training files."""
        return self._is_held_out("val") and split != "test"

    def _refuse_unused_columns(self, kind: Kind) -> None:
        for name in self.columns:
            if name not in columns_of(kind):
                raise ValueError(f"data.columns.{name} is no column of this task; {_closest(name, columns_of(kind))}")

    def _log_holdout(self, split: Split, kind: Kind) -> None:
        if self._is_held_out(split):
            how = "the last characters of each file" if kind == "text" else f"rows by a hash (seed {self.seed})"
            log.info("no data.val: holding out %.3g of the training files, %s", self.holdout, how)

    def _text_blocks(self, split: Split, paths: list[Path]) -> Iterator[dict]:
        """Each file is one document; of a cut one, the first or the last characters."""
        for number, path in enumerate(paths):
            begin, end, size = 0, None, None
            if self._is_cut(split):
                size = _characters(path, path.stat().st_size, path.stat().st_mtime_ns, self.encoding_errors)
                border = int(size * (1 - self.holdout))
                begin, end = (border, None) if split == "val" else (0, border)
            block = ""
            for following in _between(formats.blocks(path, self.encoding_errors), begin, end):
                if block:
                    yield {"text": block, "row": number, "continues": True}
                block = following
            if block:
                yield {"text": block, "row": number, "continues": False}
            elif not size:  # a file of a few characters may be too short to be cut; an empty one is a mistake
                raise ValueError(f"{path} is empty; expected text")

    def _rows(self, split: Split, kind: Kind, paths: list[Path], targets: bool, first: int) -> Iterator[dict]:
        more = [f"{len(paths) - 1} more"] if len(paths) > 1 else []
        count, bad = 0, BadRows(self.skipped_share, f"rows of {' and '.join([*map(str, paths[:1]), *more])}")
        for path, raw_rows in self._raw(kind, paths, targets):
            number = -1
            for number, raw in enumerate(raw_rows):
                count += 1
                try:
                    if isinstance(raw, BadRecord):
                        raise raw
                    row = canonical(raw, kind, columns=self.columns, targets=targets)
                except (BadRow, BadRecord) as error:
                    bad.add(partial("row {} of {}: {}".format, number, path, error), error)
                    continue
                if not self._is_cut(split) or self._held_out_row(row) == (split == "val"):
                    yield row | {"row": first + count - 1} | ({"continues": False} if kind == "text" else {})
            if number < 0:
                raise ValueError(f"{path} is empty; expected at least one row")
        bad.close(count)

    def _raw(self, kind: Kind, paths: list[Path], targets: bool) -> Iterator[tuple[Path, Iterator]]:
        """Each file, or aligned pair of files, with its raw rows."""
        plain = [path for path in paths if formats.suffix_of(path) not in formats.TABULAR]
        if kind == "response" and len(paths) == 2 and len(plain) == 2:
            yield paths[0], formats.aligned(paths[0], paths[1], self.encoding_errors)
            return
        by_number = any(isinstance(key, int) for key in self.columns.values())
        for path in paths:
            if path not in plain:
                yield path, formats.records(path, self.encoding_errors, header=not by_number)
            elif not targets and kind in _FIRST_COLUMN:
                # what to predict on, a line each
                column = self.columns.get(_FIRST_COLUMN[kind], _FIRST_COLUMN[kind])
                yield path, ({column: line} for line in formats.plain_lines(path, self.encoding_errors))
            else:
                pair = ", or two line-aligned files [SOURCE,TARGET]" if kind == "response" else ""
                raise ValueError(f"{path} is plain text without columns; expected {' '.join(formats.TABULAR)}{pair}")

    def _held_out_row(self, row: dict) -> bool:
        digest = hashlib.sha256(f"{self.seed} {group_key(row)}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.holdout * 2**64


def _found(pattern: str, split: Split) -> list[Path]:
    """The files of one path or glob. A name that exists is meant literally, brackets and all."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        raise ValueError(f"data.{split}={pattern} is a folder; expected files, such as {pattern.rstrip('/')}/*.jsonl")
    if any(mark in pattern for mark in "*?["):
        matches = sorted(match for match in map(Path, glob.glob(str(path), recursive=True)) if match.is_file())
        if matches:
            return matches
        raise ValueError(f"data.{split}={pattern} matches no file")
    if not path.parent.is_dir():
        raise ValueError(f"data.{split}={pattern} does not exist: there is no folder {path.parent}")
    close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1, cutoff=0.5)
    hint = f"; did you mean {path.parent / close[0]}?" if close else f"; looked in {path.parent.resolve()}"
    raise ValueError(f"data.{split}={pattern} does not exist{hint}")


def _closest(name: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return (f"did you mean {close[0]}? " if close else "") + f"Accepted: {', '.join(names)}"


def _between(blocks: Iterator[str], begin: int, end: int | None) -> Iterator[str]:
    """Characters [begin, end) of the blocks' text."""
    at = 0
    for block in blocks:
        if end is not None and at >= end:
            return
        part = block[max(begin - at, 0) : None if end is None else end - at]
        at += len(block)
        if part:
            yield part


@functools.lru_cache(maxsize=4096)
def _characters(path: Path, size: int, changed: int, errors: formats.Errors) -> int:
    """Characters of a text file; `size` and `changed` make a rewritten file another key."""
    return sum(map(len, formats.texts(path, errors)))


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
