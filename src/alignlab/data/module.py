"""What every datamodule shares: splits of examples, exact order, loaders that start at any step.

Usable the moment it exists: the constructor of a subclass has read and encoded its rows. To the trainer a whole run
is one epoch, whose first batch is the one after the steps already done: that is what makes resuming exact. Epochs of
the data are counted here. It knows nothing of tasks and models.
"""

# N examples, W examples of one optimizer step

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from alignlab.data.order import Order

Kind = Literal["text", "labels", "span", "response", "chat", "pairs", "prompts"]
SPLITS = ("train", "val", "test")
AT_ONCE = 256  # rows that are looked over together


class Rows(Protocol):
    """Where rows come from: dicts in canonical columns."""

    def has(self, split: str) -> bool:
        """Whether there is such a split."""

    def read(self, split: str, kind: str, *, targets: bool = True) -> Iterator[dict]:
        """The rows of a split; without `targets`, what is to be predicted may be missing."""

    def fingerprint(self, split: str) -> str:
        """A hash of what `read` yields."""

    def facts(self) -> dict[str, str | int | float]:
        """What to log of the source."""


class Examples(Protocol):
    """Encoded rows of one split, and how they become a batch; travels to loader processes."""

    @property
    def lengths(self) -> np.ndarray | None:
        """(N,) tokens, or None where all are equal."""

    def __len__(self) -> int: ...

    def counts(self, indices: np.ndarray) -> dict[str, float]:
        """Targets of the examples `indices`, by name: what their summed losses are divided by."""

    def batch(self, indices: np.ndarray, counts: dict[str, float], real: int) -> Any:
        """A batch of the examples `indices`, of a step with `counts` targets; rows from `real` on must not count."""


class Asked(NamedTuple):
    """A row as a person reads it: what the model was asked, and the answer that the row holds, if any."""

    row: int
    input: Any
    target: Any


class Share(NamedTuple):
    """One micro-batch: examples `indices`, of which the first `real` count; `whole` are those of the whole step."""

    indices: np.ndarray
    whole: np.ndarray
    real: int


@dataclass(frozen=True, kw_only=True)
class TrainShares:
    """Micro-batch number (over the whole run, on one rank) -> its examples."""

    order: Order
    accumulate: int
    ranks: int
    rank: int
    repeat: int | None  # optimizer steps after which the same ones come again, for trials

    def __call__(self, at: int) -> Share:
        step, micro = divmod(at, self.accumulate)
        if self.repeat is not None:
            step %= self.repeat
        part = micro * self.ranks + self.rank
        indices = self.order.share(step, part=part, parts=self.accumulate * self.ranks)
        return Share(indices, self.order.step(step), len(indices))


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationShares:
    """Batch number -> its examples: each example of `arranged` (N,) once over all ranks."""

    arranged: np.ndarray
    batch_size: int
    ranks: int
    rank: int

    def __call__(self, at: int) -> Share:
        start = (at * self.ranks + self.rank) * self.batch_size
        own = self.arranged[start : start + self.batch_size]
        # sharded models gather in every forward pass, so a rank without rows still runs one, which does not count
        return Share(own, own, len(own)) if len(own) else Share(self.arranged[:1], own, 0)


