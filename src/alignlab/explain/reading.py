"""What the model reads, and the number about it that is to be explained, for each task.

The only file here that knows tasks: a class, a span, a reward and a next token all become one function of hidden
states, and everything else works on that.
"""

# N points on a path, T tokens, D width, C classes, V vocabulary

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignlab.batch import IGNORED, PairBatch, SpanBatch
from alignlab.errors import UserError, mistaken
from alignlab.explain.attribution import Number
from alignlab.explain.tokens import alone, visible
from alignlab.models.gpt import GPT
from alignlab.tasks.classification import Classification
from alignlab.tasks.extractive_qa import ExtractiveQA, best_spans
from alignlab.tasks.generation import ResponseTask
from alignlab.tasks.reward import Reward
from alignlab.tasks.task import TaskModule
from alignlab.text.tokenizer import Tokenizer

ROW_TASKS = (Classification, ExtractiveQA, ResponseTask, Reward)  # the others read plain text


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One row as the model reads it.

    `following` is the id after each position, or IGNORED; `counted` says which of these the task's loss is the mean of.
    `prefix` marks tokens that the whole row sees; with `speaks_causally` what is said of next tokens comes from a pass
    without it. `cut` is how many tokens of the text were left out, None: some. `batch` is the row alone, for
    the task's own methods.
    """

    ids: Tensor  # (1, T)
    following: Tensor  # (1, T)
    counted: Tensor  # (1, T)
    prefix: Tensor | None = None  # (1, T)
    marks: Tensor | None = None  # (1, T, D), what the task adds to the embeddings
    speaks_causally: bool = False
    cut: int | None = 0
    batch: Any = None


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """A number that the model says: `name` and `unit` for a person, and how it is made of hidden states."""

    name: str
    unit: str
    number: Number


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the task says to the row: a sentence, and shares between 0 and 1 by name, the largest first."""

    text: str
    shares: tuple[tuple[str, float], ...] = ()


def text_reading(tokenizer: Tokenizer, text: str, *, limit: int, device: torch.device | str = "cpu") -> Reading:
    """A text after an end of text, as pretraining reads it, of at most `limit` tokens."""
    if not text:
        raise UserError("the text is empty; expected at least one character")
    try:
        ids = tokenizer.encode(text)
    except UnicodeEncodeError as error:
        raise UserError(f"the text has half a character (lone surrogate) at position {error.start}") from error
    if not ids:
        raise UserError("the tokenizer makes no token of the text; expected another text")
    kept = ids[: limit - 1]
    row = torch.tensor([[tokenizer.eos_id, *kept]], device=device)
    following = torch.cat([row[:, 1:], row.new_full((1, 1), IGNORED)], dim=1)
    return Reading(ids=row, following=following, counted=following != IGNORED, cut=len(ids) - len(kept))


def row_reading(task: TaskModule, batch: Any, *, was_cut: bool, target: str | None = None) -> Reading:
    """The first row of a batch of the task; of a long context the window that the answer is found in.

    Of two answers to be compared it is the one that `target` names, "chosen" or "rejected".
    """
    assert isinstance(task, ROW_TASKS), f"{type(task).__name__} reads plain text"
    if isinstance(task, ExtractiveQA):
        was_cut |= len(batch.rows) > 1
        batch = _best_window(task, batch)
    place = _sequence(batch, target) if isinstance(task, Reward) else 0
    length = int(batch.lengths[place])
    ids = batch.ids[place : place + 1, :length]
    end = ids.new_full((1, 1), IGNORED)
    following = torch.cat([ids[:, 1:], end], dim=1)
    counted = following != IGNORED
    prefix = _prefix(task, batch, length)
    if isinstance(task, ResponseTask):
        if batch.references[0]:  # else nothing but the end of an answer that is not there stands at the end
            following = torch.cat([ids[:, 1:], batch.targets[:1, length - 1 : length]], dim=1)
            counted = batch.targets[:1, :length] != IGNORED
        if prefix is not None:  # a token that is seen is not predicted
            following[:, :-1] = following[:, :-1].masked_fill(prefix[:, 1:], IGNORED)
            counted &= following != IGNORED
    return Reading(
        ids=ids, following=following, counted=counted, prefix=prefix, marks=_marks(task, batch),
        speaks_causally=not isinstance(task, ResponseTask), cut=None if was_cut else 0, batch=batch,
    )  # fmt: skip


