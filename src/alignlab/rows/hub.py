"""`data=hub`: rows of whatever the `datasets` library can load: from the hub, its cache, or a local folder.

Unusual: code of a dataset's repository is never run; text can stream, so that a corpus larger than the disk is read.
Knows nothing about tokens or tasks. Imports no torch of its own.
"""

import difflib
import functools
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from alignlab.rows.kinds import COLUMNS, BadRow, Kind, canonical, group_key
from alignlab.skipping import TOLERATED, BadRows
from alignlab.types import BelowOne, PositiveInt

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
_USUAL = {"train": ("train",), "val": ("validation", "val", "dev", "valid"), "test": ("test",)}


@dataclass(frozen=True, kw_only=True)
class Hub:
    """Rows of a dataset of the hub (`path` "org/name"), or of a local folder of .parquet, .jsonl or .csv files.

    `splits` maps train, val and test to the dataset's own names, where those are not the usual ones, or to null where
    its own split is of no use; `columns` a canonical column to the dataset's, `translation.en` to a field of one. Of a
    text column with a pattern in `patterns` the last match of its first group is taken. A class label's number becomes
    its name. Without a validation split, the share `holdout` of train is held out by a hash of (seed, row). `rows`
    takes the first rows of each split only.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    splits: dict[str, str | None] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=dict)
    patterns: dict[str, str] = field(default_factory=dict)
    rows: PositiveInt | None = None
    streaming: bool = False
    holdout: BelowOne = 0.1
    seed: int = 0
    on_bad_row: Literal["raise", "skip"] = "raise"
    source_language: str = "auto"
    target_language: str = "auto"

    def __post_init__(self) -> None:
        parts = (("columns", self.columns), ("patterns", self.patterns), ("splits", self.splits))
        for kind, given in parts:
            accepted = tuple(_USUAL) if kind == "splits" else COLUMNS
            for name in given:
                if name not in accepted:
                    close = difflib.get_close_matches(name, accepted, n=1)
                    hint = f"did you mean {close[0]}? " if close else ""
                    raise ValueError(f"data.{kind}.{name} is unknown; {hint}Accepted: {', '.join(accepted)}")

    def check(self) -> None:
        """What can be told without the network: nothing."""

    def has(self, split: Split) -> bool:
        """Whether the dataset has the split, or it can be held out of train."""
        return self._own_name(split) is not None or self._is_held_out(split)

    def read(self, split: Split, kind: Kind, *, targets: bool = True) -> Iterator[dict]:
        """Rows in canonical columns and "row", their number within the dataset's split.

        Raises ValueError with the split, row number and field of a bad row, or when the dataset cannot be loaded.
        """
        held_out, own = self._is_held_out(split), self._own_name("train" if self._is_held_out(split) else split)
        if own is None:
            raise ValueError(
                f"{self.path} has no split for data.{split}; it has {self._names}: set data.splits.{split}"
            )
        if held_out:
            log.info("no validation split: holding out %.3g of %s by a hash (seed %d)", self.holdout, own, self.seed)
        cut = held_out or (split == "train" and self._is_held_out("val"))
        count, bad = 0, BadRows(self.skipped_share, f"rows of {self.path} ({own})")
        for number, raw in enumerate(self._raw(own)):
            count += 1
            try:
                row = self._matched(canonical(raw, kind, columns=self.columns, targets=targets))
            except BadRow as error:
                bad.add(partial("row {} of {} ({}): {}".format, number, self.path, own, error), error)
                continue
            if not cut or self._held_out_row(row) == held_out:
                yield row | {"row": number} | ({"continues": False} if kind == "text" else {})
        bad.close(count)

    @property
    def skipped_share(self) -> float:
        """Of all rows, what may be left out as bad."""
        return TOLERATED if self.on_bad_row == "skip" else 0.0

    def fingerprint(self, split: Split) -> str:
        """Hash of what the library says of the loaded data, and of the options."""
        own = self._own_name("train" if self._is_held_out(split) else split)
        assert own is not None, "a split is read before it is fingerprinted"
        part = split if self._is_held_out("val") and split != "test" else "all"
        loaded = self._load(own)
        # A stream has no content to hash: its repository's revision stands for it.
        content = self.revision or "latest" if self.streaming else loaded._fingerprint
        identity = json.dumps([1, part, own, content, asdict(self)], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()[:32]

    def facts(self) -> dict[str, str | int | float]:
        """Where the rows are from, and their content hash."""
        facts: dict[str, str | int | float] = {"data": "hub", "data/path": self.path, "data/name": self.name or ""}
        facts["data/revision"] = self.revision or "latest"
        return facts | {f"data/{split}/hash": self.fingerprint(split) for split in _USUAL if self.has(split)}  # type: ignore[arg-type]

    @property
    def _names(self) -> list[str]:
        """The dataset's own names of its splits."""
        return _split_names(self.path, self.name, self.revision)

    def _own_name(self, split: Split) -> str | None:
        names = self._names
        if split in self.splits:
            own = self.splits[split]
            if own is not None and own.split("[")[0] not in names:
                raise ValueError(f"data.splits.{split}={own} is not in {self.path}; it has {names}")
            return own
        return next((name for name in _USUAL[split] if name in names), None)

    def _is_held_out(self, split: Split) -> bool:
        return split == "val" and self.holdout > 0 and self._own_name("val") is None

    def _held_out_row(self, row: Mapping[str, Any]) -> bool:
        digest = hashlib.sha256(f"{self.seed} {group_key(row)}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self.holdout * 2**64

    def _matched(self, row: dict) -> dict:
        """The row with what its columns' patterns find. Raises BadRow where one finds nothing."""
        for name, pattern in self.patterns.items():
            if name in row:
                found = re.findall(pattern, row[name])
                if not found:
                    raise BadRow(name, f"has nothing that matches {pattern!r} (data.patterns.{name})")
                row[name] = found[-1].strip()
        return row

    def _load(self, own: str) -> "datasets.Dataset":
        import datasets

        with _told(self.path):
            return datasets.load_dataset(
                self.path, self.name, split=own, revision=self.revision, streaming=self.streaming
            )

    def _raw(self, own: str) -> Iterator[dict]:
        loaded = self._load(own)
        import datasets

        features = loaded.features or {}
        named = {key: kind for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
        for number, raw in enumerate(loaded):
            if self.rows is not None and number >= self.rows:
                return
            # -1 is how the hub marks a label that was kept secret: left missing
            labels = {
                k: kind.int2str(raw[k]) if raw[k] is not None and raw[k] >= 0 else None for k, kind in named.items()
            }
            yield raw | labels | {key: _field(raw, key) for key in self.columns.values() if key not in raw}


def _field(raw: Mapping[str, Any], key: str) -> Any:
    """`translation.en` is the field en of the column translation; None where there is none."""
    value: Any = raw
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


@functools.lru_cache(maxsize=64)  # each call may ask the network
def _split_names(path: str, name: str | None, revision: str | None) -> list[str]:
    import datasets

    with _told(path):
        return datasets.get_dataset_split_names(path, name, revision=revision)


class _told:
    """Turns the library's many errors of loading into one that names the dataset and the remedy."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError | ValueError | RuntimeError):
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"data.path={self._path} cannot be loaded: {first[:120]}\n"
                "expected a dataset of the hub that can be reached or is in its cache\n"
                "or data.path=FOLDER, one of .parquet, .jsonl or .csv files"
            ) from error
