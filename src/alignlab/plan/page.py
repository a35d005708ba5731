"""A plan as a person reads it, and as plain values."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from alignlab.plan.hardware import GIB
from alignlab.plan.planning import Plan


def values(plan: Plan) -> dict[str, Any]:
    """Plain types, for JSON; bytes, seconds and tokens."""
    return asdict(plan) | {"memory": {**plan.memory.parts, "total": plan.memory.total}}


def show(plan: Plan, console: Console) -> None:
    """Prints two tables, what to change where the run does not fit, and what was assumed."""
    run = Table(title="The run", show_header=False)
    for name, value in _lines(plan):
        run.add_row(name, value)
    console.print(run)
    memory = Table(title=f"Memory of each of {plan.ranks} processes" if plan.ranks > 1 else "Memory")
    memory.add_column("part")
    memory.add_column("bytes", justify="right")
    for name, size in plan.memory.parts.items():
        memory.add_row(name, _size(size))
    memory.add_section()
    memory.add_row("together", _size(plan.memory.total))
    memory.add_row(f"there is, {plan.device.name}", _size(plan.device.memory))
    console.print(memory)
    if not plan.fits:
        console.print(f"It does not fit: {_size(plan.memory.total)} of {_size(plan.device.memory)}. What would help:")
        for change in plan.advice:
            verdict = "fits" if change.fits else "does not fit alone"
            console.print(f"  {' '.join(change.options)}  {_size(change.total)}, {verdict}", markup=False)
    for note in plan.notes:
        console.print(note, markup=False, highlight=False)


def _lines(plan: Plan) -> list[tuple[str, str]]:
    share = 100 * plan.learned / plan.parameters
    batch = f"{plan.rows} rows of {plan.row_tokens:,} tokens"
    if plan.accumulate > 1:
        batch += f", {plan.accumulate} to a step"
    lines = [
        ("parameters", f"{plan.parameters:,}, of which {plan.learned:,} learn ({share:.3g} %)"),
        ("device", f"{plan.ranks} x {plan.device.name}, {plan.precision}, strategy {plan.strategy}"),
        ("FLOPs a token", f"{plan.flops_per_token:.4g} ({plan.formula_flops_per_token:.4g} by the formula of MFU)"),
        ("micro-batch", batch),
        ("tokens a step", f"{plan.tokens_per_step:,.0f}"),
        ("largest micro-batch", f"{plan.largest_batch:,} rows" if plan.largest_batch else "not one row fits"),
        ("tokens an epoch", "not counted" if plan.epoch_tokens is None else f"{plan.epoch_tokens:,}"),
        ("steps an epoch", "not counted" if plan.epoch_steps is None else f"{plan.epoch_steps:,}"),
        ("steps", "not known" if plan.steps is None else f"{plan.steps:,}"),
        ("a step takes", _time(plan.step_seconds)),
        ("training takes", f"{_time(plan.seconds)}, without validation"),
    ]
    if plan.utilization is not None:
        lines.append(("MFU assumed", f"{plan.utilization:.0%}"))
    return lines


def _size(size: float) -> str:
    return f"{size / GIB:,.2f} GiB" if size >= GIB else f"{size / 2**20:,.1f} MiB"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "not told"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.3g} seconds"
