"""Rows as tokens: the rows of one split, encoded once, in a few flat arrays, and cut into padded batches.

Unusual: what is learned is a mask made while a row is put together, never found again in its ids. Nothing is packed:
batches are of like length, so padding is a few percent and needs no attention mask. Every example knows its target
counts, which makes the means of a step exact. It knows nothing of labels, prompts and models.
"""

# N examples, B rows of a batch, T tokens of the longest

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from alignlab.batch import IGNORED
from alignlab.data.order import Order
from alignlab.skipping import BadRows
from alignlab.text.tokenizer import Tokenizer

_BLOCK_ROWS = 1024  # tokenized together, for the tokenizer's threads
LEFT, RIGHT = "\u27e6", "\u27e7"  # around what is learned, in a rendered sample


class Example(NamedTuple):
    """One encoded row.

    `learned[t]` says that ids[t] is a target, predicted from what stands before it. `columns` hold what else a batch
    needs, numbers or arrays of one shape for all rows; `counts` the targets by name; `cut` the tokens that did not fit;
    `kept` what is handed on as it is.
    """

    ids: np.ndarray
    learned: np.ndarray
    columns: dict[str, Any]
    counts: dict[str, float]
    cut: int = 0
    kept: Any = None


class Dropped(NamedTuple):
    """A row that gives no example."""

    reason: str


class Padded(NamedTuple):
    """Examples side by side, filled up on the right with the end of text; rows from `real` on have no targets."""

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T) the id that follows where it is learned, else IGNORED
    lengths: Tensor  # (B,) tokens that are read
    columns: dict[str, Tensor]
    kept: list[Any]
    rows: list[int]  # numbers of the `real` first rows
    tokens: int  # of the `real` first rows


