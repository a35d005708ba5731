"""Texts with labels: what the labels are is found in the training rows.

A text is read between two ends of text, so that its first token is predicted by a language model too and its last
token has seen all of it. A text that is too long loses its end; of a pair, the longer text loses first. It knows
nothing of heads and losses.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal

import numpy as np

from alignlab.batch import LabelBatch, LabelSet
from alignlab.data.encoded import Dropped, Encoder, Example, Padded, cut_longest
from alignlab.data.module import Asked, Rows
from alignlab.data.splits import EncodedData
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveInt

SEPARATOR = "\n"  # between the texts of a pair
SHOWN = 20  # labels named in an error

Form = Literal["auto", "classes", "multi_label", "regression"]


def find_labels(rows: Iterable[dict], form: Form = "auto", before: LabelSet | None = None) -> LabelSet:
    """The label set of training rows: lists are multi-label, numbers of which some are written as fractions regression.

    Anything else is a class. Classes are ordered by name, or by id where all are ids; where `before`, what the weights
    at the start know, has the same ones, by its order. Numbers keep its scale. Raises ValueError where forms are mixed,
    or where there is only one class.
    """
    seen: Counter[str | int | float] = Counter()
    total, first, has_fraction = 0, None, False
    for row in rows:
        has_fraction |= isinstance(row["label"], float)  # 1.0 too, which is counted as 1 beside names
        label = _whole(row["label"])
        first = label if first is None else first
        if isinstance(label, list) != isinstance(first, list):
            raise ValueError(
                f"row {row['row']} of train has label {label!r}, others such as {first!r}; expected one form"
            )
        total += 1
        seen.update(set(label) if isinstance(label, list) else [label])
    if isinstance(first, list):
        form = "multi_label"
    elif form == "auto":
        are_numbers = all(not isinstance(label, str) for label in seen)
        form = "regression" if are_numbers and has_fraction else "classes"
    if form == "regression":
        found = _numbers(seen, total)
        is_same = before is not None and before.form == "regression"
        return replace(found, mean=before.mean, std=before.std) if is_same and before is not None else found
    if any(isinstance(label, str) for label in seen):
        seen = Counter({str(label): sum(seen[s] for s in seen if str(s) == str(label)) for label in seen})
    names: tuple = tuple(sorted(seen))
    if before is not None and before.form == form and set(before.names) == set(names):
        names = tuple(before.names)
    if len(names) < 2 and form == "classes":
        raise ValueError(f"the training rows have only one label, {list(names)}; expected at least two classes")
    return LabelSet(form=form, names=names, counts=tuple(seen[name] for name in names), rows=total)


def _numbers(seen: Counter, total: int) -> LabelSet:
    if any(isinstance(label, str) for label in seen):
        wrong = next(label for label in seen if isinstance(label, str))
        raise ValueError(f"datamodule.form is regression, but a training row has label {wrong!r}; expected numbers")
    values, weights = np.array(list(seen), dtype=float), np.array(list(seen.values()))
    mean = float(np.average(values, weights=weights))
    std = float(np.average((values - mean) ** 2, weights=weights) ** 0.5)
    if std == 0:
        raise ValueError(f"every training row has label {mean:g}; expected numbers that differ")
    return LabelSet(form="regression", rows=total, mean=mean, std=std)


def _whole(label: Any) -> Any:
    """1 for 1.0, so that a class is one class however a row writes it."""
    if isinstance(label, list):
        return [_whole(one) for one in label]
    return int(label) if isinstance(label, float) and label.is_integer() else label


class LabelEncoder(Encoder):
    """Encodes rows {"text" or "text_a" and "text_b", "label"}; without `learns_text` no token is learned; final."""

    reads_last: ClassVar[bool] = True

    def __init__(
        self, *, tokenizer: Tokenizer, labels: LabelSet, max_length: int, targets: bool = True, learns_text: bool = True
    ) -> None:
        before, after = labels.frame or ((tokenizer.eos_id,), (tokenizer.eos_id,))
        self.before, self.after = np.array(before, dtype=np.int64), np.array(after, dtype=np.int64)
        self.separator = np.array(tokenizer.encode(SEPARATOR))
        self.labels = labels
        self.ids = {name: number for number, name in enumerate(labels.names)}
        self.max_length = max_length
        self.targets = targets
        self.learns_text = learns_text

    def texts(self, row: dict) -> list[str]:
        """The text, or both of a pair."""
        return [row["text"]] if "text" in row else [row["text_a"], row["text_b"]]

    def example(self, row: dict, parts: list[np.ndarray]) -> Example | Dropped:
        """The text in its frame; every token but the first can be learned by the auxiliary loss."""
        between = [self.separator] * (len(parts) - 1)
        whole = sum(map(len, parts))
        parts = cut_longest(parts, self.max_length - len(self.before) - len(self.after) - sum(map(len, between)))
        cut = whole - sum(map(len, parts))
        pieces = [parts[0], *(piece for pair in zip(between, parts[1:], strict=True) for piece in pair)]
        ids = np.concatenate([self.before, *pieces, self.after])
        if not len(ids):
            return Dropped("the text has no token")
        learned = (np.arange(len(ids)) >= max(1, len(self.before))) & self.learns_text
        columns = {"labels": self._label(row.get("label"))} if self.targets else {}
        return Example(ids, learned, columns, {"examples": 1.0, "tokens": float(learned.sum())}, cut)

    def batch(self, padded: Padded, counts: dict[str, float]) -> LabelBatch:
        """See `alignlab.batch.LabelBatch`; without targets the labels are the rows' lengths, which nobody reads."""
        return LabelBatch(
            ids=padded.ids,
            targets=padded.targets,
            lengths=padded.lengths,
            labels=padded.columns.get("labels", padded.lengths),
            rows=padded.rows,
            counts=counts,
            tokens=padded.tokens,
        )

    def _label(self, label: Any) -> Any:
        label = _whole(label)
        if self.labels.form == "regression":
            if isinstance(label, str | list):
                raise ValueError(f"has label {label!r}; the labels of training are numbers")
            return np.float32((label - self.labels.mean) / self.labels.std)
        if self.labels.form == "classes":
            return self._id(label)
        if not isinstance(label, list):
            raise ValueError(f"has label {label!r}; the labels of training are lists")
        present = np.zeros(len(self.ids), dtype=np.float32)
        present[[self._id(one) for one in label]] = 1
        return present

    def _id(self, label: Any) -> int:
        name = str(label) if self.labels.names and isinstance(self.labels.names[0], str) else label
        if isinstance(name, list) or name not in self.ids:
            known = [*self.labels.names[:SHOWN], *(["..."] if len(self.labels.names) > SHOWN else [])]
            raise ValueError(f"has label {label!r}; labels seen in training are {known}")
        return self.ids[name]


