"""Prompts without answers: the model writes them itself, and a checker rewards them.

Unusual: in training every micro-batch of a step carries all prompts that its rank has in that step, because they are
answered at once; the task takes its part of the answers. A step's prompts come `updates` times in a row. It knows
nothing of rewards and losses.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from alignlab.batch import PromptBatch
from alignlab.data.chat import ChatEncoder
from alignlab.data.encoded import Dropped, Encoder, Example, Padded
from alignlab.data.module import Asked, Rows, Share, TrainShares
from alignlab.data.splits import EncodedData
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt


class PromptEncoder(Encoder):
    """Encodes rows {"prompt", "reference"}, as the user's turn of a conversation or as plain text; final."""

    reads_last: ClassVar[bool] = True

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, is_chat: bool) -> None:
        self.eos = tokenizer.eos_id
        self.max_length = max_length
        # one more: the encoder of conversations ends with a token that stands for the reply
        self.chat = ChatEncoder(tokenizer=tokenizer, max_length=max_length + 1, keeps=True) if is_chat else None

    def texts(self, row: dict) -> list[str]:
        """The prompt."""
        return [row["prompt"]]

    def example(self, row: dict, parts: list[np.ndarray]) -> Example | Dropped:
        """Everything before the answer; nothing is learned. A prompt that is too long loses its left."""
        beside = (row["prompt"], row.get("reference"))
        if self.chat is None:
            ids, cut = [self.eos, *parts[0][-(self.max_length - 1) :]], max(0, len(parts[0]) + 1 - self.max_length)
        else:
            turns = self.chat.example({"messages": [{"role": "user", "content": row["prompt"]}]}, parts)
            if isinstance(turns, Dropped):
                return Dropped(f"its prompt leaves no room in max_length={self.max_length}")
            ids, cut = list(turns.ids[:-1]), turns.cut
        return Example(np.array(ids), np.zeros(len(ids), dtype=bool), {}, {"examples": 1.0}, cut, beside)

    def batch(self, padded: Padded, counts: dict[str, float]) -> PromptBatch:
        """See `alignlab.batch.PromptBatch`."""
        return PromptBatch(
            ids=padded.ids,
            lengths=padded.lengths,
            texts=[kept[0] for kept in padded.kept],
            references=[kept[1] for kept in padded.kept],
            rows=padded.rows,
            counts=counts,
            tokens=padded.tokens,
        )


@dataclass(frozen=True, kw_only=True)
class WindowShares:
    """Micro-batch number -> all examples of its rank in its step, which comes `updates` times."""

    parts: TrainShares
    updates: int

    def __call__(self, at: int) -> Share:
        each, accumulate = self.parts, self.parts.accumulate
        first = at // accumulate // self.updates * accumulate
        shares = [each(first + micro) for micro in range(accumulate)]
        indices = np.concatenate([share.indices for share in shares])
        return Share(indices, shares[0].whole, len(indices))


class Prompts(EncodedData):
    """The splits of `rows` as batches of prompts of at most `max_length` tokens.

    `style` says whether a prompt is the user's turn of a conversation or plain text that goes on. `updates` optimizer
    steps are made upon the answers to one step's prompts. `generate_rows` rows of a split are answered at most.
    """

    kind = "prompts"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        targets: bool = True,
        style: Literal["chat", "plain"] = "chat",
        updates: PositiveInt = 1,
        generate_rows: PositiveInt = 256,
        max_length: PositiveInt = 128,
        pad_to: PositiveInt = 1,
        batch_size: PositiveInt = 16,
        accumulate: PositiveInt = 1,
        workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        epoch_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            rows=rows, tokenizer=tokenizer, targets=targets, pad_to=pad_to, batch_size=batch_size,
            accumulate=accumulate, workers=workers, seed=seed, epoch_steps=epoch_steps,
        )  # fmt: skip
        self.is_chat, self.max_length, self.updates = style == "chat", max_length, updates
        self.encode_splits()
        if (val := self.splits.get("val")) is not None and len(val) > generate_rows:
            chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(val))[:generate_rows]
            self.splits["val"] = val.only(np.sort(chosen))

    @property
    def repeats(self) -> int:
        """Updates upon one set of answers."""
        return self.updates

    def encoder(self, split: str) -> PromptEncoder:
        """The same for every split."""
        return PromptEncoder(tokenizer=self.tokenizer, max_length=self.max_length, is_chat=self.is_chat)

    def train_shares(self, rank: int) -> Callable[[int], Share]:
        """All prompts of the rank's step with each of its micro-batches."""
        order = self.order(self.ranks)
        repeat = None if self.epoch_steps is None else max(1, self.epoch_steps // self.updates)
        parts = TrainShares(order=order, accumulate=self.accumulate, ranks=self.ranks, rank=rank, repeat=repeat)
        return WindowShares(parts=parts, updates=self.updates)

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """The training prompts and their references."""
        for row in rows.read("train", "prompts"):
            yield from (row[name] for name in ("prompt", "reference") if name in row)

    def asked(self, split: str) -> Iterator[Asked]:
        """The prompt and its reference."""
        for row in self.rows_of(split):
            yield Asked(row["row"], row["prompt"], row.get("reference"))

    def found(self) -> dict[str, Any]:
        """Nothing that the task is built from."""
        return {}
