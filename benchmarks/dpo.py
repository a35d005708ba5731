"""One DPO step against trl's trainer on a Llama of the same shape.

    python benchmarks/dpo.py
    python benchmarks/dpo.py --shape 6x256 --pairs 4 --answer 200

Both start from fresh weights of the same shape in fp32 and take AdamW steps over the same pairs: a prompt of `asked`
letters and two answers of half to all of `answer` letters, a byte a token. trl has its defaults but for what `theirs`
names: it asks the reference in every step; ours asks it once before the first step, which `with_reference` adds to
each step as if the rows were seen once. Rounds alternate, each in a process of its own; the first `warmup` steps of a
round are left out.
"""

import argparse
import copy
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def clock() -> float:
    """Seconds: of the wall, or with OMP_NUM_THREADS=1 of the processor, which a busy machine does not stretch."""
    return time.process_time() if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter()


def pairs_of(options: argparse.Namespace) -> list[dict[str, str]]:
    """As many pairs as the steps take, of uneven length."""
    draw = random.Random(0)

    def text(size: int) -> str:
        return "".join(draw.choices("etaoin shrdlu", k=size)).strip().ljust(size, ".")

    def answer() -> str:
        return text(draw.randint(options.answer // 2, options.answer))

    return [
        {"prompt": text(options.asked), "chosen": answer(), "rejected": answer()}
        for _ in range(options.steps * options.pairs)
    ]


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step of `python train.py task=dpo`, from inside its process."""
    sys.path.insert(0, str(ROOT))
    from hydra import compose, initialize_config_dir

    from alignlab.commandline import prepare
    from alignlab.run import execute
    from alignlab.tasks import dpo

    overrides = [
        "task=dpo", "data=files", "tokenizer=bytes", f"model.layers={options.layers}", f"model.width={options.width}",
        "model.heads=4", f"model.context={options.context}", f"datamodule.max_length={options.context}",
        f"datamodule.batch_size={options.pairs}", f"trainer.max_steps={options.steps}", "optim.lr=1e-6",
        "trainer.precision=32-true", "trainer.limit_val_batches=0", "test=false", "callbacks=none", "logger=none",
        f"eval_every={options.steps + 1}", f"checkpoint_every={options.steps + 1}", "data.holdout=0",
    ]  # fmt: skip
    marks: list[float] = []
    asking = [0.0]
    step, asked = dpo.DirectPreference.on_train_batch_end, dpo.DirectPreference._asked

    def ended(self: dpo.DirectPreference, *args: Any) -> None:
        step(self, *args)
        marks.append(clock())

    def timed(self: dpo.DirectPreference, *args: Any) -> Any:
        start = clock()
        said = asked(self, *args)
        asking[0] += clock() - start
        return said

    dpo.DirectPreference.on_train_batch_end = ended  # type: ignore[method-assign]  # times the real task's steps
    dpo.DirectPreference._asked = timed  # type: ignore[method-assign]  # and its reference
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "pairs.jsonl"
        rows.write_text("".join(json.dumps(one) + "\n" for one in pairs_of(options)), encoding="utf-8")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", prepare([*overrides, f"data.train={rows}", f"seed={time.time_ns() % 10**6}"]))
        execute(config, Path(folder) / "run", command_line=overrides)  # a new seed: the reference is in no cache
    assert asking[0] > 0, "the reference was not asked"
    seconds = _seconds(marks, options.warmup)
    return {"seconds": seconds, "with_reference": seconds + asking[0] / options.steps}


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """The same of trl's DPOTrainer."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from alignlab.text.tokenizer import Bytes

    with tempfile.TemporaryDirectory() as folder:
        Bytes().build(lambda: (), "").save(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        shape = LlamaConfig(
            vocab_size=260, hidden_size=options.width, num_hidden_layers=options.layers, num_attention_heads=4,
            intermediate_size=options.units, max_position_embeddings=options.context, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )  # fmt: skip
        marks: list[float] = []

        class Clock(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                marks.append(clock())

        around = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
        rows = [{**row, "prompt": around.format(row["prompt"])} for row in pairs_of(options)]
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=options.pairs, max_steps=options.steps, learning_rate=1e-6,
            max_length=options.context, report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True,
            bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        model = LlamaForCausalLM(shape)
        DPOTrainer(
            model=model, ref_model=copy.deepcopy(model), args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_list(rows), callbacks=[Clock()],
        ).train()  # fmt: skip
    return {"seconds": _seconds(marks, options.warmup)}


def _seconds(marks: list[float], warmup: int) -> float:
    """Mean, since the lengths of the pairs differ from step to step."""
    return (marks[-1] - marks[warmup]) / (len(marks) - 1 - warmup)


def main() -> None:
    """Alternates the two, and prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4x128", help="layers x width")
    for name, value in (("pairs", 8), ("asked", 100), ("answer", 150), ("steps", 30), ("warmup", 3), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--contestant", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers, options.width = map(int, options.shape.split("x"))
    options.units = -(-options.width * 8 // 3 // 64) * 64  # as the GPT's own default
    options.context = options.asked + options.answer + 64
    if options.contestant is not None:
        print(json.dumps({"ours": ours, "trl": theirs}[options.contestant](options)))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    for _ in range(options.rounds):
        for name, rounds in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--contestant", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, rounds[-1], flush=True)
    one, other = (statistics.median(own["seconds"] for own in found[name]) for name in ("ours", "trl"))
    whole = statistics.median(own["with_reference"] for own in found["ours"])
    print(f"ours {one * 1e3:.1f} ms, trl {other * 1e3:.1f} ms a step: {other / one:.2f}x")
    print(f"with the reference asked for every row: {whole * 1e3:.1f} ms, {other / whole:.2f}x")


if __name__ == "__main__":
    main()
