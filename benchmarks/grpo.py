"""One GRPO iteration, rollout and update, against trl's trainer on a Llama of the same shape.

    python benchmarks/grpo.py
    python benchmarks/grpo.py --asked 200 --rounds 3
    python benchmarks/grpo.py --shape 6x256 --prompts 4 --samples 16

Both start from fresh weights of the same shape in fp32, draw `samples` answers of `tokens` bytes to each of
`prompts` prompts, reward the share of the letter e, and take one AdamW step of GRPO without a reference. A prompt is an
addition behind `asked` letters of a text. No answer ends before `tokens`, so both do the same work. trl has its
defaults but for what `theirs` names. Rounds alternate, each in a process of its own; the first `warmup` iterations of a
round are left out. Beside it: answered tokens a second of our rollouts, rewards and all, over those of the bare
generator, which answers the same prompts in the same process right after each of them.
"""

import argparse
import statistics
import tempfile
from typing import Any

from against_trl import alternated, asked, clock, llama, parsed, train_ours

TEXT = "A box holds apples, pears and plums. " * 30
DEFAULTS = {"prompts": 8, "samples": 8, "tokens": 64, "asked": 0, "steps": 12, "warmup": 2, "rounds": 3}


def share(completions: list[str]) -> list[float]:
    """What is rewarded: how much of an answer is the letter e."""
    return [one.count("e") / max(1, len(one)) for one in completions]


def prompts_of(options: argparse.Namespace) -> list[str]:
    """Additions behind some words."""
    from alignlab.rows.puzzles import Arithmetic

    return [TEXT[: options.asked] + row["prompt"] for row in Arithmetic().read("train", "prompts")]


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Seconds an iteration and answered tokens a second of `python train.py task=grpo`, from inside its process."""
    marks: list[tuple[float, float]] = []
    rollouts: list[tuple[float, float]] = []
    _time_rollouts(marks, rollouts)
    overrides = [
        "task=grpo", f"task.samples={options.samples}", f"task.max_new_tokens={options.tokens}",
        f"datamodule.batch_size={options.prompts}", "trust=[grpo]",
        "task.rewards={share:{_target_:grpo.rewarded,_partial_:true}}",
    ]  # fmt: skip
    train_ours(overrides, ({"prompt": one} for one in prompts_of(options)), options)
    drawing, rates = (statistics.median(column) for column in zip(*rollouts[options.warmup :], strict=True))
    return _speed(marks, options.warmup) | {"rollout": drawing, "of_bare": rates}


def rewarded(prompts: list[str], completions: list[str], references: list[str | None]) -> list[float]:
    """`share` as a reward of ours."""
    return share(completions)


def _time_rollouts(marks: list[tuple[float, float]], rollouts: list[tuple[float, float]]) -> None:
    """Notes the end of each step, each rollout's seconds and its speed over the bare generator's, not counted."""
    from alignlab.tasks import grpo

    roll_out, draw, step = grpo.GroupPolicy._roll_out, grpo.generate_all, grpo.GroupPolicy.on_train_batch_end
    given: list[Any] = []
    apart = [0.0]

    def drawn(*args: Any, **named: Any) -> Any:
        given[:] = [args, named | {"eos_ids": ()}]
        return draw(*args, **given[1])

    def rolled(self: grpo.GroupPolicy, batch: Any) -> None:
        start = clock()
        roll_out(self, batch)
        end = clock()
        with self.while_generating():
            answers = draw(*given[0], **given[1])
        apart[0] += (bare := clock() - end)
        tokens = sum(len(one.ids) for one in answers)
        rollouts.append((end - start, self.rollout_tokens / (end - start) / (tokens / bare)))

    def ended(self: grpo.GroupPolicy, *args: Any) -> None:
        step(self, *args)
        marks.append((clock() - apart[0], self.rollout_tokens))

    grpo.generate_all = drawn
    grpo.GroupPolicy._roll_out = rolled  # type: ignore[method-assign]  # times the real policy's rollouts
    grpo.GroupPolicy.on_train_batch_end = ended  # type: ignore[method-assign]  # and its steps


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """The same of trl's GRPOTrainer."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    marks: list[tuple[float, float]] = []
    tokens = [0.0]

    def reward(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
        tokens[0] = float(sum(map(len, completion_ids)))
        return share(completions)

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            marks.append((clock(), tokens[0]))

    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = llama(folder, options)
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=options.prompts * options.samples,
            num_generations=options.samples, max_completion_length=options.tokens, max_steps=options.steps,
            learning_rate=1e-6, beta=0.0, loss_type="grpo", report_to=[], save_strategy="no", logging_strategy="no",
            use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
            generation_kwargs={"min_new_tokens": options.tokens},
        )  # fmt: skip
        GRPOTrainer(
            model=model, reward_funcs=reward, args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": [asked(one) for one in prompts_of(options)]}),
            callbacks=[Clock()],
        ).train()  # fmt: skip
    return _speed(marks, options.warmup)


def _speed(marks: list[tuple[float, float]], warmup: int) -> dict[str, float]:
    seconds = [now - before for (before, _), (now, _) in zip(marks[warmup:], marks[warmup + 1 :], strict=False)]
    tokens = [answered for _, answered in marks[warmup + 1 :]]
    return {"seconds": statistics.median(seconds), "tokens_per_second": sum(tokens) / sum(seconds)}


def main() -> None:
    """Alternates the two, and prints medians and their ratio."""
    options = parsed(__doc__, DEFAULTS)
    options.context = options.asked + options.tokens + 64
    found = alternated(__file__, options, {"ours": ours, "trl": theirs})
    speeds = {name: statistics.median(one["tokens_per_second"] for one in rounds) for name, rounds in found.items()}
    print(
        f"ours {speeds['ours']:,.0f}, trl {speeds['trl']:,.0f} answered tokens/s: {speeds['ours'] / speeds['trl']:.2f}x"
    )
    bare = statistics.median(one["of_bare"] for one in found["ours"])
    print(f"our rollouts run at {bare:.0%} of the bare generator's answered tokens/s")


if __name__ == "__main__":
    main()
