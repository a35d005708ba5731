"""Time and memory of `alignlab.losses.cross_entropy` against `F.cross_entropy` over all logits, forward and backward.

    python benchmarks/cross_entropy.py [--bf16] [--chunk TARGETS]

Each variant runs in a process of its own, whose peak resident memory above the start is its memory; times are minima of
interleaved repeats. Prints ratios, ours to torch's.
"""

import argparse
import resource
import subprocess
import sys
import time

SIZES = ((8192, 50304, 256), (8192, 32000, 576), (768, 4096, 128), (768, 256, 128))  # targets, vocabulary, width


def measured(variant: str, targets: int, vocabulary: int, width: int, chunk: int | None, is_bf16: bool) -> tuple:
    """Seconds (minimum) and peak MB of one loss and its backward pass."""
    import torch
    import torch.nn.functional as F

    from alignlab.losses import cross_entropy

    torch.manual_seed(0)
    layer = torch.nn.Linear(width, vocabulary, bias=False)
    hidden = torch.randn(targets, width, requires_grad=True)
    ids = torch.randint(vocabulary, (targets,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(3 if targets * vocabulary > 1e7 else 50):
        layer.weight.grad = hidden.grad = None
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
            if variant == "ours":
                loss = cross_entropy(layer, hidden, ids, chunk=chunk)
            else:
                loss = F.cross_entropy(layer(hidden).float(), ids, reduction="sum")
        loss.backward()
        seconds.append(time.perf_counter() - start)
    return min(seconds), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--only", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        variant, *size = options.only
        print(*measured(variant, *map(int, size), options.chunk, options.bf16))
        return
    print(f"{'targets':>8}{'vocab':>8}{'width':>7}{'torch s':>10}{'ours s':>10}{'ratio':>7}"
          f"{'torch MB':>10}{'ours MB':>9}{'ratio':>7}")  # fmt: skip
    for size in SIZES:
        best: dict[str, tuple[float, float]] = {}
        for variant in ("torch", "ours") * 2:
            command = [sys.executable, *sys.argv, "--only", variant, *map(str, size)]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = tuple(map(float, output.split()))
            best[variant] = min(best.get(variant, found), found)
        (t, m), (s, n) = best["torch"], best["ours"]
        print(f"{size[0]:>8}{size[1]:>8}{size[2]:>7}{t:>10.4f}{s:>10.4f}{s / t:>7.2f}{m:>10.0f}{n:>9.0f}"
              f"{n / max(m, 1):>7.2f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
