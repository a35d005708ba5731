"""What datamodules of encoded rows share: every split is encoded once, when the datamodule is made.

A kind of rows adds its encoder, what was asked, and what it found. It knows nothing of any single kind.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial

import numpy as np

from alignlab.data.encoded import EncodedRows, Encoder, encode, padding_share
from alignlab.data.module import SPLITS, Examples, Rows, TextData
from alignlab.text.tokenizer import Tokenizer


class EncodedData(TextData, ABC):
    """The splits of `rows` as batches of like length.

    With `targets=False` rows need no answer. `pad_to` rounds the width of a batch up to a multiple, for compiled
    models, which want few shapes. Subclasses call `encode_splits` at the end of their constructor.
    """

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        targets: bool,
        pad_to: int,
        batch_size: int,
        accumulate: int,
        workers: int,
        seed: int,
        epoch_steps: int | None,
    ) -> None:
        super().__init__(
            batch_size=batch_size, accumulate=accumulate, workers=workers, seed=seed, epoch_steps=epoch_steps
        )
        self.source, self.tokenizer, self.targets, self.pad_to = rows, tokenizer, targets, pad_to
        self.splits: dict[str, EncodedRows] = {}

    @abstractmethod
    def encoder(self, split: str) -> Encoder:
        """How the rows of a split become examples."""

    def encode_splits(self) -> None:
        """Reads and encodes every split that the rows have."""
        skipped_share = getattr(self.source, "skipped_share", 0.0)  # embedded rows have no bad ones
        place = getattr(self.source, "place", lambda split, kind, number: f"row {number} of {split}")
        for split in SPLITS:
            if self.source.has(split):
                self.splits[split] = encode(
                    self.rows_of(split), self.encoder(split), self.tokenizer,
                    split=split, place=partial(place, split, self.kind), pad_to=self.pad_to,
                    skipped_share=skipped_share,
                )  # fmt: skip

    def rows_of(self, split: str) -> Iterable[dict]:
        """The rows of a split, in their order."""
        return self.source.read(split, self.kind, targets=self.targets)

    def keep_only(self, rows: int) -> None:
        """Of the validation examples, `rows` keep what stands beside their ids, always the same ones."""
        val = self.splits.get("val")
        if val is None or val.kept is None:
            return
        for index in np.random.Generator(np.random.PCG64(0)).permutation(len(val))[rows:]:
            val.kept[index] = None

    def examples(self, split: str) -> Examples | None:
        """The encoded rows of a split."""
        return self.splits.get(split)

    def dropped(self, split: str) -> dict[int, str]:
        """Rows left out, by number."""
        return self.splits[split].dropped

    def facts(self) -> dict[str, str | int | float]:
        """Sizes, what was cut, and the first example as the model sees it."""
        facts: dict[str, str | int | float] = {}
        for split, encoded in self.splits.items():
            facts |= encoded.facts(split)
        if (train := self.splits.get("train")) is not None:
            facts["train_padding"] = round(padding_share(self.order(1), train.lengths, self.batch_size), 4)
            facts["train_sample"] = train.sample(self.tokenizer)
        return facts
