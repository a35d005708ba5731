"""Memory and time of one LoRA step on a CPU: train.py as users run it against peft with transformers.Trainer.

    python benchmarks/lora.py smollm2/ alpaca/train.jsonl --batch 8 --rounds 5 --steps 4

Both fine-tune the same folder on the same rows: rank 8 on query and value, fp32, AdamW, gradients clipped at 1, prompt
masked, rows padded to the longest of their batch.
  ours      `task=chat tuning=lora init_from=FOLDER`, composed, built and trained as train.py does
  peft      transformers.Trainer over get_peft_model(AutoModelForCausalLM), fed with the very batches that ours reads,
            rows of like length together; with --shuffled as many rows in the order that the Trainer draws by itself

Unusual: each is a process that stays and takes some steps when it is told to, so that rounds are interleaved. Memory is
the highest resident set since its libraries were imported, less what it held then: the load of the model counts.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alignlab.memory import TIGHT

CHILD = "--child"
ROOT = Path(__file__).parent.parent
RANK, ALPHA, RATE = 8, 16, 2e-4
ENDLESS = 10**6  # steps


class Pace:
    """The child's side: says how long its steps took and how much memory it has needed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._count_anew()
        self.idle = resident("VmRSS")
        self.load = 0.0
        self.left = 0
        self.started = 0.0

    def _count_anew(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set counts from here

    def train_starts(self) -> None:
        """Parts what loading needed from what the steps need."""
        self.load = resident("VmHWM") - self.idle
        self._count_anew()
        self.wait()

    def wait(self) -> None:
        """Until the parent asks for steps; ends with it."""
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.started = int(line), self.clock()

    def step_done(self) -> None:
        """Counts one, and reports after the last."""
        self.left -= 1
        if not self.left:
            seconds = self.clock() - self.started
            told = {"seconds": seconds, "load": self.load, "steps": resident("VmHWM") - self.idle}
            print(json.dumps(told), file=REPLY, flush=True)
            self.wait()


REPLY = sys.stdout
CLOCKS = {False: time.perf_counter, True: time.process_time}


def resident(name: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def composed(options: argparse.Namespace, rows: Path, folder: Path) -> Any:
    """The configuration of the run, as train.py composes it."""
    from hydra import compose, initialize_config_dir

    from alignlab.commandline import prepare

    overrides = [
        "task=chat", f"init_from={options.folder}", "tuning=lora", f"tuning.rank={RANK}", f"tuning.alpha={ALPHA}",
        "tuning.targets=[query,value]", "data=files", "data.on_bad_row=skip", f"data.train={rows}", f"data.val={rows}",
        f"datamodule.batch_size={options.batch}", f"datamodule.max_length={options.length}", f"optim.lr={RATE}",
        "optim.weight_decay=0", "optim.schedule=constant", "optim.warmup_steps=0", f"trainer.max_steps={ENDLESS}",
        "trainer.max_epochs=null", "trainer.precision=32-true", "logger=none", "callbacks=none",
        "trainer.enable_progress_bar=false", f"trainer.log_every_n_steps={1 if options.show else 50}",
        f"hydra.run.dir={folder}",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", prepare(overrides))


def first_rows(options: argparse.Namespace, folder: Path) -> Path:
    """The first rows of the file, as a file."""
    with open(options.file, encoding="utf-8") as lines:
        text = "".join(itertools.islice(lines, options.rows))
    (folder / "rows.jsonl").write_text(text, encoding="utf-8")
    return folder / "rows.jsonl"


def ours(options: argparse.Namespace, folder: Path) -> None:
    """The run of train.py."""
    import logging

    import lightning as L

    from alignlab import run

    pace = Pace(CLOCKS[options.cpu_time])
    config = composed(options, first_rows(options, folder), folder / "run")
    make = run.make_callbacks

    class Paced(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            pace.train_starts()

        def on_train_batch_end(self, *_: Any, **rest: Any) -> None:
            pace.step_done()

    def with_pace(*arguments: Any) -> Any:
        made = make(*arguments)
        made.all.append(Paced())
        return made

    run.make_callbacks = with_pace
    if options.show:
        logging.basicConfig(level=logging.INFO)
    run.execute(config, folder / "run", command_line=[])


def batches(options: argparse.Namespace, folder: Path, count: int) -> list[dict[str, Any]]:
    """The first batches that our run reads, in the form that transformers takes; or with --shuffled single rows."""
    from hydra.utils import instantiate

    from alignlab.build import data_of
    from alignlab.models.huggingface_config import read_config
    from alignlab.text.chat import with_turns
    from alignlab.text.tokenizer import Tokenizer

    config = composed(options, first_rows(options, folder), folder / "run")
    rows = instantiate(config.data, _convert_="all")
    tokenizer = with_turns(Tokenizer.from_folder(options.folder))
    data = data_of(config, rows, tokenizer, read_config(options.folder).context)
    shares, examples = data.train_shares(0), data.examples("train")
    chosen = (
        [[row] for row in range(len(examples))] if options.shuffled else [shares(at).indices for at in range(count)]
    )
    return [theirs_of(examples.batch(rows, examples.counts(rows), len(rows))) for rows in map(np.array, chosen)]


def theirs_of(batch: Any) -> dict[str, Any]:
    """A batch of ours as transformers takes it: a row of ours ends before its last token, which is only predicted."""
    import torch
    from torch.nn import functional as F

    labels = F.pad(batch.targets, (1, 0), value=-100)
    ids = torch.where(labels != -100, labels, F.pad(batch.ids, (0, 1)))
    mask = (torch.arange(ids.shape[1]) <= batch.lengths[:, None]).long()
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def joined(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One batch as it is, or single rows padded on the right to the longest."""
    import torch
    from torch.nn import functional as F

    longest = max(row["input_ids"].shape[1] for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {
        name: torch.cat([F.pad(row[name], (0, longest - row[name].shape[1]), value=value) for row in rows])
        for name, value in fill.items()
    }


def peft(options: argparse.Namespace, folder: Path) -> None:
    """peft with transformers.Trainer."""
    import lightning  # noqa: F401  what our data needs is no memory of theirs
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    import alignlab.run  # noqa: F401  as above

    pace = Pace(CLOCKS[options.cpu_time])

    class Paced(TrainerCallback):
        def on_train_begin(self, *_: Any, **rest: Any) -> None:
            pace.train_starts()

        def on_step_end(self, *_: Any, **rest: Any) -> None:
            pace.step_done()

        def on_log(self, *_: Any, logs: dict[str, Any], **rest: Any) -> None:
            if options.show:
                print(f"peft {logs.get('loss')}", file=sys.stderr)

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any) -> Any:
            if options.shuffled:
                return super()._get_train_sampler(*arguments)
            return SequentialSampler(self.train_dataset)

    read = batches(options, folder, (options.rounds + 1) * options.steps)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        output_dir=str(folder / "peft"), use_cpu=True, max_steps=ENDLESS, save_strategy="no", report_to="none",
        per_device_train_batch_size=options.batch if options.shuffled else 1, learning_rate=RATE,
        lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0, disable_tqdm=True,
        logging_strategy="steps" if options.show else "no", logging_steps=1, remove_unused_columns=False,
    )  # fmt: skip
    InOrder(
        model=get_peft_model(model, settings), args=arguments, train_dataset=read,
        data_collator=joined, callbacks=[Paced()],
    ).train()  # fmt: skip


CONTESTANTS = {"ours": ours, "peft": peft}


def measure(arguments: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of `steps` steps in each round, and the highest memory so far, of each contestant."""
    command = [sys.executable, __file__, *arguments, CHILD]
    children = {
        name: subprocess.Popen(
            [*command, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**(TIGHT if name == "ours" else {}), **os.environ},  # as train.py starts itself
        )
        for name in CONTESTANTS
    }
    found: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    try:
        for turn in range(options.rounds + 1):
            for name in list(children)[:: 1 if turn % 2 else -1]:
                child = children[name]
                assert child.stdin is not None, "opened with a pipe"
                assert child.stdout is not None, "opened with a pipe"
                child.stdin.write(f"{options.steps}\n")
                child.stdin.flush()
                reply = child.stdout.readline()
                if not reply:
                    raise RuntimeError(f"{name} ended early")
                found[name].append(json.loads(reply))
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    return {name: replies[1:] for name, replies in found.items()}  # the first round allocates


def main() -> None:
    """Runs both and prints ratios; with --child it is one of them."""
    global REPLY
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a Hugging Face folder, such as SmolLM2-135M-Instruct")
    parser.add_argument("file", help="alpaca rows: JSON lines of instruction, input, output")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row at most")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--shuffled", action="store_true", help="peft draws its batches as the Trainer does by itself")
    parser.add_argument("--cpu-time", action="store_true", help="of the processes, for a machine that does other work")
    parser.add_argument("--show", action="store_true", help="print losses")
    parser.add_argument(CHILD, choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        REPLY, sys.stdout = sys.stdout, sys.stderr  # libraries print too
        with tempfile.TemporaryDirectory() as folder:
            CONTESTANTS[options.child](options, Path(folder))
        return
    found = measure(sys.argv[1:], options)
    print(f"{'':6} {'ms a step':>10} {'least':>8} {'load MB':>9} {'steps MB':>9}")
    for name, rounds in found.items():
        times = [1000 * reply["seconds"] / options.steps for reply in rounds]
        last = rounds[-1]
        print(f"{name:6} {statistics.median(times):10.1f} {min(times):8.1f} {last['load']:9.0f} {last['steps']:9.0f}")
    seconds = [sum(reply["seconds"] for reply in found[name]) for name in ("ours", "peft")]
    memory = [max(rounds[-1]["load"], rounds[-1]["steps"]) for rounds in (found["ours"], found["peft"])]
    print(f"ours / peft: time {seconds[0] / seconds[1]:.2f}, memory {memory[0] / memory[1]:.2f}")


if __name__ == "__main__":
    main()
