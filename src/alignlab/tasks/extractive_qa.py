"""Extractive question answering: the answer is a span of the context, told by its first and its last token.

Unusual: "no answer" is the end of text that closes a window, the one token that has seen everything in a causal model
too. The windows of a row compete by the log-odds of their best span against "no answer" in the same window, for logits
of different windows have no common zero. Where training rows lack answers, the odds that an answer needs are tuned on
the validation split and stored with the head. With `prefix_mask` the whole input sees itself.
"""

# B windows, T tokens of the longest

import logging
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from alignlab.batch import AnswerFacts, SpanBatch
from alignlab.metrics.squad import Score, best_threshold, likeliest_sentence, score
from alignlab.models.gpt import EMBEDDING_STD, GPT
from alignlab.models.huggingface_heads import ALWAYS
from alignlab.optim import Optim
from alignlab.ranks import gathered
from alignlab.tasks.shown import ROWS, table
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import BelowOne, PositiveInt

log = logging.getLogger(__name__)
SHOWN = 2  # answers of each validation, in the log


class Guess(NamedTuple):
    """The best span of a row so far: its log-odds against no answer, and where it stands in the context."""

    odds: float
    begin: int
    text: str
    question: str
    context: str
    references: list[str]


def best_spans(starts: Tensor, ends: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest starts[i] + ends[j] with i <= j < i + longest of each row (B, T), and its i and j."""
    longest = min(longest, starts.shape[1])
    reach = F.pad(ends, (0, longest - 1), value=-math.inf).unfold(1, longest, 1)  # (B, T, longest), a view
    best, ahead = reach.max(dim=-1)
    scores, first = (starts + best).max(dim=1)
    return scores, first, first + ahead.gather(1, first[:, None])[:, 0]


class Mark(nn.Module):
    """A vector for the tokens that are marked: (B, T) bool -> (B, T, D). A module, so that it can be sharded."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, is_marked: Tensor) -> Tensor:
        return is_marked[..., None] * self.weight


class ExtractiveQA(TaskModule):
    """A linear head (2, D): logits of each token to be the first, or the last, of the answer.

    `answers` are facts from the data. `max_answer_tokens` bounds an answer, by default by the longest in training.
    `head_dropout` acts on the head alone. With `match_question` every token of the context that the question has too is
    marked by a vector that is learned (the exact-match feature of Chen et al. 2017, section 3.2), which a small model
    trained on few questions does not find by itself.
    """

    threshold: Tensor

    def __init__(
        self,
        *,
        model: GPT,
        tokenizer: Tokenizer,
        optim: Optim,
        answers: dict[str, Any],
        prefix_mask: bool = False,
        match_question: bool = False,
        max_answer_tokens: PositiveInt | None = None,
        head_dropout: BelowOne = 0.0,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        self.answers = AnswerFacts(**answers)
        self.prefix_mask = prefix_mask
        self.longest = max_answer_tokens or self.answers.longest
        self.head_dropout = head_dropout
        self.head = nn.Linear(model.config.width, 2)
        nn.init.normal_(self.head.weight, std=EMBEDDING_STD)
        nn.init.zeros_(self.head.bias)
        self.match = Mark(model.config.width) if match_question else None
        self.register_buffer("threshold", torch.tensor(0.0 if self.answers.unanswerable else ALWAYS))
        self.guesses: dict[str, dict[int, Guess]] = {"val": {}, "test": {}}
        self.mean_losses = {stage: MeanMetric() for stage in ("val", "test")}
        self.uniform: float | None = None

    @property
    def expected_start(self) -> float | None:
        """Mean over the windows of the step of ln(places): a fresh head holds every place equally likely."""
        return self.uniform if self.is_head_fresh else None

    def meaning(self, found: dict[str, Any]) -> Any:
        """First and last token mean the same for all rows with answers in their context."""
        return "first and last token of an answer" if "answers" in found else None

    @property
    def silent_when_fresh(self) -> tuple[str, ...]:
        """The marks."""
        return ("match.weight",)

    def losses(self, batch: SpanBatch) -> dict[str, Term]:
        """{"loss": mean of the cross-entropies of first and last token, summed over the windows}."""
        self.uniform = batch.counts["log_candidates"] / batch.counts["windows"]
        return {"loss": Term(self._loss(self._logits(batch), batch), "windows")}

    def evaluate(self, batch: SpanBatch, stage: str) -> None:
        """Adds the windows of one batch: their loss, and the best span of each row."""
        logits, windows = self._logits(batch), len(batch.rows)
        if windows:
            loss = self._loss(logits, batch) / windows
            self.mean_losses[stage].to(loss.device).update(loss, windows)
            _compete(self.guesses[stage], self._guessed(logits, batch))

    def results(self, stage: str) -> dict[str, float]:
        """loss, em and f1, those of rows with and without an answer where there are both, and a baseline's f1."""
        results = {"loss": float(self.mean_losses[stage].compute())}
        self.mean_losses[stage].reset()
        own, self.guesses[stage] = self.guesses[stage], {}
        guesses = _of_all_ranks(own)
        if not guesses:
            return results
        if stage == "val" and self.answers.unanswerable:
            self._tune(list(guesses.values()))
        if stage == "test":
            self.predictions |= {row: self._told(guess) for row, guess in own.items() if guess == guesses[row]}
        scores = {row: self._score(self._output(guess), guess) for row, guess in guesses.items()}
        results |= {"em": _mean(one.em for one in scores.values()), "f1": _mean(one.f1 for one in scores.values())}
        if len({bool(guess.references) for guess in guesses.values()}) == 2:
            results["has_answer_f1"] = _mean(scores[row].f1 for row, guess in guesses.items() if guess.references)
            results["no_answer_f1"] = _mean(scores[row].f1 for row, guess in guesses.items() if not guess.references)
        if self.answers.unanswerable:
            results["threshold"] = float(self.threshold)
        sentences = (self._score(likeliest_sentence(one.question, one.context), one) for one in guesses.values())
        results["sentence_f1"] = _mean(one.f1 for one in sentences)
        rows = ((one.question, self._output(one), one.references) for one in list(guesses.values())[:ROWS])
        self.texts[f"{stage}/predictions"] = table(("question", "answer", "expected"), rows)
        for guess in list(guesses.values())[:SHOWN]:
            log.info("sample  %s | %r | expected %r", guess.question, self._output(guess), guess.references)
        return results

    @torch.no_grad()
    def predict(self, batches: Iterable[SpanBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": the answer, "" for none, "scores": log-odds of a span, where it begins, threshold}}."""
        guesses: dict[int, Guess] = {}
        for batch in batches:
            _compete(guesses, self._guessed(self._logits(batch), batch))
        return {row: self._told(guess) for row, guess in guesses.items()}

    def marks(self, batch: SpanBatch) -> Tensor | None:
        """(B, T, D) what `match_question` adds to the embeddings; None without it."""
        return None if self.match is None else self.match(_in_question(batch))

    def _logits(self, batch: SpanBatch) -> Tensor:
        """(B, T, 2); -inf where neither the context nor the end of text stands."""
        places = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        is_read = places < batch.lengths[:, None]
        hidden = self.model(batch.ids, prefix=is_read if self.prefix_mask else None, marks=self.marks(batch))
        logits = self.head(F.dropout(hidden, self.head_dropout, self.training)).float()
        is_candidate = is_read & (places >= batch.firsts[:, None])
        return logits.masked_fill(~is_candidate[..., None], -math.inf)

    def _loss(self, logits: Tensor, batch: SpanBatch) -> Tensor:
        windows = len(batch.rows)
        first = F.cross_entropy(logits[:windows, :, 0], batch.starts[:windows], reduction="sum")
        last = F.cross_entropy(logits[:windows, :, 1], batch.ends[:windows], reduction="sum")
        return (first + last) / 2

    def _guessed(self, logits: Tensor, batch: SpanBatch) -> dict[int, Guess]:
        """The best span of each row of a batch."""
        windows = torch.arange(len(logits), device=logits.device)
        nothing = batch.lengths - 1
        absent = logits[windows, nothing].sum(dim=-1)  # (B,)
        inside = logits.clone()
        inside[windows, nothing] = -math.inf
        scores, first, last = best_spans(inside[..., 0], inside[..., 1], self.longest)
        told = zip(
            batch.rows, batch.passages, (scores - absent).tolist(),
            (first - batch.firsts).tolist(), (last - batch.firsts).tolist(), strict=False,
        )  # fmt: skip
        guesses: dict[int, Guess] = {}
        for row, passage, odds, i, j in told:
            assert passage is not None, "rows to be measured keep their texts"
            raw = passage.context[passage.spans[i, 0] : passage.spans[j, 1]]
            begin = int(passage.spans[i, 0]) + len(raw) - len(raw.lstrip())  # a token may begin with a space
            guess = Guess(odds, begin, raw.strip(), passage.question, passage.context, passage.references)
            _compete(guesses, {row: guess})
        return guesses

    def _tune(self, guesses: list[Guess]) -> None:
        """Sets the threshold that gives the best F1."""
        answered = [self._score(guess.text, guess).f1 for guess in guesses]
        unanswered = [self._score("", guess).f1 for guess in guesses]
        self.threshold.fill_(best_threshold([guess.odds for guess in guesses], answered, unanswered))

    def _score(self, text: str, guess: Guess) -> Score:
        return score(text, guess.references, self.answers.language)

    def _output(self, guess: Guess) -> str:
        return guess.text if guess.odds > float(self.threshold) else ""

    def _told(self, guess: Guess) -> dict[str, Any]:
        scores: dict[str, float] = {"log_odds": round(guess.odds, 6), "begin": guess.begin}
        if self.answers.unanswerable:
            scores["threshold"] = round(float(self.threshold), 6)
        return {"output": self._output(guess), "scores": scores}


def _in_question(batch: SpanBatch) -> Tensor:
    """(B, T) bool: tokens of the contexts that stand in their questions too."""
    is_context = torch.arange(batch.ids.shape[1], device=batch.ids.device) >= batch.firsts[:, None]
    questions = batch.ids.masked_fill(is_context, -1)
    return (batch.ids[:, :, None] == questions[:, None, :]).any(dim=-1) & is_context


def _compete(best: dict[int, Guess], others: dict[int, Guess]) -> None:
    """Puts the better guess of each row into `best`."""
    for row, guess in others.items():
        if row not in best or guess.odds > best[row].odds:
            best[row] = guess


def _of_all_ranks(guesses: dict[int, Guess]) -> dict[int, Guess]:
    """The best guess of every row, in the order of the rows."""
    best: dict[int, Guess] = {}
    for part in gathered(guesses):
        _compete(best, part)
    return dict(sorted(best.items()))


def _mean(values: Iterable[float]) -> float:
    """Mean of values from 0 to 1, as 0 to 100."""
    known = list(values)
    return 100 * sum(known) / max(1, len(known))