class TextData(L.LightningDataModule, ABC):
    """Splits of examples as loaders of batches.

    `batch_size` rows make a micro-batch; `accumulate` micro-batches on each rank make an optimizer step.
    `epoch_steps` shortens a pass over the data to that many optimizer steps, for trials.
    """

    kind: ClassVar[Kind]  # of rows

    def __init__(
        self, *, batch_size: int, accumulate: int, workers: int, seed: int, epoch_steps: int | None = None
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("accumulate", accumulate)):
            if value < 1:
                raise ValueError(f"datamodule.{name} is {value}; expected at least 1")
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.workers = workers
        self.seed = seed
        self.epoch_steps = epoch_steps

    @classmethod
    @abstractmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """The training texts of `rows`: what a tokenizer is trained on."""

    @abstractmethod
    def examples(self, split: str) -> Examples | None:
        """The examples of "train", "val" or "test"; None where the data has no such split."""

    @abstractmethod
    def facts(self) -> dict[str, str | int | float]:
        """What was found in the data: sizes, languages, hashes; logged with the run, compared when it goes on."""

    def found(self) -> dict[str, Any]:
        """What the rows told that the task is built from, such as labels, by its argument; plain types."""
        return {}

    def asked(self, split: str) -> Iterator[Asked]:
        """The rows of a split in their order, for the file of predictions; none where nothing is asked."""
        return iter(())

    def dropped(self, split: str) -> dict[int, str]:
        """Rows of a split that gave no example, and why."""
        return {}

    @property
    def repeats(self) -> int:
        """Optimizer steps in a row that read the same examples."""
        return 1

    @property
    def ranks(self) -> int:
        """Processes that train together."""
        return self.trainer.world_size if self.trainer is not None else 1

    def order(self, ranks: int) -> Order:
        """The order of the training examples on `ranks` ranks."""
        train = self.examples("train")
        if train is None:
            raise ValueError("data.train is not given, so there is nothing to learn from; set data.train=PATH")
        window = self.batch_size * self.accumulate * ranks
        return Order(examples=len(train), window=window, seed=self.seed, lengths=train.lengths)

    def steps_per_epoch(self, ranks: int) -> int:
        """Optimizer steps of one pass over the training data on `ranks` ranks."""
        steps = self.order(ranks).steps_per_epoch * self.repeats
        return min(steps, self.epoch_steps or steps)

    def train_dataloader(self) -> DataLoader:
        """Micro-batches of this rank, from the optimizer step that the trainer has reached to the run's last."""
        assert self.trainer is not None, "the train loader needs a trainer: it says which step comes next"
        shares = self.train_shares(self.trainer.global_rank)
        first, last = self.trainer.global_step, self.trainer.max_steps
        return self._loader("train", shares, range(first * self.accumulate, last * self.accumulate))

    def train_shares(self, rank: int) -> Callable[[int], Share]:
        """Micro-batch number -> its examples on `rank`."""
        return TrainShares(
            order=self.order(self.ranks),
            accumulate=self.accumulate,
            ranks=self.ranks,
            rank=rank,
            repeat=self.epoch_steps,
        )

    def val_dataloader(self) -> DataLoader | list:
        """Every validation example once, split over the ranks."""
        return self._evaluation("val")

    def test_dataloader(self) -> DataLoader | list:
        """Every test example once, split over the ranks."""
        return self._evaluation("test")

    def whole(self, split: str) -> Iterator[Any]:
        """Batches of every example of a split once on each rank, made here and without a trainer."""
        if (examples := self.examples(split)) is None:
            return
        arranged = _longest_first(examples)
        for start in range(0, len(arranged), AT_ONCE):
            indices = arranged[start : start + AT_ONCE]
            yield examples.batch(indices, {}, len(indices))

    def _evaluation(self, split: str) -> DataLoader | list:
        examples = self.examples(split)
        if examples is None or len(examples) == 0:
            return []
        total, arranged = len(examples), _longest_first(examples)
        rank = self.trainer.global_rank if self.trainer is not None else 0
        shares = EvaluationShares(arranged=arranged, batch_size=self.batch_size, ranks=self.ranks, rank=rank)
        return self._loader(split, shares, range(-(-total // (self.batch_size * self.ranks))))

    def _loader(self, split: str, shares: Callable[[int], Share], at: range) -> DataLoader:
        examples = self.examples(split)
        assert examples is not None, f"there is no {split} split"
        return DataLoader(
            _Batches(examples, shares),
            sampler=_Sequence(at),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each new iterator draws from the global generator
        )


def _longest_first(examples: Examples) -> np.ndarray:
    """(N,) in that order too large a batch fails at once, and little is padded."""
    if examples.lengths is None:
        return np.arange(len(examples))
    return np.argsort(-examples.lengths, kind="stable")


class _Sequence(Sampler[int]):
    """The numbers of the micro-batches to read."""

    def __init__(self, at: range) -> None:
        self.at = at

    def __len__(self) -> int:
        return len(self.at)

    def __iter__(self) -> Iterator[int]:
        return iter(self.at)


class _Batches(Dataset):
    """Micro-batch number -> batch, collated where the loader runs."""

    def __init__(self, examples: Examples, shares: Callable[[int], Share]) -> None:
        self.rows = examples
        self.shares = shares

    def __getitem__(self, at: int) -> Any:
        share = self.shares(at)
        return self.rows.batch(share.indices, self.rows.counts(share.whole), share.real)
