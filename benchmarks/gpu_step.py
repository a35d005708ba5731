"""GPT-2 (124 M), context 1,024, bf16, on one GPU: tokens/s and share of the peak of a step, by how it is computed.

    python benchmarks/gpu_step.py                       # a table in Markdown
    python benchmarks/gpu_step.py --only ours whole     # some of its rows

ours: our blocks and loss, compiled, as `compile=true` trains them. eager: the same uncompiled. whole: our model
compiled in one piece with all logits of a micro-batch held, which is how nanoGPT computes. transformers:
GPT2LMHeadModel, compiled. A step is `--micro` micro-batches of `--rows` rows and one fused AdamW update; medians over
`--steps` steps. Model FLOPs are those of the training log (Chowdhery et al. 2022). The vocabulary is 50,304: 50,257
rounded up to what tensor cores like.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alignlab import losses
from alignlab.callbacks.training_log import peak_flops
from alignlab.losses import cross_entropy
from alignlab.models.config import GPTConfig, flops_per_token
from alignlab.models.gpt import GPT

VOCABULARY, CONTEXT = 50_304, 1_024
Loss = Callable[[Tensor, Tensor], Tensor]  # ids and targets (B, T) to a sum


def gpt2(vocabulary: int = VOCABULARY) -> GPT:
    """Freshly initialized, as conf/model/gpt2.yaml."""
    return GPT(
        GPTConfig(
            layers=12, width=768, heads=12, context=CONTEXT, vocabulary=vocabulary, norm="layer", positions="learned",
            activation="gelu_tanh", bias="all",
        )
    )  # fmt: skip


def ours(device: str, *, compiles: bool = True, vocabulary: int = VOCABULARY) -> tuple[nn.Module, Loss]:
    """As `train.py` computes it."""
    model = gpt2(vocabulary).to(device)
    if compiles:
        model.compile_parts()
    return model, lambda ids, targets: cross_entropy(model.unembed, model(ids), targets, is_full=True)


def whole(device: str) -> tuple[nn.Module, Loss]:
    """One compiled function from ids to the loss."""
    model = gpt2().to(device)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.unembed(model(ids)).flatten(0, 1), targets.flatten(), reduction="sum")

    return model, torch.compile(loss)


def transformers(device: str) -> tuple[nn.Module, Loss]:
    """Hugging Face's GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(vocab_size=VOCABULARY, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, attn_implementation="sdpa")
    model = GPT2LMHeadModel(shape).to(device)

    def loss(ids: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).logits.flatten(0, 1), targets.flatten(), reduction="sum")

    return model, torch.compile(loss)


def with_chunks(logits: int) -> Callable[[str], tuple[nn.Module, Loss]]:
    """Ours, with so many logits at a time."""

    def made(device: str) -> tuple[nn.Module, Loss]:
        losses.FUSED_CHUNK_LOGITS = logits
        return ours(device)

    return made


CONTESTANTS: dict[str, Callable[[str], tuple[nn.Module, Loss]]] = {
    "ours": ours,
    "ours, chunks of 2^26 logits": with_chunks(2**26),
    "ours, chunks of 2^29 logits": with_chunks(2**29),
    "ours, vocabulary 50,257": lambda device: ours(device, vocabulary=50_257),
    "eager": lambda device: ours(device, compiles=False),
    "whole": whole,
    "transformers": transformers,
}


def measured(make: Callable[[str], tuple[nn.Module, Loss]], given: argparse.Namespace) -> tuple[float, float, float]:
    """Tokens/s, seconds until the first step is done, and bytes at the worst moment."""
    torch.manual_seed(0)
    started = time.perf_counter()
    model, loss = make(given.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    text = torch.randint(50_000, (given.micro, given.rows, CONTEXT + 1), device=given.device)
    seconds: list[float] = []
    if given.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(given.steps + 3):
        before = time.perf_counter()
        for rows in text:
            with torch.autocast(given.device, torch.bfloat16):
                total = loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
            (total / (given.micro * given.rows * CONTEXT)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if given.device == "cuda":
            torch.cuda.synchronize()
        if not seconds:
            first = time.perf_counter() - started
        seconds.append(time.perf_counter() - before)
    memory = torch.cuda.max_memory_allocated() if given.device == "cuda" else 0
    return given.micro * given.rows * CONTEXT / statistics.median(seconds[3:]), first, memory


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="names, or patterns such as ours*")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--micro", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda", help="cpu: to see that it runs")
    parser.add_argument("--attention", choices=["flash", "cudnn"], default="flash")
    given = parser.parse_args()
    torch.backends.cuda.enable_cudnn_sdp(given.attention == "cudnn")
    torch.backends.cuda.enable_flash_sdp(given.attention == "flash")
    name = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    flops = flops_per_token(gpt2().config, gpt2().parameter_count(), CONTEXT)
    size = f"{given.micro} x {given.rows} x {CONTEXT} tokens"
    print(f"{name}, torch {torch.__version__}, {size}, {given.attention} attention\n")
    print("| computed | tokens/s | MFU | GiB | first step after, s |\n|---|---|---|---|---|", flush=True)
    for label, make in CONTESTANTS.items():
        if given.only and not any(fnmatch(label, one) for one in given.only):
            continue
        chunk = losses.FUSED_CHUNK_LOGITS
        try:
            speed, first, memory = measured(make, given)
        except torch.OutOfMemoryError:
            print(f"| {label} | out of memory | | | |", flush=True)
            continue
        finally:
            losses.FUSED_CHUNK_LOGITS = chunk
            torch._dynamo.reset()
            if given.device == "cuda":
                torch.cuda.empty_cache()
        share = flops * speed / (peak_flops(name) or float("nan"))
        print(f"| {label} | {speed:,.0f} | {share:.1%} | {memory / 2**30:.1f} | {first:.0f} |", flush=True)


if __name__ == "__main__":
    main()
