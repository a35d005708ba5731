"""What to change where a run does not fit: options to add, each measured as the run is."""

from dataclasses import dataclass, replace
from inspect import signature

from alignlab.plan.arguments import composed
from alignlab.plan.memory import largest
from alignlab.plan.rehearsal import widths
from alignlab.plan.running import Run
from alignlab.plan.scenario import known_of
from alignlab.trainer import ranks_of

LENGTHS = tuple(2**power for power in range(16, 8, -1))  # tokens of a row that are tried, the longest first


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
    if not run.device.is_cpu and run.strategy != "fsdp" and run.config.ema is None:
        options.append(f"trainer=fsdp trainer.devices={max(8, run.ranks)}")
    changes = [_change(run, option.split()) for option in options]
    changes += [found for found in (_smaller(run), _shorter(run)) if found is not None]
    if changes and not any(change.fits for change in changes):
        together = [word for option in options for word in option.split()]
        other = _changed(run, *together)
        changes.append(_change(run, together))
        if not changes[-1].fits:
            found = (_smaller(other), _shorter(other))
            changes += [replace(last, options=[*together, *last.options]) for last in found if last is not None]
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


def _shorter(run: Run) -> Change | None:
    """Rows of fewer tokens: the longest of LENGTHS with which the whole micro-batch fits; None for short rows.

    Memory above that of the weights grows with the tokens at most, so the first try is a fair guess.
    """
    length = run.length
    if length <= LENGTHS[-1] or "max_length" not in signature(type(run.known.data)).parameters:
        return None
    whole, still = (run.measure(run.rows).parts, ("weights", "gradients", "optimizer state"))
    fixed = sum(size for name, size in whole.items() if name in still or name.startswith("gathered"))
    room = max(0, run.device.memory - fixed) / max(1, sum(whole.values()) - fixed)
    tried = [shorter for shorter in LENGTHS if shorter < length and shorter <= 2 * room * length]
    change = None
    for shorter in tried or [LENGTHS[-1]]:
        options = [f"datamodule.max_length={shorter}"]
        other = _changed(run, *options, reads=True)
        total = other.measure(other.rows).total
        change = Change(options=options, total=total, fits=total <= run.device.memory)
        if change.fits:
            break
    return change


def _changed(run: Run, *options: str, reads: bool = False) -> Run:
    """The run with more options; what was read stays, unless they change how that `reads`."""
    arguments = [*run.arguments, *options]
    config = composed(arguments)
    known = known_of(config, arguments) if reads else run.known
    return Run(
        config=config, arguments=arguments, known=known, device=run.device, horizon=run.horizon,
        widths=widths(known.data, ranks_of(config)) if reads else run.widths, gaps=run.gaps, libraries=run.libraries,
    )  # fmt: skip
