"""What `alignlab plan` says beside what a run then takes: peak memory above the idle process, seconds of a step.

    python benchmarks/planned.py text.txt labels.csv       # a table in Markdown; every run a process of its own
    python benchmarks/planned.py text.txt labels.csv --folder smollm2   # and of low-rank updates to such a folder

The idle process has its libraries imported and its data read, and no model yet. The peak is the kernel's (VmHWM), over
optimizer steps, without validation and checkpoints. Time is the median of the steps after the third,
of the processor on one thread: the probe's clock is replaced too, so that other work on the machine does not count.

    python benchmarks/planned.py text.txt labels.csv --gpu       # runs for a GPU of this machine

There the peak is what the allocator of torch holds, and time is the wall's; the plan's own time is an assumption there.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from alignlab.memory import TIGHT

STEPS, LONGEST = 16, 6.0  # steps, and seconds of them, of a measured run
RUNS = {
    "nano, Muon": ["data=files", "data.train={text}"],
    "nano, AdamW, 64 rows": ["data=files", "data.train={text}", "optim=adamw", "datamodule.batch_size=64"],
    "nano, SGD, 4 x 8 rows": ["data=files", "data.train={text}", "optim=sgd", "datamodule.batch_size=8",
                              "trainer.accumulate_grad_batches=4"],
    "nano, AdamW, recomputed": ["data=files", "data.train={text}", "optim=adamw", "recompute_activations=true"],
    "nano, bytes, context 512": ["data=files", "data.train={text}", "tokenizer=bytes", "model.context=512"],
    "nano, classification": ["task=classification", "data=files", "data.train={labels}"],
    "nano, classification, LoRA": ["task=classification", "data=files", "data.train={labels}", "tuning=lora"],
    "tiny, Muon": ["data=files", "data.train={text}", "model=tiny"],
    "tiny, AdamW, 4 rows": ["data=files", "data.train={text}", "model=tiny", "optim=adamw", "datamodule.batch_size=4"],
    "tiny, head": ["task=classification", "data=files", "data.train={labels}", "model=tiny", "tuning=head"],
    "small, Muon, 2 rows": ["data=files", "data.train={text}", "model=small", "datamodule.batch_size=2"],
    "small, AdamW, 4 rows, recomputed": ["data=files", "data.train={text}", "model=small", "optim=adamw",
                                         "datamodule.batch_size=4", "recompute_activations=true"],
}  # fmt: skip
GPT2 = ["trainer=gpu", "data=files", "data.train={text}", "model=gpt2", "tokenizer=bytes", "model.vocabulary=50304"]
ON_A_GPU = {
    "GPT-2, AdamW, 16 rows": [*GPT2, "optim=adamw", "datamodule.batch_size=16"],
    "GPT-2, Muon, 8 x 4 rows": [*GPT2, "datamodule.batch_size=8", "trainer.accumulate_grad_batches=4"],
    "GPT-2, AdamW, 32 rows, recomputed": [*GPT2, "optim=adamw", "datamodule.batch_size=32",
                                          "recompute_activations=true"],
    "small, classification, LoRA, 64 rows": ["trainer=gpu", "task=classification", "data=files", "data.train={labels}",
                                             "model=small", "tuning=lora", "datamodule.batch_size=64"],
}  # fmt: skip
UPON_A_FOLDER = {
    "LoRA on the folder, 4 windows of 256": ["data=files", "data.train={text}", "init_from={folder}", "tuning=lora",
                                           "datamodule.batch_size=4", "datamodule.max_length=256"],
}  # fmt: skip


def composed(arguments: list[str]):
    """The configuration of one run, without loggers and files that would add memory of their own."""
    from alignlab.plan.arguments import composed as of

    return of([*arguments, "logger=none", "callbacks=none", "test=false", f"trainer.max_steps={STEPS}"])


def kilobytes(name: str) -> int:
    """A line of /proc/self/status."""
    (line,) = [one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(name)]
    return int(line.split()[1])


def measured(arguments: list[str]) -> dict[str, float]:
    """Bytes and seconds of real steps in this process."""
    import gc

    import lightning as L
    import torch
    from hydra.utils import instantiate

    from alignlab.build import data_of, keeps_narrow, text_of
    from alignlab.callbacks.rhythm import Stopped
    from alignlab.memory import keep_freed_memory
    from alignlab.origin import origin
    from alignlab.plan.scenario import described
    from alignlab.run import build, horizon_of, make_callbacks, make_trainer

    config = composed(arguments)
    is_gpu = config.trainer.get("accelerator") == "gpu"
    keep_freed_memory()
    rows = instantiate(config.data, _convert_="all")
    start = described(config.init_from) if config.init_from else None
    tokenizer, shape = text_of(config, start, rows, arguments)
    data = data_of(config, rows, tokenizer, shape.context)
    del data, start
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    idle = kilobytes("VmRSS")
    ends: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, number):
            if (number + 1) % trainer.accumulate_grad_batches == 0:
                if is_gpu:
                    torch.cuda.synchronize()
                ends.append(time.perf_counter() if is_gpu else time.process_time())
                on_cpu = (kilobytes("VmHWM") - idle) * 1024
                found["peak"] = torch.cuda.max_memory_reserved() if is_gpu else on_cpu
                if len(ends) >= STEPS or (len(ends) > 6 and ends[-1] - ends[0] > LONGEST):
                    raise Stopped(15)

    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        parts = build(config, origin(config.init_from, as_stored=keeps_narrow(config)) if config.init_from else None)
        horizon = horizon_of(config, parts, 1, arguments)
        position = {"data": "", "tokenizer": "", "batch_size": 1, "horizon": 10**6}
        callbacks = make_callbacks(config, Path(folder), parts, position)
        trainer = make_trainer(config, Path(folder), [Watch(), *callbacks.all], max(horizon, 10**6), 1)
        with contextlib.suppress(Stopped):
            trainer.fit(parts.task, datamodule=parts.data)
    steps = [later - sooner for sooner, later in pairwise(ends[2:])]
    return {"peak": found["peak"], "seconds": statistics.median(steps)}


def planned(arguments: list[str]) -> dict[str, float]:
    """What the plan says, in a process of its own."""
    from alignlab.plan import probe
    from alignlab.plan.planning import plan

    probe.time = SimpleNamespace(perf_counter=time.process_time)
    found = plan([*arguments, f"trainer.max_steps={STEPS}"])
    assert found.step_seconds is not None
    return {"peak": found.memory.total, "seconds": found.step_seconds}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text")
    parser.add_argument("labels")
    parser.add_argument("--folder", help="of a Hugging Face model")
    parser.add_argument("--gpu", action="store_true", help="runs for a GPU instead")
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--inside", choices=["planned", "measured"])
    given = parser.parse_args()

    def is_chosen(name: str) -> bool:
        return given.only == [name] if given.inside else any(one in name for one in given.only)

    files = {"text": given.text, "labels": given.labels, "folder": given.folder}
    runs = ON_A_GPU if given.gpu else {**RUNS, **(UPON_A_FOLDER if given.folder else {})}
    chosen = {name: [one.format(**files) for one in run] for name, run in runs.items() if is_chosen(name)}
    if given.inside:
        (arguments,) = chosen.values()
        print(json.dumps((planned if given.inside == "planned" else measured)(arguments)))
        return
    print("| run | planned MiB | measured MiB | off | planned s | measured s | off |\n|---|---|---|---|---|---|---|")
    for name in chosen:
        told = {}
        for what in ("planned", "measured"):
            command = [sys.executable, __file__, given.text, given.labels, "--only", name, "--inside", what]
            command += ["--folder", given.folder] if given.folder else []
            command += ["--gpu"] if given.gpu else []
            run = subprocess.run(command, capture_output=True, text=True, check=False, env={**TIGHT, **os.environ})
            if run.returncode:
                sys.exit(f"{name}: {run.stderr[-2000:]}")
            told[what] = json.loads(run.stdout.splitlines()[-1])
        one, other = told["planned"], told["measured"]
        cells = []
        for what, unit, form in (("peak", 2**20, ".0f"), ("seconds", 1, ".3f")):
            cells += [f"{side[what] / unit:{form}}" for side in (one, other)]
            cells.append(f"{one[what] / other[what] - 1:+.1%}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
