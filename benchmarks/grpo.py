"""One GRPO iteration, rollout and update, against trl's trainer on a Llama of the same shape.

    python benchmarks/grpo.py
    python benchmarks/grpo.py --shape 4x128 --prompts 16 --samples 8 --tokens 64 --rounds 3

Both start from fresh weights of the same shape in fp32, draw `samples` answers of at most `tokens` bytes to each of
`prompts` additions, reward their length, and take one AdamW step. Rounds alternate, each in a process of its own; the
first `warmup` iterations of a round are left out. What counts is answered tokens a second, for answers end by chance.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def ours(options: argparse.Namespace) -> dict[str, float]:
    """Seconds an iteration and answered tokens a second of `python train.py task=grpo`, from inside its process."""
    sys.path.insert(0, str(ROOT))
    from hydra import compose, initialize_config_dir

    from alignlab.commandline import prepare
    from alignlab.generate.engine import generate_all
    from alignlab.run import execute
    from alignlab.tasks import grpo

    layers, width = options.layers, options.width
    overrides = [
        "task=grpo", "data=arithmetic", "tokenizer=bytes", f"model.layers={layers}", f"model.width={width}",
        "model.heads=4", "model.context=256", f"task.samples={options.samples}",
        f"task.max_new_tokens={options.tokens}",
        f"datamodule.batch_size={options.prompts}", f"trainer.max_steps={options.steps}", "optim.lr=1e-5",
        "trainer.precision=32-true", "trainer.limit_val_batches=0", "test=false", "callbacks=none", "logger=none",
        "task.rewards={length:{_target_:alignlab.rewards.Length}}", f"eval_every={options.steps + 1}",
        f"checkpoint_every={options.steps + 1}",
    ]  # fmt: skip
    marks: list[tuple[float, float]] = []
    drawing = [0.0]
    count, draw = grpo.GroupPolicy._count, generate_all

    def counted(self: grpo.GroupPolicy, *given: object) -> None:
        count(self, *given)  # type: ignore[arg-type]  # handed on as they are
        marks.append((time.perf_counter(), self.rollout_tokens))

    def drawn(*given: object, **named: object) -> object:
        start = time.perf_counter()
        answers = draw(*given, **named)  # type: ignore[arg-type]  # handed on as they are
        drawing.append(time.perf_counter() - start)
        return answers

    grpo.GroupPolicy._count = counted  # type: ignore[method-assign]  # times the real policy's rollouts
    grpo.generate_all = drawn  # type: ignore[assignment]  # and its generator
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", prepare(overrides))
    with tempfile.TemporaryDirectory() as folder:
        execute(config, Path(folder) / "run", command_line=overrides)
    return _speed(marks, options.warmup) | {"drawing_share": sum(drawing[2:]) / (marks[-1][0] - marks[0][0])}


def theirs(options: argparse.Namespace) -> dict[str, float]:
    """The same of trl's GRPOTrainer."""
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from alignlab.rows.puzzles import Arithmetic
    from alignlab.text.tokenizer import Bytes

    with tempfile.TemporaryDirectory() as folder:
        Bytes().build(lambda: (), "").save(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        shape = LlamaConfig(
            vocab_size=260, hidden_size=options.width, num_hidden_layers=options.layers, num_attention_heads=4,
            intermediate_size=options.units, max_position_embeddings=256, tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
        )  # fmt: skip
        marks: list[tuple[float, float]] = []
        tokens = [0.0]

        def length(completions: list[str], completion_ids: list[list[int]], **_: object) -> list[float]:
            tokens[0] = float(sum(map(len, completion_ids)))
            return [min(1.0, len(one) / 200) for one in completions]

        class Clock(TrainerCallback):
            def on_step_end(self, *_: object, **__: object) -> None:
                marks.append((time.perf_counter(), tokens[0]))

        prompts = [f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
                   for row in Arithmetic().read("train", "prompts")]  # fmt: skip
        settings = GRPOConfig(
            output_dir=folder, per_device_train_batch_size=options.prompts * options.samples,
            num_generations=options.samples, max_completion_length=options.tokens, max_steps=options.steps,
            learning_rate=1e-5, beta=0.0, loss_type="grpo", report_to=[], save_strategy="no", logging_strategy="no",
            use_cpu=True, bf16=False, disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        GRPOTrainer(
            model=LlamaForCausalLM(shape), reward_funcs=length, args=settings, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": prompts}), callbacks=[Clock()],
        ).train()  # fmt: skip
    return _speed(marks, options.warmup)


def _speed(marks: list[tuple[float, float]], warmup: int) -> dict[str, float]:
    seconds = [now - before for (before, _), (now, _) in zip(marks[warmup:], marks[warmup + 1 :], strict=False)]
    tokens = [answered for _, answered in marks[warmup + 1 :]]
    return {"seconds": statistics.median(seconds), "tokens_per_second": sum(tokens) / sum(seconds)}


def main() -> None:
    """Alternates the two, and prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4x128", help="layers x width")
    for name, value in (("prompts", 8), ("samples", 8), ("tokens", 64), ("steps", 12), ("warmup", 2), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--contestant", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers, options.width = map(int, options.shape.split("x"))
    options.units = -(-options.width * 8 // 3 // 64) * 64  # as the GPT's own default
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
    speeds = {name: statistics.median(one["tokens_per_second"] for one in rounds) for name, rounds in found.items()}
    print(
        f"ours {speeds['ours']:,.0f}, trl {speeds['trl']:,.0f} answered tokens/s: {speeds['ours'] / speeds['trl']:.2f}x"
    )
    share = statistics.median(one["drawing_share"] for one in found["ours"])
    print(f"of our iteration {share:.0%} is drawing")


if __name__ == "__main__":
    main()
