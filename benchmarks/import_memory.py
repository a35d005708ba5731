"""The highest memory of an import against the size of the model: of a folder, or of one laid out as Llama 3 8B.

    python benchmarks/import_memory.py smollm2/
    python benchmarks/import_memory.py --layers 12

Unusual: each import is a process of its own, whose highest resident set counts from after its libraries were loaded.
`as stored` is what a run with frozen weights reads, `float32` what any other reads.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import re, sys, torch
from pathlib import Path
from alignlab.models.huggingface import load_weights, stored_type, unloaded
from alignlab.models.huggingface_config import read_config
resident = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
torch.nn.Linear(2, 2, device="meta").to_empty(device="cpu")
dtype = stored_type(sys.argv[1]) if sys.argv[2] == "as stored" else torch.float32
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
model = unloaded(read_config(sys.argv[1]), dtype=dtype)
load_weights(model, sys.argv[1])
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
peak = resident("VmHWM") - before
print(f"{size / 2**20:,.0f} MB, peak {peak / 2**20:,.0f} MB: {peak / size:.3f}")
"""


def large_folder(place: Path, layers: int) -> None:
    """A folder in bf16, in shards of half a GB: Llama 3's layout at half the width, with so many layers."""
    import torch

    from alignlab.models.config import GPTConfig
    from alignlab.models.huggingface import unloaded
    from alignlab.models.huggingface_export import write_folder

    scaling = {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = GPTConfig(
        layers=layers, width=2048, heads=16, kv_heads=4, feedforward=7168, vocabulary=128_256, context=131_072,
        rope_base=500_000.0, rope_scaling=scaling, tied=False,
    )  # fmt: skip
    model = unloaded(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(0.01 * number)
    write_folder(model, place, shard_bytes=500_000_000)


def main() -> None:
    """Prints size, peak and their ratio for both types."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--layers", type=int, default=12, help="without a folder: blocks of the one that is made")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = options.folder
        if folder is None:
            folder = place
            large_folder(Path(place), options.layers)
            print(f"{len(list(Path(place).glob('*.safetensors')))} shards")
        for kind in ("as stored", "float32"):
            print(f"{kind:10}", end=" ", flush=True)
            subprocess.run([sys.executable, "-c", PROGRAM, folder, kind], check=True)


if __name__ == "__main__":
    main()
