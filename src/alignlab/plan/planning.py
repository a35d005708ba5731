"""The plan of a run: what it takes, how long, and what to change where it does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from alignlab.errors import UserError
from alignlab.losses import CHUNK_LOGITS
from alignlab.models.config import flops_per_token
from alignlab.plan.advice import Change, advice
from alignlab.plan.arguments import composed
from alignlab.plan.hardware import Device, gpu, this_cpu, this_gpu
from alignlab.plan.memory import Memory, largest
from alignlab.plan.probe import Probed, probe
from alignlab.plan.rehearsal import batch_of, widths
from alignlab.plan.running import Run
from alignlab.plan.scenario import Known, assembled, known_of
from alignlab.plan.trial import tried
from alignlab.trainer import horizon_of, ranks_of

FIRST_CHOICE = "H100"  # where GPUs are asked for and none is named
MODELLED = "memory: the gaps of the allocator are modelled, which put whole runs up to 42 % off"
UTILIZATION = 0.4  # of a GPU's peak in bf16; the usual range is 0.3 to 0.5


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known before a run; bytes, seconds and tokens, None where it cannot be told and a note says why."""

    device: Device
    ranks: int
    precision: str
    strategy: str
    parameters: int
    learned: int
    flops_per_token: float  # of matrix products in a step, recomputation included
    formula_flops_per_token: float  # of Chowdhery et al. 2022, which the training log's MFU counts with
    memory: Memory
    rows: int  # of a micro-batch
    row_tokens: int  # of the widest micro-batch
    accumulate: int
    tokens_per_step: float
    largest_batch: int
    epoch_tokens: int | None
    epoch_steps: int | None
    steps: int | None
    step_seconds: float | None
    seconds: float | None
    utilization: float | None
    fits: bool
    notes: list[str] = field(default_factory=list)
    advice: list[Change] = field(default_factory=list)


def plan(
    arguments: Sequence[str], *, gpu_name: str | None = None, count: int | None = None,
    utilization: float = UTILIZATION, tries: bool = True,
) -> Plan:  # fmt: skip
    """The plan of `python train.py ARGUMENTS` on `count` GPUs called `gpu_name`, or on what the arguments ask for.

    `tries`: on this machine's CPU, some real steps in a process of their own say what they take beyond their tensors.
    """
    if count is not None and count < 1:
        raise UserError(f"--count is {count}; expected at least 1 GPU")
    notes: list[str] = []
    arguments = [*arguments, *([f"trainer.devices={count}", "trainer.num_nodes=1"] if count else [])]
    config = composed(arguments)
    device = _device(config, gpu_name, notes)
    known = known_of(config, arguments)
    if known.data.kind == "prompts":
        raise UserError(
            f"task={config.task['_target_'].rsplit('.')[-1]}: what a step takes depends on the answers drawn"
        )
    run, steps = _run(config, arguments, known, device, notes)
    return _planned(run, steps, utilization, notes, tries=tries)


def _planned(run: Run, steps: int | None, utilization: float, notes: list[str], *, tries: bool) -> Plan:
    known, device = run.known, run.device
    data, task = known.data, run.parts.task
    middle = batch_of(data, run.widths.middle, data.batch_size)
    tokens = run.accumulate * run.ranks * run.widths.positions * run.rows / data.batch_size
    length = batch_of(data, run.widths.widest, 1).ids.shape[1]
    probed = _probed(run, middle, run.flops * middle.ids.numel()) if device.is_cpu and run.ranks == 1 else None
    step_seconds = _step_seconds(run, probed, run.flops * tokens, utilization, notes)
    if probed is not None:
        notes.append(f"speed: {probed.how}, timed on this machine just now")
        notes.append(_tried(run, step_seconds or 0.0) if tries else MODELLED)
    memory = run.measure(run.rows)
    fits = memory.total <= device.memory
    return Plan(
        device=device,
        ranks=run.ranks,
        precision=run.precision,
        strategy=run.strategy,
        parameters=task.model.parameter_count(),
        learned=run.parts.report.learned_parameters,
        flops_per_token=run.flops,
        formula_flops_per_token=flops_per_token(task.model.config, task.model.parameter_count(), length),
        memory=memory,
        rows=run.rows,
        row_tokens=length,
        accumulate=run.accumulate,
        tokens_per_step=tokens,
        largest_batch=largest(lambda rows: run.measure(rows).total, run.rows, device.memory),
        epoch_tokens=_epoch_tokens(known),
        epoch_steps=data.steps_per_epoch(run.ranks) if known.is_whole else None,
        steps=steps,
        step_seconds=step_seconds,
        seconds=None if steps is None or step_seconds is None else steps * step_seconds,
        utilization=None if device.is_cpu else utilization,
        fits=fits,
        notes=notes,
        advice=[] if fits else advice(run),
    )