def _sequence(batch: PairBatch, target: str | None) -> int:
    """Which sequence of a batch of one row holds the answer that `target` names."""
    names = ("chosen", "rejected")[: len(batch.lengths)]
    if target is not None and target not in names:
        raise mistaken(f"--target {target}: the row has no such answer", target, names)
    return names.index(target) if target is not None else 0


def _best_window(task: ExtractiveQA, batch: SpanBatch) -> SpanBatch:
    """The window of the likeliest answer, alone."""
    windows = [_alone(batch, place) for place in range(len(batch.rows))]
    odds = [next(iter(task.predict([one]).values()))["scores"]["log_odds"] for one in windows]
    return windows[odds.index(max(odds))]


def _alone(batch: Any, place: int) -> Any:
    """One row of a batch, without its padding."""
    length = int(batch.lengths[place])
    fields = {name: value for name, value in batch._asdict().items() if name not in ("counts", "tokens")}
    own = {name: value[place : place + 1] for name, value in fields.items()}
    return batch._replace(**own)._replace(ids=own["ids"][:, :length])


def _prefix(task: TaskModule, batch: Any, length: int) -> Tensor | None:
    """(1, T) what all of the row sees: a prompt, or a whole text that is not to be continued."""
    seen = None
    if isinstance(task, ResponseTask) and task.prefix_mask:
        seen = int(batch.prompts[0])
    if isinstance(task, Classification | ExtractiveQA) and task.prefix_mask:
        seen = length
    return None if seen is None else torch.arange(length, device=batch.ids.device)[None] < seen


@torch.no_grad()
def _marks(task: TaskModule, batch: Any) -> Tensor | None:
    return task.marks(batch) if isinstance(task, ExtractiveQA) else None


def scalar(task: TaskModule | None, model: GPT, tokenizer: Tokenizer, reading: Reading, target: str | None) -> Scalar:
    """What is explained: `target`, or what the model holds likeliest."""
    hidden = _hidden(model, reading)
    if isinstance(task, Classification):
        return _class(task, reading, target)
    if isinstance(task, ExtractiveQA):
        return _span(task, reading, hidden, target)
    if isinstance(task, Reward):
        name = f"the reward of the {target or 'chosen'} answer"
        return Scalar(name=name, unit="reward", number=lambda hidden: task.head(hidden[:, -1])[:, 0].float())
    return _next_token(model, tokenizer, hidden, target)


def answer(task: TaskModule | None, reading: Reading) -> Answer | None:
    """What the head of the task says; None for a language model, whose answer is its next token."""
    if isinstance(task, Classification):
        [told] = task.predict([_alone(reading.batch, 0)]).values()
        text = told["output"]
        if isinstance(text, list):
            text = ", ".join(map(str, text)) or "no label"
        shares = sorted(told["scores"].items(), key=lambda one: -one[1])
        return Answer(text=f"{text:.4g}" if isinstance(text, float) else str(text), shares=tuple(shares))
    if isinstance(task, ExtractiveQA):
        [told] = task.predict([reading.batch]).values()
        odds = told["scores"]["log_odds"]
        return Answer(text=f"{told['output'] or 'no answer'} (log-odds against no answer: {odds:.3f})")
    if isinstance(task, Reward):
        [told] = task.predict([reading.batch]).values()
        return Answer(
            text="; ".join(f"reward of the {name} answer {score:.4f}" for name, score in told["scores"].items())
        )
    return None


