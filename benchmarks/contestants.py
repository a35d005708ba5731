"""The contestants of training_step.py, each a process that stays and takes steps only when told to.

    python benchmarks/contestants.py NAME FILE SHAPE        # started by training_step.py, not by a person

A line on standard input orders a number of steps; the answer on standard output is the seconds that they took. The
end of the input ends the process. Nothing heavy is imported before a contestant needs it, since litgpt's environment
has neither alignlab nor transformers, and ours has no litgpt.
"""

import os
import runpy
import shlex
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).parents[1]
VOCABULARY = 260  # our bytes and specials
ENDLESS = 10_000_000  # steps; the parent decides when to stop


class Shape(NamedTuple):
    """One model and batch; context in tokens, batch in windows."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int


SHAPES = {"4x128": Shape(4, 4, 128, 64, 12), "6x384": Shape(6, 6, 384, 256, 16)}


class Pace:
    """The contestant's side: counts steps, and when those that were ordered are done, tells the seconds and waits."""

    def __init__(self) -> None:
        self.replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what the libraries print must not pass for a reply
        self.left = 0
        self.start = 0.0

    def wait(self) -> None:
        """Blocks until steps are ordered; ends the process when there are no more orders."""
        order = sys.stdin.readline()
        if not order:
            os._exit(0)  # without the ends of training that the libraries would still do
        self.left, self.start = int(order), time.perf_counter()

    def step_done(self) -> None:
        """To be called after each optimizer step."""
        self.left -= 1
        if self.left <= 0:
            print(time.perf_counter() - self.start, file=self.replies, flush=True)
            self.wait()


def loop(pace: Pace, shape: Shape, ids: Any, model: Any, loss: "Callable[[Any, Any], Any]") -> None:
    """A bare PyTorch loop; `loss` of inputs and targets, both (batch, context)."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    model.train()
    pace.wait()
    while True:
        first = torch.randint(len(ids) - shape.context, (shape.batch,)).tolist()
        windows = torch.stack([ids[place : place + shape.context + 1] for place in first])
        loss(windows[:, :-1], windows[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.step_done()


def byte_ids(path: Path) -> Any:
    """The file as byte ids (N,)."""
    import torch

    return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).long()


def bare(pace: Pace, shape: Shape, path: Path, positions: str = "learned") -> None:
    """A loop over our GPT."""
    import torch.nn.functional as F

    from alignlab.models.config import GPTConfig
    from alignlab.models.gpt import GPT

    config = GPTConfig(
        layers=shape.layers,
        heads=shape.heads,
        width=shape.width,
        context=shape.context,
        vocabulary=VOCABULARY,
        norm="layer",
        positions=positions,
        activation="gelu_tanh",
        bias="all",
    )
    model = GPT(config)
    loop(
        pace,
        shape,
        byte_ids(path),
        model,
        lambda ids, targets: F.cross_entropy(model.unembed(model(ids)).flatten(0, 1), targets.flatten()),
    )


def bare_rotary(pace: Pace, shape: Shape, path: Path) -> None:
    """As bare, with rotary positions."""
    bare(pace, shape, path, positions="rotary")


def litgpt(pace: Pace, shape: Shape, path: Path) -> None:
    """A loop over litgpt's model, tied like ours."""
    import torch.nn.functional as F
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config(
        block_size=shape.context,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.width,
        vocab_size=VOCABULARY,
        padded_vocab_size=VOCABULARY,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        gelu_approximate="tanh",
    )
    model = GPT(config)
    model.lm_head.weight = model.transformer.wte.weight
    loop(
        pace,
        shape,
        byte_ids(path),
        model,
        lambda ids, targets: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()),
    )


def trainer(pace: Pace, shape: Shape, path: Path) -> None:
    """transformers.Trainer with its defaults; nothing saved, nothing reported."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Paced(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **rest: Any) -> None:
            pace.wait()

        def on_step_end(self, *arguments: Any, **rest: Any) -> None:
            pace.step_done()

    ids = byte_ids(path)
    windows = ids[: len(ids) // shape.context * shape.context].view(-1, shape.context)
    rows = [{"input_ids": window, "labels": window} for window in windows]  # the model shifts the labels itself
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=shape.context, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder, use_cpu=True, per_device_train_batch_size=shape.batch, max_steps=ENDLESS,
            learning_rate=1e-3, weight_decay=0.1, max_grad_norm=1.0, save_strategy="no", report_to="none",
        )  # fmt: skip
        Trainer(model=GPT2LMHeadModel(config), args=settings, train_dataset=rows, callbacks=[Paced()]).train()


def lightning(pace: Pace, shape: Shape, path: Path, arguments: str = "") -> None:
    """train.py itself, run in this process with one more callback in Lightning's Trainer; nothing else is changed."""
    import lightning.pytorch as L

    class Paced(L.Callback):
        def on_train_start(self, *_: Any) -> None:
            pace.wait()

        def on_train_batch_end(self, *_: Any) -> None:
            pace.step_done()

    build = L.Trainer.__init__

    def build_paced(self: L.Trainer, *args: Any, callbacks: list[L.Callback] | None = None, **rest: Any) -> None:
        build(self, *args, callbacks=[*(callbacks or []), Paced()], **rest)

    L.Trainer.__init__ = build_paced  # type: ignore[method-assign]  paces the steps of the real trainer
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = [str(REPOSITORY / "train.py"), *overrides(shape, path), f"hydra.run.dir={folder}/run"]
        sys.argv += shlex.split(arguments + " " + os.environ.get("OURS", ""))
        os.chdir(REPOSITORY)
        runpy.run_path(sys.argv[0], run_name="__main__")


def overrides(shape: Shape, path: Path) -> list[str]:
    """The command line that gives train.py the model and batch of `bare`, and no validation on the way."""
    return [
        "task=pretrain", "data=files", f"data.train={path}", "tokenizer=bytes", "trainer=cpu",
        "trainer.precision=32-true", "model=nano",
        f"model.layers={shape.layers}", f"model.heads={shape.heads}", f"model.width={shape.width}",
        f"model.context={shape.context}", "model.kv_heads=null", "model.head_width=null", "model.feedforward=null",
        "model.norm=layer", "model.positions=learned", "model.activation=gelu_tanh", "model.bias=all",
        "model.qk_norm=false", "model.window=null", "model.tied=true", f"datamodule.batch_size={shape.batch}",
        "optim=adamw", "optim.lr=1e-3", f"trainer.max_steps={ENDLESS}", f"eval_every={ENDLESS}",
    ]  # fmt: skip


def fast(pace: Pace, shape: Shape, path: Path) -> None:
    """As lightning, compiled and in bf16."""
    lightning(pace, shape, path, "compile=true trainer.precision=bf16-mixed")


CONTESTANTS = {entry.__name__: entry for entry in (bare, lightning, fast, trainer, bare_rotary, litgpt)}


if __name__ == "__main__":
    NAME, FILE, SHAPE = sys.argv[1:]
    CONTESTANTS[NAME](Pace(), SHAPES[SHAPE], Path(FILE))