def _device(config: DictConfig, gpu_name: str | None, notes: list[str]) -> Device:
    if gpu_name is not None:
        return gpu(gpu_name)
    accelerator = config.trainer.get("accelerator", "auto")
    if accelerator == "cpu":
        return this_cpu()
    if (found := this_gpu()) is not None:
        return found
    if accelerator == "auto" and ranks_of(config) == 1:
        return this_cpu()
    notes.append(f"no --gpu was named and this machine has none: planned for {FIRST_CHOICE}")
    return gpu(FIRST_CHOICE)


def _run(
    config: DictConfig, arguments: list[str], known: Known, device: Device, notes: list[str]
) -> tuple[Run, int | None]:
    """The run, and its optimizer steps where they can be told."""
    ranks = ranks_of(config)
    parts = assembled(config, known)
    steps: int | None = None
    if known.is_whole or not (config.trainer.get("max_epochs") or 0) > 0:
        steps = horizon_of(config, parts, ranks, arguments)
    if not known.is_whole:
        notes.append("the data is large: only its first rows were read, so tokens and steps of an epoch are not known")
    if config.compile:
        notes.append("compile=true: planned as without it; compiled blocks take less memory and time")
    if config.trainer.get("strategy") == "fsdp" and ranks > 1:
        notes.append("fsdp: time leaves out what is sent between devices")
    run = Run(
        config=config, arguments=arguments, known=known, widths=widths(known.data, ranks), device=device,
        horizon=steps or 10**6,
    )  # fmt: skip
    return run, steps


def _epoch_tokens(known: Known) -> int | None:
    """Non-padding tokens of the training rows."""
    facts = known.data.facts()
    return int(facts["train_tokens"]) if known.is_whole and "train_tokens" in facts else None


def _probed(run: Run, middle: Any, flops: float) -> Probed:
    data, rows = run.known.data, len(middle.ids)
    full = -(-CHUNK_LOGITS["cpu"] // (middle.ids.shape[1] * (run.known.model_config.vocabulary or 1)))
    return probe(
        lambda: assembled(run.config, run.known).task,
        lambda rows: batch_of(data, run.widths.middle, rows),
        rows=rows, least=2 * full if rows > full else 1, flops=flops, precision=run.precision, accumulate=1,
        horizon=run.horizon,
    )  # fmt: skip


def _tried(run: Run, step_seconds: float) -> str:
    """Lets real steps say what they take, where that is quick and safe; a note of it."""
    is_safe = run.measure(run.rows).total < run.device.memory / 2
    if is_safe and (total := tried(run.arguments, step_seconds=step_seconds)) is not None:
        run.learn(total)
        return "memory: gaps and libraries are those of real steps on this machine just now"
    return MODELLED


def _step_seconds(run: Run, probed: Probed | None, flops: float, utilization: float, notes: list[str]) -> float | None:
    if probed is not None:
        return run.accumulate * probed.forward_backward + probed.update
    if run.device.is_cpu:
        notes.append("time: not told for several processes on one machine's CPU, which share its cores")
        return None
    if run.precision in ("32-true", "64-true") or run.device.peak is None:
        notes.append(f"time: not told, the peak of {run.device.name} in {run.precision} is not known here")
        return None
    notes.append(
        f"time: {utilization:.0%} of {run.device.peak / 1e12:,.0f} TFLOP/s of each device, an assumption; "
        "change it with --mfu"
    )
    return flops / run.ranks / (run.device.peak * utilization)
