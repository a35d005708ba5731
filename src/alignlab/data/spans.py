"""Questions whose answer stands in a context: windows of the context behind its question, and where the answer is.

Unusual: the question comes first, so that every token of the context has seen it in a causal model too. A context that
is too long is read in windows that overlap, each with the whole question; a window without the answer learns to say so
by the end of text that closes it. Places are found from characters, never by a search in ids. It knows nothing of
heads and losses.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from alignlab.batch import AnswerFacts, Passage, SpanBatch
from alignlab.data.encoded import Dropped, Encoder, Example, Padded
from alignlab.data.module import Asked, Rows
from alignlab.data.splits import EncodedData
from alignlab.text.scripts import language_of
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt

SEPARATOR = "\n"  # between question and context
_LOOKED_AT = 500  # training rows that tell the language
_SMALLEST = 16  # tokens of a window


def window_starts(tokens: int, room: int, stride: int) -> list[int]:
    """Where windows of `room` tokens begin, `stride` apart, so that together they hold all `tokens`."""
    starts = [0]
    while starts[-1] + room < tokens:
        starts.append(starts[-1] + stride)
    return starts


def tokens_of(answer: dict, spans: np.ndarray) -> tuple[int, int]:
    """The first and the last token that hold a character of `answer`, where tokens hold the characters `spans`."""
    begin = answer["answer_start"]
    first = int(np.searchsorted(spans[:, 1], begin, side="right"))
    last = int(np.searchsorted(spans[:, 0], begin + len(answer["text"]), side="left")) - 1
    return first, last


class SpanEncoder(Encoder):
    """Encodes rows {"context", "question", "answers"}; final. With `keeps`, texts stay beside the ids."""

    reads_last: ClassVar[bool] = True

    def __init__(self, *, tokenizer: Tokenizer, max_length: int, stride: int | None, keeps: bool) -> None:
        self.tokenizer = tokenizer
        self.separator = np.array(tokenizer.encode(SEPARATOR))
        self.max_length = max_length
        self.stride = stride
        self.keeps = keeps

    def texts(self, row: dict) -> list[str]:
        """Question and context."""
        return [row["question"], row["context"]]

    def example(self, row: dict, parts: list[np.ndarray]) -> list[Example] | Dropped:
        """Windows of end of text, question, context, end of text; a question gives way beyond half of the length."""
        question, context = parts
        if not len(context):
            return Dropped("the context has no token")
        free = self.max_length - 2 - len(self.separator)
        kept = question[: max(free // 2, free - len(context))]
        room = free - len(kept)
        before = np.concatenate([[self.tokenizer.eos_id], kept, self.separator])
        spans = self.tokenizer.offsets(row["context"], context)
        answers = row.get("answers") or []
        places = [tokens_of(answer, spans) for answer in answers if answer["answer_start"] is not None]
        references = list(dict.fromkeys(answer["text"] for answer in answers))
        stride = min(self.stride or max(1, room // 2), room)
        examples = []
        for start in window_starts(len(context), room, stride):
            stop = min(len(context), start + room)
            example = self._window(before, context[start:stop], [(a - start, b - start) for a, b in places])
            if self.keeps:
                example = example._replace(kept=Passage(row["context"], row["question"], spans[start:stop], references))
            examples.append(example)
        return [examples[0]._replace(cut=len(question) - len(kept)), *examples[1:]]

    def _window(self, before: np.ndarray, part: np.ndarray, places: list[tuple[int, int]]) -> Example:
        """The first of the answers that lies in `part` as a whole is learned, else the end of text behind it."""
        first, last = next(((a, b) for a, b in places if 0 <= a <= b < len(part)), (len(part), len(part)))
        ids = np.concatenate([before, part, [self.tokenizer.eos_id]]).astype(np.int64)
        learned = np.zeros(len(ids), dtype=bool)
        learned[len(before) + first : len(before) + last + 1] = True
        columns = {"firsts": len(before), "starts": len(before) + first, "ends": len(before) + last}
        return Example(ids, learned, columns, {"windows": 1.0, "log_candidates": math.log(len(part) + 1)})

    def batch(self, padded: Padded, counts: dict[str, float]) -> SpanBatch:
        """See `alignlab.batch.SpanBatch`."""
        return SpanBatch(
            ids=padded.ids,
            lengths=padded.lengths,
            firsts=padded.columns["firsts"],
            starts=padded.columns["starts"],
            ends=padded.columns["ends"],
            passages=padded.kept,
            rows=padded.rows,
            counts=counts,
            tokens=padded.tokens,
        )


class Spans(EncodedData):
    """The splits of `rows` as batches of windows, of at most `max_length` tokens each with their question.

    `stride` is the number of tokens between the starts of a context's windows, by default half of a window. `answers`
    are the facts that a trained model knows; without them they are found in the training rows.
    """

    kind = "span"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        answers: dict[str, Any] | None = None,
        targets: bool = True,
        stride: PositiveInt | None = None,
        max_length: PositiveInt = 256,
        pad_to: PositiveInt = 1,
        batch_size: PositiveInt = 32,
        accumulate: PositiveInt = 1,
        workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        epoch_steps: PositiveInt | None = None,
    ) -> None:
        super().__init__(
            rows=rows, tokenizer=tokenizer, targets=targets, pad_to=pad_to, batch_size=batch_size,
            accumulate=accumulate, workers=workers, seed=seed, epoch_steps=epoch_steps,
        )  # fmt: skip
        if max_length < _SMALLEST:
            raise ValueError(f"datamodule.max_length is {max_length}; expected at least {_SMALLEST} tokens")
        self.max_length, self.stride = max_length, stride
        self.encode_splits()
        self.answers = self._found() if answers is None else AnswerFacts(**answers)

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """Contexts and questions of the training rows; questions about one context mostly follow each other."""
        before = None
        for row in rows.read("train", "span"):
            if row["context"] != before:
                yield row["context"]
            before = row["context"]
            yield row["question"]

    def encoder(self, split: str) -> SpanEncoder:
        """Rows to be measured keep their texts."""
        return SpanEncoder(
            tokenizer=self.tokenizer, max_length=self.max_length, stride=self.stride, keeps=split != "train"
        )

    def asked(self, split: str) -> Iterator[Asked]:
        """Question and context, and the answer or several; empty where the context has none."""
        for row in self.rows_of(split):
            target: Any = None
            if (answers := row.get("answers")) is not None:
                texts = list(dict.fromkeys(answer["text"] for answer in answers))
                target = "" if not texts else texts[0] if len(texts) == 1 else texts
            yield Asked(row["row"], {"question": row["question"], "context": row["context"]}, target)

    def found(self) -> dict[str, Any]:
        """{"answers": what the training rows tell of them}, for the task."""
        return {"answers": asdict(self.answers)}

    def facts(self) -> dict[str, str | int | float]:
        """Of answers, sizes, what was cut, and the first example as the model sees it."""
        facts: dict[str, str | int | float] = {
            "language": self.answers.language,
            "longest_answer": self.answers.longest,
            "unanswerable": str(self.answers.unanswerable).lower(),
        }
        return facts | super().facts()

    def _found(self) -> AnswerFacts:
        split = "train" if self.source.has("train") else "test"  # weights alone are measured without training rows
        language = getattr(self.source, "source_language", "auto")
        if language == "auto":
            language = language_of(row["context"] for row in islice(self.rows_of(split), _LOOKED_AT))
        encoded = self.splits[split]
        starts, ends = encoded.columns["starts"], encoded.columns["ends"]
        is_answer = starts < encoded.lengths - 1
        longest = int((ends - starts + 1)[is_answer].max(initial=1))
        unanswerable = any(row.get("answers") == [] for row in self.rows_of(split))
        return AnswerFacts(language=language, longest=longest, unanswerable=unanswerable)
