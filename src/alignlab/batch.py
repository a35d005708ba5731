"""Batches: what passes from the data to the tasks.

A batch is a NamedTuple, because the device transfer of the trainer and the pinning of torch both handle those.
Beside its tensors it carries plain numbers known on the host: the target counts of the whole optimizer step
(all micro-batches on all ranks), by which a task divides its sums, and what throughput is counted in.
"""

# B rows, T tokens, C classes

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

IGNORED = -100  # a position of `targets` without a target
SIDES = ("chosen", "rejected")  # of a pair


class TextBatch(NamedTuple):
    """Rows of text for a language model.

    `targets[b, t]` is the id that follows `ids[b, t]`, or IGNORED. `documents` is None where a row is one text that
    fills it; -1 is padding. `counts` maps a name to the targets of the whole optimizer step, `tokens` are this
    batch's own input tokens less padding, `bytes` the UTF-8 bytes that its targets stand for.
    """

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    documents: Tensor | None  # (B, T)
    counts: dict[str, float]
    tokens: int
    bytes: float


@dataclass(frozen=True, kw_only=True)
class LabelSet:
    """What the labels of the training rows are: their form, and `names` of the classes in the order of their ids.

    `counts` are the training rows of each class; numbers to regress on have `mean` and `std` instead. `frame` are the
    ids before and after a text, where that is not the end of text, as with a folder of somebody else's.
    """

    form: Literal["classes", "multi_label", "regression"]
    names: tuple[str | int, ...] = ()
    counts: tuple[int, ...] = ()
    rows: int = 0
    mean: float = 0.0
    std: float = 1.0
    frame: tuple[tuple[int, ...], tuple[int, ...]] | None = None


class LabelBatch(NamedTuple):
    """Texts with labels, padded on the right, where causal attention needs no mask.

    `targets[b, t]` is the id that follows `ids[b, t]` within the text, or IGNORED. `labels` are ids (B,), truth values
    (B, C) or standardized numbers (B,), by the form of the label set. `rows` numbers the rows that count: the first
    len(rows). `counts` and `tokens` as in TextBatch.
    """

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    labels: Tensor
    rows: list[int]
    counts: dict[str, float]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class AnswerFacts:
    """What the training rows tell of answers that stand in their contexts.

    `language` is that of the contexts, `longest` the tokens of the longest answer. `unanswerable` says that some
    questions have none.
    """

    language: str
    longest: int
    unanswerable: bool


class Passage(NamedTuple):
    """The text that a window of tokens is from; `spans` (n, 2) are the characters of each token of the window.

    `references` are the texts of the answers: none for a question that the context does not answer.
    """

    context: str
    question: str
    spans: np.ndarray
    references: list[str]


class SpanBatch(NamedTuple):
    """Windows of a context behind its question, padded on the right: a row may have several.

    The context's tokens are ids[firsts : lengths - 1]; the end of text at lengths - 1 means that no answer is there.
    `starts` and `ends` are the places of an answer's first and last token. `passages` are None in training. `rows` are
    the row numbers of the windows that count, `counts` and `tokens` as in LabelBatch.
    """

    ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    firsts: Tensor  # (B,)
    starts: Tensor  # (B,)
    ends: Tensor  # (B,)
    passages: list[Passage | None]
    rows: list[int]
    counts: dict[str, float]
    tokens: int


class ResponseBatch(NamedTuple):
    """Prompts with responses, padded on the right; the targets are the response and its end.

    `prompts` are the tokens of each prompt, which starts its row. `sources` and `references` are texts, None in
    training and for rows that are not to be generated. `rows`, `counts` and `tokens` as in LabelBatch.
    """

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    prompts: Tensor  # (B,)
    sources: list[str | None]
    references: list[list[str] | None]
    rows: list[int]
    counts: dict[str, float]
    tokens: int


class PairBatch(NamedTuple):
    """Prompts with two answers, padded on the right: sequence b has the better answer of row b, B + b the other one.

    `targets` are the tokens of the answer. Of rows whose answers are judged one by one, the first is `desirable` or
    not, and the second is the answer to another prompt. Where rows are only scored there are B sequences. `margins`
    say by how much the better answer is better, 0 where it is not known. `rows`, `counts` and `tokens` as in
    LabelBatch.
    """

    ids: Tensor  # (2B, T)
    targets: Tensor  # (2B, T)
    lengths: Tensor  # (2B,)
    margins: Tensor  # (B,)
    desirable: Tensor  # (B,) bool
    rows: list[int]
    counts: dict[str, float]
    tokens: int

    def by_row(self, values: Tensor) -> list[dict[str, float]]:
        """What is said of each sequence, (2B,) or (B,), as {"chosen", "rejected"} of each row that has them."""
        is_answer = (self.targets != IGNORED).any(dim=1).tolist()
        told: list[dict[str, float]] = [{} for _ in self.margins]
        for place, value in enumerate(values.tolist()):
            if is_answer[place]:
                told[place % len(told)][SIDES[place // len(told)]] = value
        return told


class PromptBatch(NamedTuple):
    """Prompts to be answered by draws and rewarded: in training, all of this rank's in the whole optimizer step.

    `ids` are padded on the right. `texts` are the prompts as the rows hold them, `references` what a checker compares
    with. `rows`, `counts` and `tokens` as in LabelBatch.
    """

    ids: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    texts: list[str]
    references: list[str | None]
    rows: list[int]
    counts: dict[str, float]
    tokens: int
