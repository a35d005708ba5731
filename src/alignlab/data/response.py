"""Prompts and responses: a source and its target, a document and its summary, a question and its answer.

Unusual: the prompt is rendered in parts, so that what is learned, the response and its end, is known while the ids are
put together. A prompt that is too long loses the left of its long part (source, document, context), never a word of the
template, the question or the response; a training row whose response alone does not fit is dropped. Of several
references training takes the first. It knows nothing of heads and losses.
"""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from alignlab.batch import ResponseBatch
from alignlab.data.encoded import Dropped, Encoder, Example, Padded
from alignlab.data.module import SPLITS, Asked, Rows
from alignlab.data.splits import EncodedData
from alignlab.text.scripts import language_code, language_of, may_look_like
from alignlab.text.template import Template
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt

log = logging.getLogger(__name__)

TARGETS = ("target", "summary", "answer")
_LOOKED_AT = 500  # training rows that tell the languages


def fields_of(row: dict) -> dict[str, str]:
    """What a row asks, by field; a source is a document too, and the other way round."""
    fields = {name: row[name] for name in ("source", "document", "question", "context") if name in row}
    if "source" in fields or "document" in fields:
        text = fields.get("source", fields.get("document", ""))
        fields |= {"source": text, "document": text}
    return fields


def references_of(row: dict) -> list[str]:
    """The responses that a row accepts; none where it has no target."""
    value: Any = next((row[name] for name in TARGETS if name in row), [])
    return [value] if isinstance(value, str) else list(value)


class ResponseEncoder(Encoder):
    """Encodes response rows; final. With `keeps`, rows to be measured: source and references stay beside the ids."""

    reads_last: ClassVar[bool] = False

    def __init__(self, *, tokenizer: Tokenizer, template: Template, max_length: int, keeps: bool) -> None:
        self.eos = tokenizer.eos_id
        self.template = template
        self.max_length = max_length
        self.keeps = keeps

    def texts(self, row: dict) -> list[str]:
        """The prompt in three parts, and the first reference."""
        try:
            prompt = self.template.render(fields_of(row))
        except ValueError as error:
            raise ValueError(f"row {row['row']} {error}") from error
        return [*prompt, *references_of(row)[:1]]

    def example(self, row: dict, parts: list[np.ndarray]) -> Example | Dropped:
        """End of text, prompt, response, end of text: the last two are learned."""
        before, long, after = parts[:3]
        response = np.array([*(parts[3] if len(parts) > 3 else []), self.eos], dtype=np.int64)
        frame = 1 + len(before) + len(after)
        # the last id is only predicted, so one more fits than is read
        room = self.max_length + 1 - frame - len(response)
        if room < min(1, len(long)):
            if not self.keeps:
                return Dropped(f"response and question alone exceed max_length={self.max_length}")
            response = response[: max(1, len(response) + room - 1)]
            room = max(1, self.max_length + 1 - frame - len(response))
        kept = long[-room:] if room < len(long) else long
        ids = np.concatenate([[self.eos], before, kept, after, response]).astype(np.int64)
        learned = np.zeros(len(ids), dtype=bool)
        prompt = frame + len(kept)
        learned[prompt:] = True
        beside = (self._source(row), references_of(row)) if self.keeps else None
        counts, cut = {"tokens": float(len(response))}, len(long) - len(kept)
        return Example(ids, learned, {"prompts": prompt}, counts, cut, beside)

    def batch(self, padded: Padded, counts: dict[str, float]) -> ResponseBatch:
        """See `alignlab.batch.ResponseBatch`."""
        return ResponseBatch(
            ids=padded.ids,
            targets=padded.targets,
            lengths=padded.lengths,
            prompts=padded.columns["prompts"],
            sources=[None if kept is None else kept[0] for kept in padded.kept],
            references=[None if kept is None else kept[1] for kept in padded.kept],
            rows=padded.rows,
            counts=counts,
            tokens=padded.tokens,
        )

    def _source(self, row: dict) -> str:
        fields = fields_of(row)
        return fields.get("source", fields.get("context", fields.get("question", "")))


class Responses(EncodedData):
    """The splits of `rows` as batches of prompts with responses, of at most `max_length` tokens.

    `template` makes the prompt of a row. Of the validation rows, `generate_rows` are answered and compared at each
    validation, always the same; the loss is over all. `languages` (source, target) are those that a trained model
    knows; without them they are given by the rows, or found from the script of the training rows.
    """

    kind = "response"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        template: str,
        languages: list[str] | None = None,
        targets: bool = True,
        generate_rows: NonNegativeInt = 256,
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
        self.template, self.max_length = Template(template), max_length
        self.languages = find_languages(rows) if languages is None else list(languages)
        self.encode_splits()
        self.keep_only(generate_rows)

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """Both sides of the training rows."""
        for row in rows.read("train", "response"):
            fields = fields_of(row)
            yield from dict.fromkeys(fields.values())
            yield from references_of(row)

    def encoder(self, split: str) -> ResponseEncoder:
        """Rows to be measured keep their texts."""
        return ResponseEncoder(
            tokenizer=self.tokenizer, template=self.template, max_length=self.max_length, keeps=split != "train"
        )

    def asked(self, split: str) -> Iterator[Asked]:
        """What the prompt is made of, a text or several by name, and the references."""
        for row in self.rows_of(split):
            given = {name: value for name, value in row.items() if name not in (*TARGETS, "row")}
            references = references_of(row)
            target: Any = references[0] if len(references) == 1 else references or None
            yield Asked(row["row"], next(iter(given.values())) if len(given) == 1 else given, target)

    def found(self) -> dict[str, Any]:
        """{"languages": [source, target]}, for the metrics."""
        return {"languages": self.languages}

    def facts(self) -> dict[str, str | int | float]:
        """Languages, sizes, what was cut, and the first example as the model sees it."""
        facts: dict[str, str | int | float] = dict(
            zip(("source_language", "target_language"), self.languages, strict=True)
        )
        return facts | super().facts()


def find_languages(rows: Rows) -> list[str]:
    """[source, target]: what the rows declare, else the script of the first rows; warns where the two disagree."""
    named = [language_code(getattr(rows, f"{side}_language", "auto")) for side in ("source", "target")]
    split = next(split for split in SPLITS if rows.has(split))
    first = list(islice(rows.read(split, "response", targets=False), _LOOKED_AT))
    sources = (next(iter(fields_of(row).values())) for row in first)
    targets = [text for row in first for text in references_of(row)]
    found = [language_of(sources), language_of(targets)]
    for side, name, told in zip(("source", "target"), named, found, strict=True):
        if not may_look_like(name, told) and (targets or side == "source"):
            log.warning("data.%s_language is %s, but the texts look like %s: is a column mistaken?", side, name, told)
    return [told if name == "auto" else name for name, told in zip(named, found, strict=True)]
