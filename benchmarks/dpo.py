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
import random
import statistics
import tempfile
import time
from typing import Any

from against_trl import alternated, asked, clock, llama, parsed, train_ours

DEFAULTS = {"pairs": 8, "asked": 100, "answer": 150, "steps": 30, "warmup": 3, "rounds": 3}


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
    from alignlab.tasks import dpo

    marks: list[float] = []
    asking = [0.0]
    step, ask = dpo.DirectPreference.on_train_batch_end, dpo.DirectPreference._asked

    def ended(self: dpo.DirectPreference, *args: Any) -> None:
        step(self, *args)
        marks.append(clock())

    def timed(self: dpo.DirectPreference, *args: Any) -> Any:
        start = clock()
        said = ask(self, *args)
        asking[0] += clock() - start
        return said

    dpo.DirectPreference.on_train_batch_end = ended  # type: ignore[method-assign]  # times the real task's steps
    dpo.DirectPreference._asked = timed  # type: ignore[method-assign]  # and its reference
    seed = time.time_ns() % 10**6  # a new one: the reference is in no cache
    overrides = ["task=dpo", f"datamodule.batch_size={options.pairs}", "data.holdout=0", f"seed={seed}"]
    train_ours(overrides, pairs_of(options), options)
    assert asking[0] > 0, "the reference was not asked"
    seconds = _seconds(marks, options.warmup)
    return {"seconds": seconds, "with_reference": seconds + asking[0] / options.steps}


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """The same of trl's DPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    marks: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append(clock())

    rows = [{**row, "prompt": asked(row["prompt"])} for row in pairs_of(options)]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = llama(folder, options)
        settings = DPOConfig(
            output_dir=folder, per_device_train_batch_size=options.pairs, max_steps=options.steps, learning_rate=1e-6,
            max_length=options.context, report_to=[], save_strategy="no", logging_strategy="no", use_cpu=True,
            bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
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
    options = parsed(__doc__, DEFAULTS)
    options.context = options.asked + options.answer + 64
    found = alternated(__file__, options, {"ours": ours, "trl": theirs})
    one, other = (statistics.median(own["seconds"] for own in found[name]) for name in ("ours", "trl"))
    whole = statistics.median(own["with_reference"] for own in found["ours"])
    print(f"ours {one * 1e3:.1f} ms, trl {other * 1e3:.1f} ms a step: {other / one:.2f}x")
    print(f"with the reference asked for every row: {whole * 1e3:.1f} ms, {other / whole:.2f}x")


if __name__ == "__main__":
    main()
