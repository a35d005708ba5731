"""Tensors in a folder's safetensors files, read in blocks of rows.

Unusual: the files are read, not memory-mapped as the safetensors library does: mapped pages count as resident memory,
which would double what an import takes. The format is 8 bytes of header length, a JSON header, raw little-endian
tensors (github.com/huggingface/safetensors#format). It knows nothing of models.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignlab.models.huggingface_config import read_json

BLOCK_BYTES = 4 * 1024 * 1024
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies."""

    path: Path
    name: str
    kind: str  # as the header calls its dtype
    shape: tuple[int, ...]
    start: int  # bytes from the start of the file

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """Row number and rows (R, N), about 4 MB at a time; a vector is one row. The next block overwrites the last.

        Raises ValueError for a dtype that is not a float.
        """
        if self.kind not in DTYPES:
            raise ValueError(f"{self.path}: {self.name} is stored as {self.kind}; accepted: {', '.join(DTYPES)}")
        dtype = DTYPES[self.kind]
        rows, columns = self.shape if len(self.shape) == 2 else (1, math.prod(self.shape))
        row_bytes = columns * dtype.itemsize
        step = max(1, min(rows, BLOCK_BYTES // max(row_bytes, 1)))
        buffer = torch.empty(step * row_bytes, dtype=torch.uint8)
        with self.path.open("rb") as file:
            file.seek(self.start)
            for first in range(0, rows, step):
                count = min(step, rows - first)
                file.readinto(buffer.numpy()[: count * row_bytes].data)
                yield first, buffer[: count * row_bytes].view(dtype).view(count, columns)

    def read(self) -> Tensor:
        """The whole tensor, in its own dtype and shape."""
        return torch.cat([block.clone() for _, block in self.blocks()]).view(self.shape)


def stored_tensors(folder: Path | str) -> dict[str, Stored]:
    """Every tensor of the folder by name; ValueError for pickled, missing, truncated or damaged files."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        paths = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
        if absent := [path.name for path in paths if not path.is_file()]:
            raise ValueError(f"{folder} has no {', '.join(absent)}, which its index names; download the folder again")
    else:
        paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ValueError(_no_weights(folder))
    tensors: dict[str, Stored] = {}
    for path in paths:
        tensors |= {stored.name: stored for stored in _header(path)}
    return tensors


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if not pickled:
        return f"{folder} has no *.safetensors; expected model.safetensors or shards with an index"
    return (
        f"{folder} has {pickled[0]} but no *.safetensors; pickled weights can run code and are not read. Convert them "
        "where you trust them: transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
    )


def _header(path: Path) -> list[Stored]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or (length > size - 8 and length < 100_000_000):
            raise ValueError(f"{path} is truncated: {size:,} bytes, fewer than its header needs; download it again")
        if length > size - 8:
            raise ValueError(f"{path} is not a safetensors file")
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
        end = 8 + length + max((entry["data_offsets"][1] for _, entry in entries), default=0)
        tensors = [
            Stored(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} has a damaged header ({error}); download it again") from error
    if size < end:
        raise ValueError(f"{path} is truncated: {size:,} of {end:,} bytes; download it again")
    return tensors
