"""`alignlab report`: any runs side by side, over seeds, the best of each task, and their curves. Torch-free."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignlab.errors import UserError
from alignlab.sweep import curves, figure, table
from alignlab.sweep.results import Result, ranked, results_in, swept


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Runs that differ in their seed alone; `spread` is the standard deviation of a sample."""

    runs: list[Result]
    mean: float
    spread: float


def report(folders: Sequence[Path], output: Path | None = None) -> list[Path]:
    """Prints the tables of all runs under `folders`; returns the files written to `output`, or to the first folder.

    Raises UserError where there is no run.
    """
    results = gathered(folders)
    place = output or folders[0]
    place.mkdir(parents=True, exist_ok=True)
    table.show(results, title=f"{len(results)} runs", to_stderr=False)
    if repeated := over_seeds(results):
        _show_seeds(repeated)
    if len(best := best_of_tasks(results)) > 1:
        _show_best(best)
    table.write(results, place / "report.csv")
    written = [place / "report.csv"]
    if figure.draw(results, place / "report.png"):
        written.append(place / "report.png")
    if curves.draw(results, place / "curves.png"):
        written.append(place / "curves.png")
    return written


def gathered(folders: Sequence[Path]) -> list[Result]:
    """The runs of all `folders`, each once, named so that they can be told apart."""
    found: dict[Path, Result] = {}
    for folder in folders:
        for one in results_in(folder):
            name = one.name if len(folders) == 1 else one.folder.as_posix()
            found.setdefault(one.folder.resolve(), one.named(name))
    if not found:
        told = ", ".join(map(str, folders))
        raise UserError(f"no run under {told}\nexpected folders that hold metrics.json and .hydra/, such as runs")
    return list(found.values())


def over_seeds(results: list[Result]) -> list[Repeated]:
    """Groups of finished runs that are alike but for the seed, best mean first."""
    options = [name for name in swept(results) if name != "seed"]
    groups: dict[tuple[str, ...], list[Result]] = {}
    for one in results:
        if one.value is not None and one.status == "done":
            groups.setdefault((one.task, one.monitor, *map(one.option, options)), []).append(one)
    repeated = []
    for runs in groups.values():
        values = [one.value for one in runs if one.value is not None]
        if len({one.option("seed") for one in runs}) > 1:
            repeated.append(Repeated(runs=runs, mean=statistics.mean(values), spread=statistics.stdev(values)))
    order = {id(one): place for place, one in enumerate(ranked(results))}
    return sorted(repeated, key=lambda group: min(order[id(one)] for one in group.runs))


def best_of_tasks(results: list[Result]) -> list[Result]:
    """The best run of each task and metric that has reached anything."""
    best: dict[tuple[str, str], Result] = {}
    for one in ranked(results):
        if one.value is not None:
            best.setdefault((one.task, one.monitor), one)
    return list(best.values())


def _show_seeds(repeated: list[Repeated]) -> None:
    options = [name for name in swept([one for group in repeated for one in group.runs]) if name != "seed"]
    shown = Table(title="Over seeds", title_justify="left", show_edge=False, pad_edge=False)
    for name in (*options, "metric"):
        shown.add_column(name, overflow="fold")
    for name in ("seeds", "mean", "spread", "lowest", "highest"):
        shown.add_column(name, justify="right")
    for group in repeated:
        first = group.runs[0]
        values = [one.value for one in group.runs if one.value is not None]
        numbers = (group.mean, group.spread, min(values), max(values))
        cells = [*map(first.option, options), first.monitor, str(len(values))]
        shown.add_row(*cells, *(f"{value:.5g}" for value in numbers))
    _print(shown)


def _show_best(best: list[Result]) -> None:
    shown = Table(title="Best of each task", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("task", "metric", "best", "run"):
        shown.add_column(name, overflow="fold", justify="right" if name == "best" else "left")
    for one in best:
        shown.add_row(one.task, one.monitor, f"{one.value:.5g}", one.folder.as_posix())
    _print(shown)


def _print(shown: Table) -> None:
    console = Console()
    (console if console.is_terminal else Console(width=table.WIDE)).print("", shown)