class Labels(EncodedData):
    """The splits of `rows` as batches of texts with labels, of at most `max_length` tokens.

    `form` says what labels are where they do not tell: numbers without a fraction are classes. `labels` are those that
    a trained model knows; without them they are found in the training rows. `labels_before` are those of the weights
    that training starts from, whose order and scale are kept. `learns_text`: a language model learns along.
    """

    kind = "labels"

    def __init__(
        self,
        *,
        rows: Rows,
        tokenizer: Tokenizer,
        labels: dict[str, Any] | None = None,
        labels_before: dict[str, Any] | None = None,
        targets: bool = True,
        learns_text: bool = True,
        form: Form = "auto",
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
        if max_length < 4:
            raise ValueError(f"datamodule.max_length is {max_length}; expected at least 4 tokens")
        self.max_length, self.learns_text = max_length, learns_text
        if labels is not None:
            self.labels = LabelSet(**labels)
        else:
            before = None if labels_before is None else LabelSet(**labels_before)
            self.labels = find_labels(rows.read("train", "labels"), form, before)
        self.encode_splits()

    @classmethod
    def texts(cls, rows: Rows) -> Iterator[str]:
        """The training texts."""
        names = ("text", "text_a", "text_b")
        return (row[name] for row in rows.read("train", "labels") for name in names if name in row)

    def encoder(self, split: str) -> LabelEncoder:
        """The same for every split."""
        return LabelEncoder(
            tokenizer=self.tokenizer, labels=self.labels, max_length=self.max_length, targets=self.targets,
            learns_text=self.learns_text,
        )  # fmt: skip

    def asked(self, split: str) -> Iterator[Asked]:
        """The text, or the pair as a list, and its label."""
        for row in self.rows_of(split):
            text = row["text"] if "text" in row else [row["text_a"], row["text_b"]]
            yield Asked(row["row"], text, row.get("label"))

    def found(self) -> dict[str, Any]:
        """{"labels": the label set}, for the task."""
        labels = asdict(self.labels)
        return {"labels": labels | {name: list(labels[name]) for name in ("names", "counts")}}

    def facts(self) -> dict[str, str | int | float]:
        """Labels, sizes, what was cut, and the first example as the model sees it."""
        labels = self.labels
        facts: dict[str, str | int | float] = {"labels": labels.form}
        if labels.form == "regression":
            facts |= {"label_mean": labels.mean, "label_std": labels.std}
        else:
            facts["classes"] = len(labels.names)
            facts["majority"] = round(max(labels.counts) / labels.rows, 4)
        return facts | super().facts()
