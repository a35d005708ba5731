"""Real tokens per second of training on rows of different lengths: `python train.py` against transformers.Trainer.

    python benchmarks/padded_training.py alpaca.jsonl --task chat
    python benchmarks/padded_training.py ag_news.csv --task classification
    python benchmarks/padded_training.py ag_news.csv --task classification --ours "optim=muon"

Both train a Llama of the same shape from scratch on the same ids and targets, 16 rows a step, in one precision, AdamW
at the same rate, gradients clipped at 1. The peer has its default sampler and its usual collator, which pads each batch
to its longest row: DataCollatorForSeq2Seq for chat, DataCollatorWithPadding for classification. What counts is tokens
that are no padding.

Unusual: each contestant is a process that stays and takes steps only when it is told to, so that rounds are short and
interleaved, and a machine that slows down does so for both. The steps that are compared are not the same rows: either
side draws its own, hence many steps a round.
"""

import argparse
import os
import runpy
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[1]
ENDLESS = 10_000_000  # steps; the parent decides when to stop
BATCH = 16  # rows
RATE = 1e-3


class Shape(NamedTuple):
    """One model: a Llama with tied embeddings; `context` cuts rows."""

    layers: int
    heads: int
    width: int
    feedforward: int
    context: int


SHAPES = {"4x128": Shape(4, 4, 128, 384, 512), "6x256": Shape(6, 4, 256, 704, 512)}


class Pace:
    """The contestant's side: counts steps and tokens; when the steps that were ordered are done, tells and waits."""

    def __init__(self) -> None:
        self.replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print must not pass for a reply
        self.left, self.tokens, self.start = 0, 0, 0.0

    def wait(self) -> None:
        """Blocks until steps are ordered; ends the process when there are no more orders."""
        order = sys.stdin.readline()
        if not order:
            os._exit(0)  # without the ends of training that the libraries would still do
        self.left, self.tokens, self.start = int(order), 0, time.perf_counter()

    def step_done(self) -> None:
        """To be called after each optimizer step."""
        self.left -= 1
        if self.left <= 0:
            print(time.perf_counter() - self.start, self.tokens, file=self.replies, flush=True)
            self.wait()


def overrides(task: str, path: Path, shape: Shape, precision: str) -> list[str]:
    """The command line that trains the shape on the file, without validation on the way."""
    return [
        f"task={task}", "data=files", f"data.train={path}", "trainer=cpu", f"trainer.precision={precision}",
        "model=nano", "model.activation=swiglu", "model.qk_norm=false", f"model.layers={shape.layers}",
        f"model.heads={shape.heads}", f"model.width={shape.width}", f"model.feedforward={shape.feedforward}",
        f"model.context={shape.context}", f"datamodule.batch_size={BATCH}", "optim=adamw", f"optim.lr={RATE}",
        "trainer.max_epochs=null", f"trainer.max_steps={ENDLESS}", f"eval_every={ENDLESS}",
        "data.on_bad_row=skip",
    ]  # fmt: skip


