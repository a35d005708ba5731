"""Runs as rows: ranked in the terminal, and complete in a csv file."""

import csv
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignlab.sweep.results import Result, number, ranked, swept

WIDE = 160  # columns where the output is not a terminal, whose width rich takes for 80


def show(results: list[Result], *, title: str, to_stderr: bool) -> None:
    """Prints the ranked table; what failed says why under it."""
    console = Console(stderr=to_stderr)
    if not console.is_terminal:
        console = Console(stderr=to_stderr, width=WIDE)
    options = swept(results)
    monitors = {one.monitor for one in results}
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    for name in ("run" if any(not one.name.isdigit() for one in results) else "job", *options):
        table.add_column(name, overflow="fold")
    if len(monitors) > 1:
        table.add_column("metric")
    table.add_column("best" if len(monitors) > 1 else f"best {monitors.pop()}", justify="right")
    for name in ("at step", "of", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("status")
    several = len({one.monitor for one in results}) > 1
    for one in ranked(results):
        cells = [one.name, *(_short(one.option(name)) for name in options), *([one.monitor] if several else [])]
        value = "-" if one.value is None else f"{one.value:.5g}"
        steps = [str(one.metrics.get(name, "-")) for name in ("best/step", "step")]
        seconds = one.metrics.get("train/seconds")
        table.add_row(*cells, value, *steps, "-" if seconds is None else f"{seconds:.1f}", one.status)
    console.print(table)
    for one in results:
        if one.status == "failed":
            console.print(f"{one.name}: {one.error}", markup=False, highlight=False, soft_wrap=True)


def write(results: list[Result], path: Path) -> None:
    """Writes a row for each run, the best first."""
    options = swept(results)
    names = ["run", *options, "metric", "best", "step", "seconds", "status", "error", "folder"]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for one in ranked(results):
            reached = [one.metrics.get(name, "") for name in ("best/step", "train/seconds")]
            value = "" if one.value is None else one.value
            cells = [one.name, *(one.option(name) for name in options), one.monitor, value, *reached]
            writer.writerow([*cells, one.status, one.error, one.folder.as_posix()])


def _short(text: str) -> str:
    """`text`, or the number it writes in five digits: a search draws seventeen."""
    value = number(text)
    return text if value is None or len(text) < 8 else f"{value:.5g}"
