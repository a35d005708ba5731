"""Prompts with answers of which one is better, or each of which is good or bad.

Unusual: an example holds its prompt once, and both answers after it; a batch writes the two sequences out. The prompt
is a conversation in the chat template, or plain text; where it is too long it loses its left, the same for both
answers, and an answer loses nothing. It knows nothing of losses and rewards.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from alignlab.batch import IGNORED, PairBatch
from alignlab.data.chat import ChatEncoder
from alignlab.data.encoded import Dropped, Encoder, Example, Padded
from alignlab.data.module import Asked, Rows
from alignlab.data.splits import EncodedData
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt

OTHER = "other"  # beside a completion: the answer to another row
ANSWERS = ("chosen", "rejected", "completion", OTHER)


class PairEncoder(Encoder):
    """Encodes rows {"prompt", "chosen", "rejected"} or {"prompt", "completion", "desirable"}; final.

    Rows without their second answer give sequences to be scored.
    """

    reads_last: ClassVar[bool] = True

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, is_chat: bool, pad_to: int = 1) -> None:
        self.tokenizer = tokenizer
        self.pad_to = pad_to
        self.pad_id = tokenizer.pad_id
        self.max_length = max_length
        self.chat = ChatEncoder(tokenizer=tokenizer, max_length=max_length, keeps=True) if is_chat else None

    def texts(self, row: dict) -> list[str]:
        """What each turn of the prompt says, and the answers."""
        return [message["content"] for message in self._messages(row)] + [row[name] for name in ANSWERS if name in row]

    def example(self, row: dict, parts: list[np.ndarray]) -> Example | Dropped:
        """The prompt and both answers, one after another; the answers with their ends are learned."""
        messages = self._messages(row)
        told = [row[name] for name in ANSWERS if name in row]
        answers = [
            self._answer(messages, text, ids) for text, ids in zip(told, parts[len(messages) :], strict=True)
        ]  # fmt: skip
        found = self._prompt(messages, parts[: len(messages)], self.max_length - max(map(len, answers)))
        if found is None:
            return Dropped(f"its answer leaves its prompt no room in max_length={self.max_length}")
        prompt, cut = found
        ids = np.concatenate([prompt, *answers])
        sizes = [len(prompt), *map(len, answers), *([0] * (2 - len(answers)))]
        columns = {
            "sizes": np.array(sizes), "margins": np.float32(row.get("margin", 0.0)),
            "desirable": row.get("desirable", True),
        }  # fmt: skip
        counts = {"examples": 1.0, "tokens": float(sum(sizes[1:])), "chosen_tokens": float(sizes[1])}
        return Example(ids, np.arange(len(ids)) >= len(prompt), columns, counts, cut)

    def batch(self, padded: Padded, counts: dict[str, float]) -> PairBatch:
        """See `alignlab.batch.PairBatch`."""
        sizes, real = padded.columns["sizes"], len(padded.rows)
        places = (1, 2) if bool((sizes[:, 2] > 0).any()) else (1,)  # no second answer: its prompt, without a target
        lengths = torch.cat([sizes[:, 0] + sizes[:, place] for place in places])
        ids = torch.full((len(lengths), -(-int(lengths.max()) // self.pad_to) * self.pad_to), self.pad_id)
        targets = torch.full_like(ids, IGNORED)
        for row, (prompt, chosen, rejected) in enumerate(sizes.tolist()):
            spans = ((prompt, chosen), (prompt + chosen, rejected))[: len(places)]
            for number, (start, size) in enumerate(spans):
                place = number * len(sizes) + row
                answer = padded.ids[row, start : start + size]
                ids[place, :prompt] = padded.ids[row, :prompt]
                ids[place, prompt : prompt + size] = answer
                if row < real:
                    targets[place, prompt - 1 : prompt - 1 + size] = answer
        return PairBatch(
            ids=ids,
            targets=targets,
            lengths=lengths,
            margins=padded.columns["margins"],
            desirable=padded.columns["desirable"],
            rows=padded.rows,
            counts=counts,
            tokens=int(lengths.view(len(places), -1)[:, :real].sum()),
        )

    def _messages(self, row: dict) -> list[dict]:
        """The prompt as turns; of plain text there is one."""
        messages = messages_of(row)
        if self.chat is not None or len(messages) == 1:
            return messages
        return [{"role": "user", "content": "\n\n".join(message["content"] for message in messages)}]

    def _answer(self, messages: list[dict], text: str, ids: np.ndarray) -> np.ndarray:
        """The words of an answer and their end."""
        if self.chat is None:
            return np.append(ids, self.tokenizer.eos_id)
        if self.chat.jinja is None:
            return np.append(ids, self.chat.end)
        told = self.chat.jinja.conversation([*messages, {"role": "assistant", "content": text}], opens=False)
        return told.ids[told.reply : int(np.flatnonzero(told.learned)[-1]) + 1]

    def _prompt(self, messages: list[dict], parts: list[np.ndarray], room: int) -> tuple[np.ndarray, int] | None:
        """Everything before the answer, in at most `room` tokens, and how many were cut; None where nothing fits."""
        if self.chat is None:
            kept = parts[0][max(0, len(parts[0]) + 1 - room) :]
            return (np.append(self.tokenizer.eos_id, kept), len(parts[0]) - len(kept)) if room > 1 else None
        self.chat.max_length = room + 1  # it ends with one more token, which stands for the answer
        turns = self.chat.example({"messages": messages}, parts)
        return None if isinstance(turns, Dropped) else (turns.ids[:-1], turns.cut)


class Pairs(EncodedData):
    """The splits of `rows` as batches of prompts with two answers, of at most `max_length` tokens with one of them.

    `style` says whether a prompt is a conversation or plain text that goes on. Rows {"prompt", "completion",
    "desirable"} come with the answer to the next such row, which tells nothing of this prompt.
    """

    kind = "pairs"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        paired: bool | None = None,
        targets: bool = True,
        style: Literal["chat", "plain"] = "chat",
        max_length: PositiveInt = 512,
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
        self.is_chat, self.max_length = style == "chat", max_length
        first = next(iter(rows.read("train" if rows.has("train") else "test", "pairs", targets=targets)), {})
        self.paired = "completion" not in first if paired is None else paired
        self.encode_splits()

    def rows_of(self, split: str) -> Iterable[dict]:
        """The rows of a split, in their order; all must be of one shape."""
        rows = super().rows_of(split)
        if not self.targets:
            return rows
        return map(self._checked, rows) if self.paired else self._with_others(split, [*map(self._checked, rows)])

    def _checked(self, row: dict) -> dict:
        if ("chosen" in row) != self.paired:
            expected = ("prompt, completion and desirable", "prompt, chosen and rejected")[self.paired]
            raise ValueError(f"row {row['row']} has {', '.join(row)}; expected {expected}, as the first training row")
        return row

    def _with_others(self, split: str, rows: list[dict]) -> list[dict]:
        if len(rows) < 2:
            raise ValueError(f"the {split} split has {len(rows)} row; answers judged one by one need at least 2")
        following = [*rows[1:], rows[0]]
        return [{**row, OTHER: other["completion"]} for row, other in zip(rows, following, strict=True)]

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """The training prompts and answers."""
        for row in rows.read("train", "pairs"):
            yield from (message["content"] for message in messages_of(row))
            yield from (row[name] for name in ANSWERS if name in row)

    def encoder(self, split: str) -> PairEncoder:
        """The same for every split."""
        return PairEncoder(
            tokenizer=self.tokenizer, max_length=self.max_length, is_chat=self.is_chat, pad_to=self.pad_to
        )

    def asked(self, split: str) -> Iterator[Asked]:
        """The prompt with its answers; nothing more is known of them."""
        for row in self.rows_of(split):
            told = {name: row[name] for name in ("prompt", "chosen", "rejected", "completion") if name in row}
            yield Asked(row["row"], told, row.get("desirable"))

    def once(self, split: str) -> Iterable[PairBatch]:
        """Every example of a split once over all ranks, in an order of its own."""
        return self._evaluation(split)

    def identity(self, split: str) -> str | None:
        """A hash of the encoded rows of a split; None where there is no such split."""
        if (encoded := self.splits.get(split)) is None:
            return None
        digest = hashlib.sha256()
        for values in (encoded.values, encoded.offsets, encoded.columns["sizes"], encoded.rows):
            digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        return digest.hexdigest()

    def found(self) -> dict[str, Any]:
        """{"paired": whether answers are compared, or judged one by one}."""
        return {"paired": self.paired}


def messages_of(row: dict) -> list[dict]:
    """The prompt as a conversation."""
    prompt = row["prompt"]
    return prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
