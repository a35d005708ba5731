"""Rows of a task as a table in Markdown, for whoever looks on; knows nothing of loggers."""

from collections.abc import Iterable, Sequence

LETTERS = 300  # of a cell
JOINERS = "\u200c\u200d"  # of letters in Persian and Hindi, and of emoji
ROWS = 8  # of a table that is shown


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown with a heading for each of `names`; whatever a cell holds is shown as it is, in one line."""
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(cell(value) for value in row)} |" for row in rows]
    return "\n".join(lines)


def cell(value: object) -> str:
    """One line that shows a value as it is, of at most LETTERS letters."""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")[:LETTERS]


def in_one_line(text: str) -> str:
    """`text` for a terminal: no line breaks, and no characters that would move its cursor or ring its bell."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else " " for letter in text)