class Encoder(ABC):
    """How rows of one kind become examples, and examples a batch."""

    reads_last: ClassVar[bool]  # whether the last token is read too, or only predicted

    @abstractmethod
    def texts(self, row: dict) -> list[str]:
        """The texts of a row that are to be tokenized."""

    @abstractmethod
    def example(self, row: dict, parts: list[np.ndarray]) -> "Example | list[Example] | Dropped":
        """The example of a row, given the ids of each of its texts; or several, such as windows of a long text.

        Raises ValueError for a row that is wrong.
        """

    @abstractmethod
    def batch(self, padded: Padded, counts: dict[str, float]) -> Any:
        """The batch of some examples, of an optimizer step with `counts` targets."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedRows:
    """The examples of one split; what `alignlab.data.module.Examples` asks for."""

    encoder: Encoder
    values: np.ndarray  # ids of all examples, one after another
    learned: np.ndarray  # bool, beside `values`
    offsets: np.ndarray  # (N + 1,) where each example begins
    columns: dict[str, np.ndarray]  # (N, ...)
    targets: dict[str, np.ndarray]  # (N,) target counts by name
    kept: list[Any] | None
    rows: np.ndarray  # (N,) row numbers
    dropped: dict[int, str]  # row number -> reason
    truncated: int
    pad_to: int
    pad_id: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) tokens that are read."""
        return np.diff(self.offsets) - (not self.encoder.reads_last)

    def counts(self, indices: np.ndarray) -> dict[str, float]:
        """Targets of the examples `indices`, by name."""
        return {name: float(values[indices].sum()) for name, values in self.targets.items()}

    def only(self, indices: np.ndarray) -> "EncodedRows":
        """The examples `indices` alone."""
        pieces = [slice(self.offsets[index], self.offsets[index + 1]) for index in indices]
        return replace(
            self,
            values=np.concatenate([self.values[piece] for piece in pieces]),
            learned=np.concatenate([self.learned[piece] for piece in pieces]),
            offsets=np.cumsum([0, *(piece.stop - piece.start for piece in pieces)]),
            columns={name: values[indices] for name, values in self.columns.items()},
            targets={name: values[indices] for name, values in self.targets.items()},
            kept=None if self.kept is None else [self.kept[index] for index in indices],
            rows=self.rows[indices],
        )

    def batch(self, indices: np.ndarray, counts: dict[str, float], real: int) -> Any:
        """A batch of the examples `indices`; rows from `real` on do not count."""
        return self.encoder.batch(self._padded(np.asarray(indices), real), counts)

    def _padded(self, indices: np.ndarray, real: int) -> Padded:
        lengths = self.lengths[indices]
        width = -(-int(lengths.max()) // self.pad_to) * self.pad_to
        ids = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        targets = np.full((len(indices), width), IGNORED, dtype=np.int64)
        for row, index in enumerate(indices):
            start, stop = self.offsets[index], self.offsets[index + 1]
            ids[row, : lengths[row]] = self.values[start : start + lengths[row]]
            if row < real:
                following, is_learned = self.values[start + 1 : stop], self.learned[start + 1 : stop]
                targets[row, : len(following)] = np.where(is_learned, following.astype(np.int64), IGNORED)
        return Padded(
            ids=torch.from_numpy(ids),
            targets=torch.from_numpy(targets),
            lengths=torch.from_numpy(lengths),
            columns={name: torch.from_numpy(values[indices]) for name, values in self.columns.items()},
            kept=[None if self.kept is None else self.kept[index] for index in indices],
            rows=self.rows[indices[:real]].tolist(),
            tokens=int(lengths[:real].sum()),
        )

    def facts(self, split: str) -> dict[str, str | int | float]:
        """Sizes of the split, and what was cut or left out."""
        rows = len(np.unique(self.rows))
        facts: dict[str, str | int | float] = {f"{split}_rows": rows}
        if len(self) > rows:
            facts[f"{split}_windows"] = len(self)
        facts[f"{split}_tokens"] = int(self.lengths.sum())
        if self.learned.any():
            facts[f"{split}_trained_share"] = round(float(self.learned.sum() / max(1, self.lengths.sum())), 4)
        facts[f"{split}_truncated"] = self.truncated
        reasons = Counter(self.dropped.values())
        facts[f"{split}_dropped"] = ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or 0
        return facts

    def sample(self, tokenizer: Tokenizer) -> str:
        """Example 0 as text, what is learned between brackets."""
        ids, learned = self.values[: self.offsets[1]], self.learned[: self.offsets[1]]
        borders = [0, *(np.flatnonzero(np.diff(learned)) + 1), len(ids)]
        text = ""
        for start, stop in pairwise(borders):
            part = tokenizer.decode(ids[start:stop], skip_special=False)
            text += f"{LEFT}{part}{RIGHT}" if learned[start] else part
        return text


def encode(
    rows: Iterable[dict],
    encoder: Encoder,
    tokenizer: Tokenizer,
    *,
    split: str,
    place: Callable[[int], str],
    pad_to: int = 1,
    skipped_share: float = 0.0,
) -> EncodedRows:
    """The examples of `rows`, in their order.

    Rows that are wrong are left out and counted, up to `skipped_share` of all; more raise ValueError, with the `place`
    of the first by its number. ValueError where no example is left.
    """
    examples: list[Example] = []
    numbers: list[int] = []
    dropped: dict[int, str] = {}
    count, bad = 0, BadRows(skipped_share, f"rows of {split}")
    for row, parts in _tokenized(rows, encoder, tokenizer):
        count += 1
        try:
            if isinstance(parts, ValueError):
                raise parts
            example = encoder.example(row, parts)
        except ValueError as error:
            bad.add(partial(_complaint, place, row["row"], error), error)
            example = Dropped(str(error))
        if isinstance(example, Dropped):
            dropped[row["row"]] = example.reason
            continue
        own = example if isinstance(example, list) else [example]
        examples += own
        numbers += [row["row"]] * len(own)
    bad.close(count)
    if not examples:
        why = f": {next(iter(dropped.values()))}" if dropped else ""
        remedy = "give data.val=FILE, or raise data.holdout" if split == "val" and not dropped else "check data.*"
        raise ValueError(f"the {split} split has no row to use{why}; expected at least one: {remedy}")
    names = examples[0].columns
    return EncodedRows(
        encoder=encoder,
        values=np.concatenate([example.ids for example in examples]).astype(tokenizer.dtype),
        learned=np.concatenate([example.learned for example in examples]),
        offsets=np.cumsum([0, *(len(example.ids) for example in examples)]),
        columns={name: np.array([example.columns[name] for example in examples]) for name in names},
        targets={name: np.array([e.counts[name] for e in examples]) for name in examples[0].counts},
        kept=None if all(example.kept is None for example in examples) else [example.kept for example in examples],
        rows=np.array(numbers),
        dropped=dropped,
        truncated=sum(example.cut > 0 for example in examples),
        pad_to=pad_to,
        pad_id=tokenizer.eos_id,
    )


def _complaint(place: Callable[[int], str], row: int, error: ValueError) -> str:
    return f"{place(row)} {error}"


def _tokenized(
    rows: Iterable[dict], encoder: Encoder, tokenizer: Tokenizer
) -> Iterator[tuple[dict, list[np.ndarray] | ValueError]]:
    """Each row with the ids of its texts, or with what is wrong about it."""
    remaining = iter(rows)
    while block := list(islice(remaining, _BLOCK_ROWS)):
        texts = [_texts(encoder, row) for row in block]
        ids = iter(tokenizer.encode_batch([text for own in texts if isinstance(own, list) for text in own]))
        for row, own in zip(block, texts, strict=True):
            yield row, [next(ids) for _ in own] if isinstance(own, list) else own


def _texts(encoder: Encoder, row: dict) -> list[str] | ValueError:
    try:
        return encoder.texts(row)
    except ValueError as error:
        return error


def padding_share(order: Order, lengths: np.ndarray, batch_size: int) -> float:
    """Padded positions over all positions in the first epoch of `order`, cut into batches of `batch_size`."""
    steps = np.concatenate([lengths[order.step(step)] for step in range(order.steps_per_epoch)])
    batches = steps[: len(steps) // batch_size * batch_size].reshape(-1, batch_size)
    return 1 - float(batches.sum() / (batches.max(axis=1) * batch_size).sum())


def cut_longest(parts: Sequence[np.ndarray], room: int) -> list[np.ndarray]:
    """Parts cut on the right so that together they hold `room` tokens: always the longest loses first."""
    sizes = [len(part) for part in parts]
    order = sorted(range(len(parts)), key=lambda place: sizes[place])
    for done, place in enumerate(order):  # the short ones first: what they leave is shared by the others
        share = room // (len(parts) - done)
        sizes[place] = min(sizes[place], share)
        room -= sizes[place]
    return [part[:size] for part, size in zip(parts, sizes, strict=True)]
