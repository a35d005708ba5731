"""Rows that somebody hands over: a list of dicts, or a file to be answered; a bad row is noted and stops no other.

Knows nothing about tokens or tasks. Imports no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from alignlab.rows import formats
from alignlab.rows.broken import BadRecord
from alignlab.rows.kinds import BadRow, Kind, canonical

# what a plain line, or a bare text, is called
_FIRST_COLUMN: dict[str, str] = {
    "labels": "text", "response": "source", "chat": "instruction", "prompts": "prompt", "text": "text",
}  # fmt: skip


class Given:
    """The rows as a test split of `kind`, in canonical columns; `errors` says what is wrong with the others.

    A bare text stands for the kind's first column. `columns` maps canonical names to the rows' own, where these are
    there.
    """

    skipped_share = 1.0
    source_language = target_language = "auto"

    def __init__(self, *, rows: Iterable[dict | str | BadRecord], kind: Kind, columns: Mapping[str, str | int]) -> None:
        self.kind = kind
        self.rows: list[dict] = []
        self.errors: dict[int, str] = {}
        for number, raw in enumerate(rows):
            raw = {_FIRST_COLUMN.get(kind, "text"): raw} if isinstance(raw, str) else raw
            try:
                if isinstance(raw, BadRecord):
                    raise raw
                if not isinstance(raw, dict):
                    raise BadRecord(f"is {raw!r}; expected a dict of columns, or a text")
                own = {name: key for name, key in columns.items() if key in raw}
                row = canonical(raw, kind, columns=own, targets=False)
            except (BadRow, BadRecord) as error:
                self.errors[number] = str(error)
            else:
                self.rows.append({**row, "row": number})

    def has(self, split: str) -> bool:
        """Only a test split."""
        return split == "test"

    def read(self, split: str, kind: str, *, targets: bool = True) -> Iterator[dict]:
        """The good rows with their numbers."""
        return iter(self.rows)

    def fingerprint(self, split: str) -> str:
        """None is needed: nothing is derived from rows that are only answered."""
        return ""

    def facts(self) -> dict[str, str | int | float]:
        """Nothing to log."""
        return {}


def raw_rows(path: Path, columns: Mapping[str, str | int] | None = None) -> Iterator[dict | str | BadRecord]:
    """The records of a file of any format; of plain text, its lines.

    Where `columns` are numbers, as in the training, a .csv or .tsv has no header line.
    """
    by_number = any(isinstance(key, int) for key in (columns or {}).values())
    if formats.suffix_of(path) in formats.TABULAR:
        yield from formats.records(path, "raise", header=not by_number)
    else:
        yield from formats.plain_lines(path, "raise")
