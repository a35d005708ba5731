"""Seconds of our `generate` over those of `transformers.generate`, same weights' shape, equal precision, interleaved.

    python benchmarks/generation.py                                 # nano: 4 layers, 128 wide; batch 1 and 32
    python benchmarks/generation.py --folder smollm2 --dtype bfloat16 --tokens 32 --batches 1,8
    python benchmarks/generation.py --folder smollm2 --beams        # beams of 4 against greedy over equal rows

Each round runs every contestant once; the medians of the rounds are compared, and the ids are compared first.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from alignlab.generate import Sampling, generate
from alignlab.models.gpt import GPT
from alignlab.models.huggingface import from_folder


def nano_folder() -> Path:
    """A random Llama of the nano size, written where both sides can read it."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.1,
    )  # fmt: skip
    folder = Path(tempfile.mkdtemp())
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def ours(model: GPT, prompts: torch.Tensor, sampling: Sampling) -> Callable[[], list[list[int]]]:
    rows = prompts.tolist()
    return lambda: [row.ids for row in generate(model, rows, sampling, eos_ids=[], pad_id=0)]


def theirs(model, prompts: torch.Tensor, sampling: Sampling) -> Callable[[], list[list[int]]]:
    drawn = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        drawn |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    model.generation_config.eos_token_id = None

    def run() -> list[list[int]]:
        out = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=sampling.max_new_tokens,
            num_beams=sampling.beams, length_penalty=sampling.length_penalty, pad_token_id=0, **drawn,
        )  # fmt: skip
        return out[:, prompts.shape[1] :].tolist()

    return run


def medians(
    contestants: dict[str, Callable[[], list[list[int]]]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started = clock()
            run()
            if number > 0:  # the first round warms up
                seconds[name].append(clock() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a Hugging Face folder; default: a random nano-size Llama")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batches", default="1,32")
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--tokens", type=int, default=100, help="new ones")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--beams", action="store_true")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, for a busy machine; with --threads 1")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder, dtype = given.folder or nano_folder(), getattr(torch, given.dtype)
    model = from_folder(folder, dtype=dtype).eval()
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    greedy = Sampling(max_new_tokens=given.tokens, temperature=0)
    drawn = Sampling(max_new_tokens=given.tokens, temperature=0.8, top_k=50, top_p=0.95, seed=0)
    beams = Sampling(max_new_tokens=given.tokens, temperature=0, beams=4)
    print(
        f"{folder.name if given.folder else 'nano'}, {given.dtype}, {given.threads} threads, {given.tokens} new tokens"
    )
    for batch in map(int, given.batches.split(",")):
        prompts = torch.randint(10, 4000, (batch, given.prompt), generator=torch.Generator().manual_seed(0))
        for name, sampling in {"greedy": greedy, "sampled": drawn, "beam 4": beams}.items():
            if name == "beam 4" and not given.beams:
                continue
            runs = {"ours": ours(model, prompts, sampling), "theirs": theirs(peer, prompts, sampling)}
            same = "" if name == "sampled" else f", same ids {_agreement(runs):.0%}"
            if name == "beam 4":  # equal rows: 4 beams of a prompt, or 4 prompts
                runs["greedy"] = ours(model, prompts.repeat(4, 1), greedy)
            seconds = medians(runs, given.rounds, time.process_time if given.cpu_time else time.perf_counter)
            speed = batch * given.tokens / seconds["ours"]
            ratio = seconds["theirs"] / seconds["ours"]
            line = f"batch {batch:3d} {name:8s} {speed:8.0f} tokens/s, theirs / ours {ratio:.2f}{same}"
            if "greedy" in seconds:
                line += f", beams / greedy at equal rows {seconds['ours'] / seconds['greedy']:.2f}"
            print(line, flush=True)


def _agreement(runs: dict[str, Callable[[], list[list[int]]]]) -> float:
    """Share of rows with the same ids: 1 in float32, but for near ties."""
    pairs = list(zip(runs["ours"](), runs["theirs"](), strict=True))
    return sum(mine == other for mine, other in pairs) / len(pairs)


if __name__ == "__main__":
    main()
