"""Tokens per second of one training step on a CPU: ours bare, ours through Lightning, transformers.Trainer, litgpt.

    python benchmarks/training_step.py input.txt --contestants bare,lightning,trainer
    python benchmarks/training_step.py input.txt --shape 6x384 --litgpt-python other/bin/python

All take the same step: same shape, same batch, byte ids, fp32, AdamW, gradients clipped at 1, no dropout.
  bare            a PyTorch loop over alignlab.models.gpt.GPT in the shape of GPT-2
  lightning       `python train.py` with the same model, batch and optimizer: the step that users run
  fast            lightning with compile=true and bf16
  trainer         transformers.Trainer over GPT2LMHeadModel and a data set in memory
  bare_rotary     as bare with rotary positions in place of learned ones, which litgpt does not have
  litgpt          a PyTorch loop over litgpt's model, which wants an environment of its own (see README.md beside this)
Ratios are to bare, litgpt's to bare_rotary.

Unusual: each contestant is a process that stays, and takes some steps only when it is told to. So the rounds are short
and interleaved, one contestant at a time, warm, and a machine that slows down does so for all of them alike.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contestants import CONTESTANTS, SHAPES, Shape

REFERENCE = {"litgpt": "bare_rotary", "bare_rotary": "bare_rotary"}  # the rest: bare


class Contestant:
    """The parent's side of one process."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.scratch = tempfile.TemporaryDirectory()  # here, since the child never comes to its own clean-up
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        python = options.litgpt_python if name == "litgpt" else sys.executable
        command = [
            python,
            str(Path(__file__).with_name("contestants.py")),
            name,
            str(options.file.resolve()),
            options.shape,
        ]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"OURS": options.ours, "TMPDIR": self.scratch.name},
        )

    def take(self, steps: int) -> float:
        """Seconds that it needs for `steps`; RuntimeError with the end of its log where it ended instead."""
        assert self.process.stdin is not None, "opened with a pipe"
        assert self.process.stdout is not None, "opened with a pipe"
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if reply := self.process.stdout.readline():
            return float(reply)
        self.log.seek(0)
        raise RuntimeError(f"{self.name} ended early:\n{self.log.read()[-3000:]}")

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.scratch.cleanup()


def measure(names: list[str], options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds per step of each contestant in each round."""
    contestants = [Contestant(name, options) for name in names]
    try:
        for contestant in contestants:  # the first steps allocate, and compile
            contestant.take(options.steps)
        rounds: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(options.rounds):
            for contestant in contestants if turn % 2 == 0 else reversed(contestants):
                time.sleep(0.2)  # the threads of the one before stop spinning
                rounds[contestant.name].append(1000 * contestant.take(options.steps) / options.steps)
        return rounds
    finally:
        for contestant in contestants:
            contestant.end()


def show(rounds: dict[str, list[float]], shape: Shape) -> None:
    """Prints one line for each contestant: medians, and the median over rounds of its speed against the reference."""
    print(f"{'':12} {'ms a step':>10} {'least':>8} {'tokens/s':>10}   speed against the reference, ms more than it")
    for name, times in rounds.items():
        middle = statistics.median(times)
        line = f"{name:12} {middle:10.2f} {min(times):8.2f} {1000 * shape.batch * shape.context / middle:10,.0f}"
        reference = rounds.get(REFERENCE.get(name, "bare"))
        if reference is not None:
            speed = statistics.median(other / own for own, other in zip(times, reference, strict=True))
            more = statistics.median(own - other for own, other in zip(times, reference, strict=True))
            line += f"   {speed:.3f} x {REFERENCE.get(name, 'bare')}, {more:+.2f} ms"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a text file, read as bytes")
    parser.add_argument("--shape", choices=SHAPES, default="4x128", help="layers x width")
    parser.add_argument("--contestants", help=f"a comma-separated choice of {', '.join(CONTESTANTS)}")
    parser.add_argument("--litgpt-python", help="interpreter of an environment that has litgpt")
    parser.add_argument("--ours", default="", metavar="ARGS", help="more arguments for train.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50, help="in each round")
    options = parser.parse_args()
    names = options.contestants.split(",") if options.contestants else list(CONTESTANTS)
    if unknown := sorted(set(names) - set(CONTESTANTS)):
        parser.error(f"--contestants has {unknown}; accepted: {', '.join(CONTESTANTS)}")
    if not options.litgpt_python:
        names = [name for name in names if name not in ("litgpt", "bare_rotary")]
    show(measure(names, options), SHAPES[options.shape])


if __name__ == "__main__":
    main()
