"""Real steps of a run on this machine's CPU, in a process of their own: the memory that they take there.

Unusual: the gaps of an allocator and what libraries load at a first step are told apart by no book of tensors. The
process begins anew, so that nothing it freed before hides what a step takes. Weights are noise; nothing is written.
"""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from alignlab.memory import TIGHT, keep_freed_memory
from alignlab.plan.arguments import composed
from alignlab.plan.hardware import this_cpu
from alignlab.plan.probe import made_real
from alignlab.plan.rehearsal import batch_of, take_step, widths
from alignlab.plan.running import Run
from alignlab.plan.scenario import assembled, known_of

STEPS = range(3, 9)  # fewest and most; a heap grows least in the last of them
LASTING = 45.0  # seconds, of all of them
STATUS = Path("/proc/self/status")


def tried(arguments: Sequence[str], *, step_seconds: float, patience: float = 120.0) -> int | None:
    """Bytes above the idle process at the worst moment of some steps; None where they take too long or cannot be told.

    `patience`: seconds, imports included.
    """
    steps = min(STEPS[-1], int(LASTING / max(step_seconds, 1e-9)))
    if not STATUS.is_file() or steps < STEPS[0]:
        return None
    command = [sys.executable, "-m", "alignlab.plan.trial", str(steps), json.dumps([*arguments])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience, check=False, env={**TIGHT, **os.environ}
        )
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else int(done.stdout.split()[-1])


def peak(arguments: Sequence[str], steps: int) -> int:
    """The same of so many steps of this process, which must be a fresh one."""
    config = composed(arguments)
    known = known_of(config, arguments)
    run = Run(
        config=config, arguments=[*arguments], known=known, widths=widths(known.data, 1), device=this_cpu(),
        horizon=10**6,
    )  # fmt: skip
    keep_freed_memory()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    idle = _bytes("VmRSS")
    _take_steps(run, steps)
    return _bytes("VmHWM") - idle


def _take_steps(run: Run, steps: int) -> None:
    task = assembled(run.config, run.known).task
    optimizer = made_real(task, run.precision, accumulate=run.accumulate, horizon=run.horizon)
    for step in range(steps):
        rows = run.widths.middle if step % 2 else run.widths.widest
        batches = (batch_of(run.known.data, rows, run.rows) for _ in range(run.accumulate))
        take_step(task, optimizer, batches, run.precision)


def _bytes(name: str) -> int:
    (line,) = [one for one in STATUS.read_text(encoding="ascii").splitlines() if one.startswith(name)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(peak(json.loads(sys.argv[2]), int(sys.argv[1])))
