"""Memory and time of one LoRA step on a CPU: ours against peft with transformers.Trainer.

    python benchmarks/lora.py smollm2/ alpaca/train.jsonl --batch 4 --rounds 7 --steps 4

Both fine-tune the same folder on the same rows in the same order: rank 8 on query and value, fp32, AdamW, gradients
clipped at 1, prompt masked, padded to the longest row of each batch.
  ours      a PyTorch loop over our GPT with tuning=lora and our loss: logits only where a target is
  peft      transformers.Trainer over get_peft_model(AutoModelForCausalLM)

Unusual: each is a process that stays and takes some steps when it is told to, so that rounds are interleaved. Memory is
the highest resident set since its libraries were imported, less what it held then: the load of the model counts.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHILD = "--child"
RANK, ALPHA, RATE = 8, 16, 2e-4
ENDLESS = 10**6  # steps


class Pace:
    """The child's side: says how long its steps took and how much memory it has needed."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident set counts from here
        self.idle = resident("VmRSS")
        self.left = 0
        self.started = 0.0

    def wait(self) -> None:
        """Until the parent asks for steps; ends with it."""
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self.left, self.started = int(line), time.perf_counter()

    def step_done(self) -> None:
        """Counts one, and reports after the last."""
        self.left -= 1
        if not self.left:
            seconds = time.perf_counter() - self.started
            print(json.dumps({"seconds": seconds, "mb": resident("VmHWM") - self.idle}), file=REPLY, flush=True)
            self.wait()


REPLY = sys.stdout


def resident(name: str) -> float:
    """A line of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


def examples(folder: str, file: str, count: int, length: int) -> list[dict[str, list[int]]]:
    """Alpaca rows as ids and labels, the prompt's labels -100."""
    from alignlab.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(folder)
    found = []
    with open(file, encoding="utf-8") as lines:
        for row in map(json.loads, itertools.islice(lines, count)):
            question = "\n".join(part for part in (row["instruction"], row["input"]) if part)
            prompt = tokenizer.encode(f"### Instruction:\n{question}\n\n### Response:\n")
            answer = [*tokenizer.encode(row["output"]), tokenizer.eos_id]
            labels = [-100] * len(prompt) + answer
            found.append({"input_ids": (prompt + answer)[:length], "labels": labels[:length]})
    return found


def padded(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
    """A batch padded on the right to its longest row."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.tensor([row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows])
    labels = torch.tensor([row["labels"] + [-100] * (longest - len(row["labels"])) for row in rows])
    mask = torch.tensor([[1] * len(r["input_ids"]) + [0] * (longest - len(r["input_ids"])) for r in rows])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def batches(rows: list[dict[str, list[int]]], size: int) -> Iterator[dict[str, Any]]:
    """In the rows' order, again and again."""
    for start in itertools.cycle(range(0, len(rows) - size + 1, size)):
        yield padded(rows[start : start + size])


def ours(options: argparse.Namespace) -> None:
    """Our GPT, layers and loss."""
    from types import SimpleNamespace

    from torch import nn

    from alignlab.losses import cross_entropy
    from alignlab.models.huggingface import from_folder
    from alignlab.optim import AdamW
    from alignlab.tuning import LoRA

    pace = Pace()
    rows = examples(options.folder, options.file, options.rows, options.length)
    model = from_folder(options.folder).train()
    optim = AdamW(lr=RATE, weight_decay=0.0, schedule="constant")
    names = lambda: ((f"model.{name}", parameter) for name, parameter in model.named_parameters())  # noqa: E731  short, and used once
    task = SimpleNamespace(model=model, optim=optim, named_parameters=names)
    LoRA(rank=RANK, alpha=float(ALPHA), targets=["query", "value"]).apply(task)
    optimizer = optim.build(names())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pace.wait()
    for batch in batches(rows, options.batch):
        # padding stands behind every text, where a causal model does not look
        targets = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
        loss = cross_entropy(model.unembed, model(batch["input_ids"]), targets) / (targets != -100).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if options.show:
            print(f"ours {float(loss.detach()):.6f}", file=sys.stderr)
        pace.step_done()


def peft(options: argparse.Namespace) -> None:
    """peft with transformers.Trainer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    pace = Pace()

    class Paced(TrainerCallback):
        def on_train_begin(self, *_: Any, **rest: Any) -> None:
            pace.wait()

        def on_step_end(self, *_: Any, **rest: Any) -> None:
            pace.step_done()

        def on_log(self, *_: Any, logs: dict[str, Any], **rest: Any) -> None:
            if options.show:
                print(f"peft {logs.get('loss')}", file=sys.stderr)

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    rows = examples(options.folder, options.file, options.rows, options.length)
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.float32)
    settings = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=options.batch, max_steps=ENDLESS,
            learning_rate=RATE, lr_scheduler_type="constant", weight_decay=0.0, adam_beta2=0.95, max_grad_norm=1.0,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="steps" if options.show else "no",
            logging_steps=1,
        )  # fmt: skip
        model = get_peft_model(model, settings)
        InOrder(model=model, args=arguments, train_dataset=rows, data_collator=padded, callbacks=[Paced()]).train()


CONTESTANTS = {"ours": ours, "peft": peft}


def measure(arguments: list[str], options: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Seconds of `steps` steps in each round, and the highest memory so far, of each contestant."""
    command = [sys.executable, __file__, *arguments, CHILD]
    children = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
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
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of a row at most")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="in each round")
    parser.add_argument("--show", action="store_true", help="print losses")
    parser.add_argument(CHILD, choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        REPLY, sys.stdout = sys.stdout, sys.stderr  # libraries print too
        CONTESTANTS[options.child](options)
        return
    found = measure(sys.argv[1:], options)
    print(f"{'':6} {'ms a step':>10} {'least':>8} {'peak MB':>9}")
    for name, rounds in found.items():
        times = [1000 * reply["seconds"] / options.steps for reply in rounds]
        print(f"{name:6} {statistics.median(times):10.1f} {min(times):8.1f} {rounds[-1]['mb']:9.0f}")
    pairs = list(zip(found["ours"], found["peft"], strict=True))
    seconds = statistics.median(one["seconds"] / other["seconds"] for one, other in pairs)
    memory = found["ours"][-1]["mb"] / found["peft"][-1]["mb"]
    print(f"ours / peft: time {seconds:.2f}, memory {memory:.2f}")


if __name__ == "__main__":
    main()
