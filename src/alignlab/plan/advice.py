"""What to change where a run does not fit: options to add, each measured as the run is."""

from dataclasses import dataclass

from alignlab.plan.arguments import composed
from alignlab.plan.memory import largest
from alignlab.plan.running import Run


@dataclass(frozen=True, kw_only=True)
class Change:
    """Options to add, and the bytes that the run then takes."""

    options: list[str]
    total: int
    fits: bool


def advice(run: Run) -> list[Change]:
    """Single changes, each with what it leaves; where none is enough, all that helps together."""
    options: list[str] = []
    if not run.config.recompute_activations:
        options.append("recompute_activations=true")
    if run.precision == "32-true":
        options.append("trainer.precision=bf16-mixed")
    elif run.precision == "bf16-mixed":
        options.append("trainer.precision=bf16-true")
    if run.config.tuning["_target_"].endswith(".Full"):
        options.append("tuning=lora")
    if not run.device.is_cpu and run.strategy != "fsdp":
        options.append(f"trainer=fsdp trainer.devices={max(8, run.ranks)}")
    changes = [_change(run, option.split()) for option in options]
    if (smaller := _smaller(run)) is not None:
        changes.append(smaller)
    if changes and not any(change.fits for change in changes):
        together = [word for option in options for word in option.split()]
        other = _changed(run, *together)
        changes.append(_change(run, together))
        if not changes[-1].fits and (last := _smaller(other)) is not None:
            changes.append(Change(options=[*together, *last.options], total=last.total, fits=last.fits))
    return changes


def _change(run: Run, options: list[str]) -> Change:
    other = _changed(run, *options)
    total = other.measure(other.rows).total
    return Change(options=options, total=total, fits=total <= run.device.memory)


def _smaller(run: Run) -> Change | None:
    """A smaller micro-batch, accumulated to the same step: the largest that fits, or a single row; None for one row."""
    if run.rows == 1:
        return None
    found = max(1, largest(lambda rows: run.measure(rows).total, run.rows, run.device.memory))
    while run.rows % found:  # an equal step needs a divisor
        found -= 1
    times = run.rows // found * run.accumulate
    options = [f"datamodule.batch_size={found}", f"trainer.accumulate_grad_batches={times}"]
    return _change(run, options)


def _changed(run: Run, *options: str) -> Run:
    """The run with more options; what was read stays."""
    arguments = [*run.arguments, *options]
    config = composed(arguments)
    return Run(
        config=config, arguments=arguments, known=run.known, widths=run.widths, device=run.device, horizon=run.horizon
    )