def ours(pace: Pace, task: str, path: Path, shape: Shape, precision: str) -> None:
    """train.py itself, run in this process with one more callback in Lightning's Trainer; nothing else is changed."""
    import lightning.pytorch as L

    class Paced(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            pace.wait()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            pace.tokens += batch.tokens
            pace.step_done()

    build = L.Trainer.__init__

    def build_paced(self: L.Trainer, *args: Any, callbacks: list[L.Callback] | None = None, **rest: Any) -> None:
        build(self, *args, callbacks=[*(callbacks or []), Paced()], **rest)

    L.Trainer.__init__ = build_paced  # type: ignore[method-assign]  paces the steps of the real trainer
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [
            str(REPOSITORY / "train.py"),
            *overrides(task, path, shape, precision),
            f"hydra.run.dir={folder}/run",
        ]
        sys.argv += shlex.split(os.environ.get("OURS", ""))
        os.chdir(REPOSITORY)
        runpy.run_path(sys.argv[0], run_name="__main__")


def encoded(task: str, path: Path, shape: Shape) -> tuple[Any, list[dict[str, Any]], int]:
    """Our tokenizer, our rows as the lists of ids and labels that the peer is given, and the number of classes."""
    from alignlab.data.chat import Conversations
    from alignlab.data.labels import Labels
    from alignlab.rows.files import Files
    from alignlab.text.tokenizer import BPE

    rows = Files(train=str(path), on_bad_row="skip")  # some of alpaca's answers are empty
    kind: Any = Labels if task == "classification" else Conversations
    tokenizer = BPE().build(lambda: kind.texts(rows), rows.fingerprint("train"))
    train: Any = kind(rows=rows, tokenizer=tokenizer, max_length=shape.context).examples("train")
    labels = train.columns.get("labels")
    found = []
    for place, (start, stop) in enumerate(zip(train.offsets[:-1], train.offsets[1:], strict=True)):
        ids, learned = train.values[start:stop].tolist(), train.learned[start:stop]
        targets = [token if own else -100 for token, own in zip(ids, learned, strict=True)]
        found.append({"input_ids": ids, "labels": targets if labels is None else int(labels[place])})
    return tokenizer, found, 0 if labels is None else int(labels.max()) + 1


def peer(pace: Pace, task: str, path: Path, shape: Shape, precision: str) -> None:
    """transformers.Trainer with its defaults; nothing saved, nothing reported."""
    from transformers import (
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        LlamaConfig,
        LlamaForCausalLM,
        LlamaForSequenceClassification,
        PreTrainedTokenizerFast,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )  # fmt: skip

    class Paced(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **rest: Any) -> None:
            pace.wait()

        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            pace.step_done()

    own, rows, classes = encoded(task, path, shape)
    with tempfile.TemporaryDirectory() as folder:
        own.save(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        collator = (DataCollatorWithPadding if classes else DataCollatorForSeq2Seq)(tokenizer)

        def counted(examples: list[dict[str, Any]]) -> Any:
            pace.tokens += sum(len(example["input_ids"]) for example in examples)
            return collator(examples)

        config = LlamaConfig(
            vocab_size=own.vocab_size, hidden_size=shape.width, intermediate_size=shape.feedforward,
            num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=shape.context,
            tie_word_embeddings=True, pad_token_id=own.pad_id, bos_token_id=None, eos_token_id=own.eos_id,
            use_cache=False, num_labels=max(classes, 1),
        )  # fmt: skip
        model = (LlamaForSequenceClassification if classes else LlamaForCausalLM)(config)
        settings = TrainingArguments(
            output_dir=folder, use_cpu=True, bf16=precision == "bf16-mixed",
            per_device_train_batch_size=BATCH, max_steps=ENDLESS,
            learning_rate=RATE, weight_decay=0.1, max_grad_norm=1.0, save_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip
        Trainer(model=model, args=settings, train_dataset=rows, data_collator=counted, callbacks=[Paced()]).train()


class Contestant:
    """The parent's side of one process."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        command = [sys.executable, __file__, str(options.file.resolve()), "--task", options.task]
        self.process = subprocess.Popen(
            [*command, "--shape", options.shape, "--precision", options.precision, "--as", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"OURS": options.ours},
        )

    def take(self, steps: int) -> tuple[float, int]:
        """Seconds that it needs for `steps`, and real tokens; RuntimeError with the end of its log where it ended."""
        assert self.process.stdin is not None, "opened with a pipe"
        assert self.process.stdout is not None, "opened with a pipe"
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        if reply := self.process.stdout.readline().split():
            return float(reply[0]), int(reply[1])
        self.log.seek(0)
        raise RuntimeError(f"{self.name} ended early:\n{self.log.read()[-3000:]}")

    def end(self) -> None:
        """Ends the process."""
        self.process.kill()
        self.process.wait()
        self.log.close()


CONTESTANTS = {"ours": ours, "trainer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="rows of the task, in any format that data=files reads")
    parser.add_argument("--task", choices=("chat", "classification"), required=True)
    parser.add_argument("--shape", choices=SHAPES, default="4x128", help="layers x width")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40, help="in each round")
    parser.add_argument("--ours", default="", metavar="ARGS", help="more arguments for train.py")
    parser.add_argument("--as", dest="contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contestant:
        CONTESTANTS[options.contestant](Pace(), options.task, options.file, SHAPES[options.shape], options.precision)
        return
    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    contestants = [Contestant(name, options) for name in CONTESTANTS]
    try:
        for contestant in contestants:  # the first steps allocate
            contestant.take(5)
        for turn in range(options.rounds):
            for contestant in contestants if turn % 2 == 0 else reversed(contestants):
                time.sleep(0.2)  # the threads of the one before stop spinning
                seconds, tokens = contestant.take(options.steps)
                speeds[contestant.name].append(tokens / seconds)
                print(f"round {turn + 1}  {contestant.name:8} {tokens / seconds:10,.0f} tokens/s", flush=True)
    finally:
        for contestant in contestants:
            contestant.end()
    ratios = [own / other for own, other in zip(speeds["ours"], speeds["trainer"], strict=True)]
    for name, values in speeds.items():
        print(f"{name:8} median {statistics.median(values):10,.0f} real tokens/s")
    print(f"ratio    median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")


if __name__ == "__main__":
    main()
