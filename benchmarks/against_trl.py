"""What dpo.py and grpo.py share: one shape for both sides, one clock, and rounds that alternate in processes."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Found = dict[str, float]  # what one round of one contestant measured


def clock() -> float:
    """Seconds: of the wall, or with OMP_NUM_THREADS=1 of the processor, which a busy machine does not stretch."""
    return time.process_time() if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter()


def parsed(about: str | None, numbers: dict[str, int]) -> argparse.Namespace:
    """The command line: the shape of the model, and each of `numbers` as an option with that default."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="4x128", help="layers x width")
    for name, value in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--contestant", choices=["ours", "trl"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.layers, options.width = map(int, options.shape.split("x"))
    options.units = -(-options.width * 8 // 3 // 64) * 64  # as the GPT's own default
    return options


def train_ours(overrides: list[str], rows: Iterable[dict], options: argparse.Namespace) -> None:
    """`python train.py` with `overrides` over `rows`, in this process, with nothing beside the steps."""
    sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
    from hydra import compose, initialize_config_dir

    from alignlab.commandline import prepare
    from alignlab.run import execute

    overrides = [
        *overrides, "data=files", "tokenizer=bytes", f"model.layers={options.layers}", f"model.width={options.width}",
        "model.heads=4", f"model.context={options.context}", f"datamodule.max_length={options.context}",
        f"trainer.max_steps={options.steps}", "optim.lr=1e-6", "trainer.precision=32-true",
        "trainer.limit_val_batches=0", "test=false", "callbacks=none", "logger=none",
        f"eval_every={options.steps + 1}", f"checkpoint_every={options.steps + 1}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose("config", prepare([*overrides, f"data.train={file}"]))
        execute(config, Path(folder) / "run", command_line=overrides)


def llama(folder: str, options: argparse.Namespace) -> tuple[Any, Any]:
    """A fresh Llama of the shape, and the byte tokenizer, written to `folder`, as transformers reads it."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from alignlab.text.tokenizer import Bytes

    Bytes().build(lambda: (), "").save(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=260, hidden_size=options.width, num_hidden_layers=options.layers, num_attention_heads=4,
        intermediate_size=options.units, max_position_embeddings=options.context, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(shape), tokenizer


def asked(prompt: str) -> str:
    """A prompt in the turns that our task puts around it."""
    return f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def alternated(
    script: str, options: argparse.Namespace, contestants: dict[str, Callable[[argparse.Namespace], Found]]
) -> dict[str, list[Found]]:
    """The rounds of each contestant, one after another; in the process of one contestant, runs it, and exits."""
    if options.contestant is not None:
        print(json.dumps(contestants[options.contestant](options)))
        raise SystemExit
    found: dict[str, list[Found]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, rounds in found.items():
            command = [sys.executable, script, *sys.argv[1:], "--contestant", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            rounds.append(json.loads(done.stdout.splitlines()[-1]))
            print(name, rounds[-1], flush=True)
    return found
