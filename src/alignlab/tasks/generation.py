"""The abstract task of writing a response to a prompt: the loss on the response, texts generated and compared.

Unusual: with `prefix_mask` the prompt sees itself fully, as an encoder would, and the response stays causal. Texts are
generated once for a whole validation, in batches of like length with a cache, greedily or by beams, so that nothing is
drawn from any random generator. It knows nothing of files and templates.
"""

# B rows, T tokens of the longest

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from alignlab.batch import IGNORED, ResponseBatch
from alignlab.generate import Sampling
from alignlab.generate.engine import generate_all
from alignlab.losses import cross_entropy
from alignlab.metrics import TextLoss
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.ranks import gathered
from alignlab.tasks.shown import ROWS, in_one_line, table
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import BelowOne, PositiveFloat, PositiveInt

log = logging.getLogger(__name__)
SHOWN = 2  # texts of each validation, in the log


class Question(NamedTuple):
    """A row to be answered."""

    row: int
    prompt: list[int]
    source: str
    references: list[str]


class Answer(NamedTuple):
    """A row that was answered; `is_ended` says that the model ended it, and no limit did."""

    row: int
    text: str
    source: str
    references: list[str]
    is_ended: bool


class ResponseTask(TaskModule):
    """Cross-entropy of the response given the prompt; metrics of what is written, by `compare`.

    `languages` are those of source and target. `beams` write the texts of a test and of predictions,
    `validation_beams` those of validations; `seconds` bounds the generation of one validation, not of a test.
    """

    def __init__(
        self,
        *,
        model: GPT,
        tokenizer: Tokenizer,
        optim: Optim,
        languages: list[str],
        prefix_mask: bool = False,
        label_smoothing: BelowOne = 0.0,
        max_new_tokens: PositiveInt = 64,
        beams: PositiveInt = 1,
        validation_beams: PositiveInt = 1,
        length_penalty: float = 1.0,
        seconds: PositiveFloat = 60.0,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        self.languages = languages
        self.prefix_mask = prefix_mask
        self.label_smoothing = label_smoothing
        self.sampling = Sampling(
            max_new_tokens=max_new_tokens, temperature=0.0, beams=beams, length_penalty=length_penalty
        )
        self.in_validation = replace(self.sampling, beams=validation_beams, seconds=seconds)
        self.metrics = {"val": TextLoss(), "test": TextLoss()}
        self.questions: dict[str, list[Question]] = {"val": [], "test": []}

    @abstractmethod
    def compare(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        """The metrics of written `texts`, each with its references."""

    @abstractmethod
    def baseline(self, answers: Sequence[Answer]) -> dict[str, float]:
        """What needs no model reaches on the same rows, under names of its own."""

    @property
    def expected_start(self) -> float | None:
        """ln V: fresh weights hold every token equally likely."""
        return math.log(self.model.config.vocabulary or 1) if self.is_fresh and not self.label_smoothing else None

    def losses(self, batch: ResponseBatch) -> dict[str, Term]:
        """{"loss": summed negative log-likelihood of the responses' tokens and ends}."""
        nats = cross_entropy(
            self.model.unembed, self._hidden(batch), batch.targets, label_smoothing=self.label_smoothing
        )
        return {"loss": Term(nats, "tokens")}

    def evaluate(self, batch: ResponseBatch, stage: str) -> None:
        """Adds the loss of one batch, and keeps the prompts that are to be answered."""
        nats = cross_entropy(self.model.unembed, self._hidden(batch), batch.targets)
        metric = self.metrics[stage].to(nats.device)
        metric.update(nats, (batch.targets != IGNORED).sum(), 0)
        self.questions[stage] += _questions(batch)

    def results(self, stage: str) -> dict[str, float]:
        """loss and perplexity of the references; `compare` and `baseline` of the texts written."""
        measured = self.metrics[stage].compute()
        results = {name: measured[name] for name in ("loss", "perplexity")}
        self.metrics[stage].reset()
        questions, self.questions[stage] = self.questions[stage], []
        answers = self._answers(questions, self.in_validation if stage == "val" else self.sampling)
        if stage == "test":
            self.predictions |= {answer.row: {"output": answer.text, "scores": {}} for answer in answers}
        answers = _of_all_ranks(answers)
        self.is_cut_short = any(gathered(bool(questions))) and not answers and not self.is_sharded
        if compared := [answer for answer in answers if answer.references]:
            references = [answer.references for answer in compared]
            results |= self.compare([answer.text for answer in compared], references)
            results |= self.baseline(compared)
            results["ended"] = sum(answer.is_ended for answer in compared) / len(compared)
            rows = ((one.source, one.text, one.references[0]) for one in compared[:ROWS])
            self.texts[f"{stage}/predictions"] = table(("source", "written", "expected"), rows)
            for one in compared[:SHOWN]:
                log.info("sample  %s | %s | expected %s", *map(_short, (one.source, one.text, one.references[0])))
        return results

    def predict(self, batches: Iterable[ResponseBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": the text written, "scores": {}}}."""
        questions = [question for batch in batches for question in _questions(batch)]
        return {answer.row: {"output": answer.text, "scores": {}} for answer in self._answers(questions, self.sampling)}

    def _hidden(self, batch: ResponseBatch) -> Tensor:
        """(B, T, D); padding stands on the right, where causal attention does not see it."""
        prefix = None
        if self.prefix_mask:
            prefix = torch.arange(batch.ids.shape[1], device=batch.ids.device) < batch.prompts[:, None]
        return self.model(batch.ids, prefix=prefix)

    @torch.no_grad()
    def _answers(self, questions: list[Question], sampling: Sampling) -> list[Answer]:
        if not questions or self.is_sharded:  # the ranks of a sharded model would have to draw in step
            return []
        with self.while_generating():
            written = generate_all(
                self.model,
                [question.prompt for question in questions],
                sampling,
                eos_ids=self.tokenizer.stop_ids,
                pad_id=self.tokenizer.pad_id,
                prefix=self.prefix_mask,
                decode=self.tokenizer.decode,
            )
        late = sum(one.finished_by == "time" for one in written)
        if late:
            shown = late, len(written), sampling.seconds
            log.warning("%d of %d texts were not finished in %.0f s, and are not counted", *shown)
        return [
            Answer(
                question.row, (one.text or "").strip(), question.source, question.references, one.finished_by == "eos"
            )
            for question, one in zip(questions, written, strict=True)
            if one.finished_by != "time"
        ]


def _short(text: str) -> str:
    """One line of at most 160 characters."""
    line = " ".join(in_one_line(text).split())
    return line if len(line) <= 160 else f"{line[:157]}..."


def _questions(batch: ResponseBatch) -> list[Question]:
    """The rows of a batch that count and are to be answered."""
    ids, prompts = batch.ids.tolist(), batch.prompts.tolist()
    return [
        Question(row, ids[place][: prompts[place]], batch.sources[place] or "", list(batch.references[place] or []))
        for place, row in enumerate(batch.rows)
        if batch.references[place] is not None
    ]


def _of_all_ranks(answers: list[Answer]) -> list[Answer]:
    """The answers of every rank, in the order of their rows."""
    return sorted((answer for part in gathered(answers) for answer in part), key=lambda answer: answer.row)
