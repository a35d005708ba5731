"""Tiny Shakespeare by nanoGPT's CPU recipe, and by ours: wall seconds and nats per character in the same run.

    python benchmarks/shakespeare_peer.py input.txt                                  # the peer alone
    python benchmarks/shakespeare_peer.py input.txt --ours "" --repeats 3            # in alternation with ours
    python benchmarks/shakespeare_peer.py input.txt --ours "compile=true optim.lr=0.02"
    python benchmarks/shakespeare_peer.py input.txt --ours "" --experiment shakespeare_long  # how far in the same time

The peer is the recipe of nanoGPT's README for a CPU, as a bare loop over transformers' GPT2LMHeadModel: 4 layers, 4
heads, 128 wide, context 64, batch 12, 2,000 steps of AdamW (1e-3 to 1e-4 by cosine, 100 steps of warm-up, betas 0.9
and 0.99, decay 0.1 on matrices), clipping at 1, no dropout, one token per character, unfused as nanoGPT does it on
a CPU (`--fused` gives it the faster kernel). Seconds: from fetching the first batch to the end of the last step, with
nothing else in between; ours are the same by definition (`train/seconds`). The last tenth of the characters is
validation, all of it read in windows that do not overlap.
"""

import argparse
import json
import math
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, CONTEXT, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP_STEPS, LR, MIN_LR = 2000, 100, 1e-3, 1e-4
REPOSITORY = Path(__file__).parents[1]

# B batch, T tokens, V vocabulary


class Result(NamedTuple):
    """What one training run took and reached."""

    seconds: float
    nats_per_character: float


def splits(text: str) -> tuple[Tensor, Tensor, int]:
    """Training and validation ids and the vocabulary: one id for each distinct character."""
    characters = {character: index for index, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([characters[character] for character in text])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(characters)


def gpt2(vocabulary: int) -> nn.Module:
    """The peer's model, freshly initialized."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=CONTEXT,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def rate(step: int) -> float:
    """nanoGPT's schedule: a line up to the peak, then half a cosine down to MIN_LR."""
    if step < WARMUP_STEPS:
        return LR * (step + 1) / (WARMUP_STEPS + 1)
    done = (step - WARMUP_STEPS) / (STEPS - WARMUP_STEPS)
    return MIN_LR + 0.5 * (1 + math.cos(math.pi * done)) * (LR - MIN_LR)


def cross_entropy(model: nn.Module, ids: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
    """Nats of targets (B, T) given ids (B, T)."""
    return F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten(), reduction=reduction)


def train(model: nn.Module, ids: Tensor, *, steps: int, is_fused: bool) -> float:
    """Trains in place; seconds from the first batch to the end of the last step."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    rest = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.99), fused=is_fused)
    model.train()
    start = time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        first = torch.randint(len(ids) - CONTEXT, (BATCH,)).tolist()
        windows = torch.stack([ids[place : place + CONTEXT + 1] for place in first])  # (B, T + 1)
        cross_entropy(model, windows[:, :-1], windows[:, 1:]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - start


@torch.no_grad()
def evaluate(model: nn.Module, ids: Tensor) -> float:
    """Nats per character over all of `ids` but the first, each predicted once."""
    model.eval()
    whole = (len(ids) - 1) // CONTEXT * CONTEXT
    inputs, targets = ids[:whole].view(-1, CONTEXT), ids[1 : whole + 1].view(-1, CONTEXT)
    pairs = list(zip(inputs.split(64), targets.split(64), strict=True))
    if whole < len(ids) - 1:
        pairs.append((ids[None, whole:-1], ids[None, whole + 1 :]))
    return sum(cross_entropy(model, *pair, reduction="sum").item() for pair in pairs) / (len(ids) - 1)


def peer(path: Path, *, seed: int, steps: int, is_fused: bool) -> Result:
    """One run of the peer."""
    torch.manual_seed(seed)
    train_ids, val_ids, vocabulary = splits(path.read_text(encoding="utf-8"))
    model = gpt2(vocabulary)
    seconds = train(model, train_ids, steps=steps, is_fused=is_fused)
    return Result(seconds, evaluate(model, val_ids))


def ours(path: Path, experiment: str, arguments: str, *, seed: int) -> Result:
    """One run of ours, as a user starts it; RuntimeError with the end of its output where it fails.

    ValueError where a token is more than a byte, since nats per token are then no nats per character.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "train.py", f"experiment={experiment}", "data=files", f"data.train={path.resolve()}"]
        command += [f"seed={seed}", f"hydra.run.dir={run}", *shlex.split(arguments)]
        child = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if child.returncode != 0:
            raise RuntimeError(f"{shlex.join(command)} exited with {child.returncode}:\n{child.stdout[-2000:]}")
        metrics = json.loads((run / "metrics.json").read_text())
    if abs(metrics["val/loss"] / math.log(2) / metrics["val/bits_per_byte"] - 1) > 0.01:
        raise ValueError(
            f"val/loss is {metrics['val/loss']:.4f} nats per token but val/bits_per_byte is "
            f"{metrics['val/bits_per_byte']:.4f}; expected tokens of one byte: leave tokenizer=bytes"
        )
    return Result(metrics["train/seconds"], metrics["val/loss"])


def show(name: str, result: Result) -> None:
    """Prints one run."""
    print(f"{name:6} {result.seconds:8.1f} s   {result.nats_per_character:.4f} nats per character", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="tiny Shakespeare, one text file")
    parser.add_argument("--ours", metavar="ARGS", help="also run train.py with these arguments, in alternation")
    parser.add_argument("--experiment", default="shakespeare", help="the recipe of ours")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1337, help="of the first repeat; each next one adds 1")
    parser.add_argument("--steps", type=int, default=STEPS, help="of the peer; fewer only to try the script")
    parser.add_argument("--fused", action="store_true", help="fused AdamW for the peer")
    options = parser.parse_args()

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, validation: last tenth, whole")
    peers, own = [], []
    for repeat in range(options.repeats):
        seed = options.seed + repeat
        peers.append(peer(options.file, seed=seed, steps=options.steps, is_fused=options.fused))
        show("peer", peers[-1])
        if options.ours is not None:
            own.append(ours(options.file, options.experiment, options.ours, seed=seed))
            show("ours", own[-1])
    if own:
        ratios = [a.seconds / b.seconds for a, b in zip(peers, own, strict=True)]
        print(f"peer's wall time / ours, median of {len(ratios)}: {statistics.median(ratios):.2f}  {ratios}")


if __name__ == "__main__":
    main()
