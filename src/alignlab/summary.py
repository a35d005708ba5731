"""The end of a run in the terminal: what it reached, where things are, and what to type next."""

import math
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table

from alignlab.callbacks.progress import clock
from alignlab.commandline.quoting import legal

LEFT_OUT = ("best/", "train/seconds", "train/tokens_per_second")


def show_summary(folder: Path, values: dict[str, float | int | str], *, kind: str, horizon: int) -> None:
    """Prints the results and the next commands for a run of up to `horizon` steps on rows of `kind`."""
    console = Console(stderr=True)
    table = Table(title="Results", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("metric")
    has_start = any(name.startswith("start/") for name in values)
    if has_start:
        table.add_column("before", justify="right")
    table.add_column("last", justify="right")
    table.add_column(f"best (step {values.get('best/step', '-')})", justify="right")
    for name, value in sorted(values.items()):
        if name.startswith(("val/", "test/")):
            best = values.get(f"best/{name}", "" if name.startswith("val/") else value)
            before = [_text(values.get(f"start/{name}", ""))] if has_start else []
            table.add_row(name, *before, _text(value) if name.startswith("val/") else "", _text(best))
    console.print(table)
    seconds = float(values.get("train/seconds", math.nan))
    speed = float(values.get("train/tokens_per_second", math.nan))
    memory = values.get("train/gpu_memory_gib")
    told = f"{clock(seconds)} of training, {speed:,.0f} tokens/s, {int(values['parameters']):,} parameters"
    console.print(told if memory is None else f"{told}, {float(memory):.1f} GiB of the GPU", end="\n\n")
    shown = Path(folder).resolve()
    shown = shown.relative_to(Path.cwd()) if shown.is_relative_to(Path.cwd()) else shown
    lines = [
        ("run folder", str(shown)),
        ("curves", f"tensorboard --logdir {typed(shown.parent)}"),
        ("generate", f'alignlab generate {typed(shown)} "How do I"')
        if kind == "text"
        else ("predict", f"alignlab predict {typed(shown)} --input FILE --output answers.jsonl"),
        ("go on longer", f"python train.py {resuming(shown)} trainer.max_steps={2 * horizon}"),
    ]
    for name, text in lines:
        console.print(f"[bold]{name:13}[/bold] {text}", highlight=False, soft_wrap=True)


def show_stages(values: dict[str, float | int | str], tasks: list[str]) -> None:
    """Prints what each stage of a recipe changed: its metrics before it, where measured, and on its best weights."""
    console = Console(stderr=True)
    table = Table(title="Stages", title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("metric")
    columns: list[dict[str, float | int | str]] = []
    for number, task in enumerate(tasks):
        table.add_column(f"{number} {task}", justify="right")
        start = f"stage/{number}/"
        columns.append({name.removeprefix(start): value for name, value in values.items() if name.startswith(start)})
    names = {name.removeprefix("best/") for column in columns for name in column if name.startswith("best/val/")}
    for name in sorted(name for name in names if name.count("/") == 1):  # not each part of a metric
        cells = []
        for column in columns:
            before, best = (_text(column[key]) if key in column else "" for key in (f"start/{name}", f"best/{name}"))
            cells.append(f"{before} > {best}" if before else best)
        table.add_row(name, *cells)
    table.add_row("train/seconds", *(f"{float(column['train/seconds']):.0f}" for column in columns))
    console.print(table)


def typed(path: Path) -> str:
    """`path` as it is typed in a shell."""
    return shlex.quote(str(path))


def resuming(folder: Path) -> str:
    """The argument that goes on with the run in `folder`, as it is typed in a shell."""
    return shlex.quote(f"resume={legal(str(folder))}")


def _text(value: float | int | str) -> str:
    return f"{value:z.4f}" if isinstance(value, float) else str(value)  # z: no -0.0000