@torch.no_grad()
def _hidden(model: GPT, reading: Reading) -> Tensor:
    return model(reading.ids, prefix=reading.prefix, marks=reading.marks)  # (1, T, D)


def _next_token(model: GPT, tokenizer: Tokenizer, hidden: Tensor, target: str | None) -> Scalar:
    if target is None:
        wanted = int(model.unembed(hidden[:, -1]).argmax())
    else:
        ids = [tokenizer.specials[target]] if target in tokenizer.specials else tokenizer.encode(target)
        if not ids:
            raise UserError(f"--target {target!r} is no token; expected text that may follow")
        wanted = ids[0]

    def number(hidden: Tensor) -> Tensor:
        return model.unembed(hidden[:, -1]).float().log_softmax(dim=-1)[:, wanted]

    return Scalar(name=f"next token {alone(tokenizer, wanted).label}", unit="log-probability, nats", number=number)


def _logits(task: Classification, hidden: Tensor) -> Tensor:
    """(N, T, D) without padding -> (N, C)."""
    pooled = hidden[:, -1] if task.pooling == "last" else hidden.mean(dim=1)
    return task.head(pooled).float()


def _class(task: Classification, reading: Reading, target: str | None) -> Scalar:
    """The log-odds of a class against all others together, which no common shift of the logits moves."""
    beside = "" if task.ngrams is None else ", by the model without the n-grams beside it"
    names = [str(name) for name in task.labels.names]
    if task.labels.form == "regression":
        if target is not None:
            raise UserError(f"--target {target} is given, but this run says one number; leave --target out")
        spread, mean = task.labels.std, task.labels.mean
        return Scalar(
            name=f"the number{beside}",
            unit="its unit",
            number=lambda hidden: _logits(task, hidden)[:, 0] * spread + mean,
        )
    if target is not None and target not in names:
        raise mistaken(f"--target {target}: there is no such class", target, names)
    if target is None:
        [told] = task.predict([_alone(reading.batch, 0)]).values()
        target = max(told["scores"], key=told["scores"].__getitem__)
    place = names.index(target)
    others = [number for number in range(len(names)) if number != place]

    def log_odds(hidden: Tensor) -> Tensor:
        logits = _logits(task, hidden)
        if task.labels.form == "multi_label":
            return logits[:, place]
        return logits[:, place] - logits[:, others].logsumexp(dim=-1)

    return Scalar(name=f"class {visible(names[place])}{beside}", unit="log-odds", number=log_odds)


@torch.no_grad()
def _span(task: ExtractiveQA, reading: Reading, hidden: Tensor, target: str | None) -> Scalar:
    """The log-odds of a span against no answer, by which the task chooses; `target` is a text of the context."""
    batch: SpanBatch = reading.batch
    opening, nothing, passage = int(batch.firsts[0]), int(batch.lengths[0]) - 1, batch.passages[0]
    assert passage is not None, "rows to be answered keep their texts"
    if target is None:
        inside = task.head(hidden)[:, opening:nothing].float()
        _, first, last = (int(one[0]) for one in best_spans(inside[..., 0], inside[..., 1], task.longest))
    else:
        begin = passage.context.find(target)
        places = [i for i, (start, stop) in enumerate(passage.spans) if start < begin + len(target) and stop > begin]
        if begin < 0 or not target or not places:
            raise UserError(f"--target {target}: what is read of the context has no such text; copy it exactly")
        first, last = places[0], places[-1]
    text = passage.context[passage.spans[first, 0] : passage.spans[last, 1]].strip()
    i, j = opening + first, opening + last

    def log_odds(hidden: Tensor) -> Tensor:
        logits = task.head(hidden).float()  # (N, T, 2)
        return logits[:, i, 0] + logits[:, j, 1] - logits[:, nothing].sum(dim=-1)

    return Scalar(name=f"answer {visible(text)}", unit="log-odds against no answer", number=log_odds)
