"""Text for a language model: one long stream of tokens, read in windows.

Unusual: nothing is padded but the last window of an evaluation, and an evaluation predicts every token of its split
exactly once. It knows nothing of files and models.
"""

# B rows, T tokens of a window, N windows

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from alignlab.batch import IGNORED, TextBatch
from alignlab.data.module import SPLITS, Examples, Rows, TextData
from alignlab.data.shards import TokenShards
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt


class Windows:
    """Windows of `length` tokens that start every `stride` tokens of a stream.

    With `covers_all`, for evaluation, the last window may be short: it is filled up with positions that do not count.
    """

    lengths = None

    def __init__(
        self, *, shards: TokenShards, length: int, stride: int, covers_all: bool, separate: bool, tokenizer: Tokenizer
    ) -> None:
        self.shards = shards
        self.predicted = len(shards) - 1  # the first token, an end of text, is only read
        self.length = min(length, self.predicted)
        self.stride = self.length if covers_all else min(stride, self.length)
        self.separate = separate
        self.eos = tokenizer.eos_id
        self.byte_counts = shards.byte_counts(tokenizer) if covers_all else tokenizer.byte_counts
        if covers_all:
            self.size = -(-self.predicted // self.length)
        else:
            self.size = (self.predicted - self.length) // self.stride + 1

    def __len__(self) -> int:
        return self.size

    def counts(self, indices: np.ndarray) -> dict[str, float]:
        """{"tokens": targets of the windows `indices`}."""
        starts = np.asarray(indices) * self.stride
        return {"tokens": float(np.minimum(self.length, self.predicted - starts).sum())}

    def batch(self, indices: np.ndarray, counts: dict[str, float], real: int) -> TextBatch:
        """The windows `indices` as rows; see `alignlab.batch.TextBatch`."""
        stream = np.full((len(indices), self.length + 1), -1, dtype=np.int64)
        for row, index in enumerate(indices):
            start = int(index) * self.stride
            tokens = self.shards.read(start, min(start + self.length, self.predicted) + 1)
            stream[row, : len(tokens)] = tokens
        ids, targets = stream[:, :-1].copy(), stream[:, 1:].copy()
        targets[real:] = -1
        told = targets[targets >= 0]
        documents = np.where(ids >= 0, np.cumsum(ids == self.eos, axis=1), -1) if self.separate else None
        size = float(self.byte_counts[told].sum())
        ids[ids < 0] = self.eos  # comes after every target of its row, so no target sees it
        targets[targets < 0] = IGNORED
        return TextBatch(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            documents=None if documents is None else torch.from_numpy(documents),
            counts=counts,
            tokens=len(told),
            bytes=size,
        )


class Text(TextData):
    """Windows of `max_length` tokens from the splits of `rows`.

    `stride` is the distance in tokens between the starts of training windows: less than `max_length` shows each token
    at several places of its window. With `separate_documents`, documents in one window do not see each other.
    """

    kind = "text"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        max_length: PositiveInt = 256,
        stride: PositiveInt | None = None,
        separate_documents: bool = False,
        batch_size: PositiveInt = 16,
        accumulate: PositiveInt = 1,
        workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        epoch_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, accumulate=accumulate, workers=workers, seed=seed, epoch_steps=epoch_steps
        )
        self.shards = {split: _shards(rows, split, tokenizer) for split in SPLITS if rows.has(split)}
        if "train" in self.shards and len(self.shards["train"]) <= max_length:
            raise ValueError(
                f"the training text has {len(self.shards['train'])} tokens, fewer than one window of {max_length} "
                "(datamodule.max_length, or model.context); give more text, or set datamodule.max_length lower"
            )
        self.splits = {
            split: Windows(
                shards=tokens,
                length=max_length,
                stride=stride or max_length,
                covers_all=split != "train",
                separate=separate_documents,
                tokenizer=tokenizer,
            )
            for split, tokens in self.shards.items()
        }

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """The training texts."""
        return (row["text"] for row in rows.read("train", "text"))

    def examples(self, split: str) -> Examples | None:
        """The windows of a split."""
        return self.splits.get(split)

    def facts(self) -> dict[str, str | int | float]:
        """Tokens and bytes of each split."""
        sizes: dict[str, str | int | float] = {}
        for split, shards in self.shards.items():
            sizes |= {f"{split}_tokens": len(shards), f"{split}_bytes": shards.bytes}
            sizes[f"{split}_windows"] = len(self.splits[split])
        return sizes


def _shards(rows: Rows, split: str, tokenizer: Tokenizer) -> TokenShards:
    """The tokens of a split. Raises ValueError where it holds no text."""
    shards = TokenShards.build(
        rows=partial(rows.read, split, "text"), fingerprint=rows.fingerprint(split), tokenizer=tokenizer
    )
    if shards.bytes == 0:
        raise ValueError(f"the {split} split holds no text; expected at least a few thousand characters: check data.*")
    return shards
