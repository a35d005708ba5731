"""What the weights at the start said of every answer: measured once, kept in the cache folder by content.

Unusual: log-probabilities stay per token, so that a divergence can be measured, not only a ratio. The key is a hash of
the reference's weights, of the encoded rows, and of how they were computed, so a run that goes on finds what it began
with, or measures the very same again. It knows nothing of losses.
"""

# N rows, B rows of a batch, T tokens

import hashlib
import logging
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignlab.batch import IGNORED, PairBatch
from alignlab.losses import token_log_probs
from alignlab.models.gpt import GPT
from alignlab.paths import cache_folder
from alignlab.whole import whole

log = logging.getLogger(__name__)


class Said(NamedTuple):
    """Log-probabilities of the tokens of both answers of one row: first and second."""

    first: Tensor
    second: Tensor


Table = dict[int, Said]  # row number -> what was said


def fingerprint(model: GPT) -> str:
    """A hash of the names, types and bytes of all weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def place_of(*parts: str | int) -> Path:
    """Where a table lies in the cache, by all that it depends on."""
    key = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()
    return cache_folder() / "reference" / f"{key[:32]}.npz"


@torch.no_grad()
def measured(model: GPT, batches: Iterable[PairBatch]) -> Table:
    """What `model` says of the rows of `batches`."""
    table: Table = {}
    for batch in batches:
        log_probs = token_log_probs(model.unembed, model(batch.ids), batch.targets).cpu()
        is_answer = (batch.targets != IGNORED).cpu()
        each = [values[own] for values, own in zip(log_probs, is_answer, strict=True)]
        half = len(each) // 2
        table |= {row: Said(each[at], each[half + at]) for at, row in enumerate(batch.rows)}
    return table


def laid_out(table: Table, batch: PairBatch) -> Tensor:
    """(2B, T) log-probabilities beside the targets of `batch`; 0 elsewhere."""
    said = [table[row] for row in batch.rows]
    parts = [one.first for one in said] + [one.second for one in said]
    is_answer = batch.targets != IGNORED
    flat = torch.cat(parts).to(is_answer.device)
    # sequences stand first answers before second ones, as `parts` do
    return torch.zeros(is_answer.shape, dtype=flat.dtype, device=flat.device).masked_scatter(is_answer, flat)


def read(place: Path) -> Table | None:
    """The table at `place`; None where there is none that can be read."""
    try:
        with np.load(place) as held:
            rows, sizes, values = held["rows"], held["sizes"], held["values"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        log.warning("%s cannot be read (%s); the reference is asked again", place, error)
        return None
    parts = iter(torch.from_numpy(values).split(sizes.flatten().tolist()))
    return {row: Said(next(parts), next(parts)) for row in rows.tolist()}


def write(place: Path, table: Table) -> None:
    """Keeps `table` at `place`, whole or not at all."""
    said = [part for one in table.values() for part in one]
    with whole(place) as unfinished, open(unfinished, "wb") as file:
        np.savez(
            file, rows=np.array(list(table)), sizes=np.array([len(part) for part in said]),
            values=torch.cat(said).numpy(),
        )  # fmt: skip
