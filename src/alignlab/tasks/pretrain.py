"""Pretraining: predict each next token of plain text."""

import math

from alignlab.batch import IGNORED, TextBatch
from alignlab.losses import cross_entropy
from alignlab.metrics import TextLoss
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import BelowOne


class Pretraining(TaskModule):
    """Next-token cross-entropy over every position of every window."""

    validations = 4  # one reads all of the held-out text, which takes as long as some 8 steps of the first command

    def __init__(self, *, model: GPT, tokenizer: Tokenizer, optim: Optim, label_smoothing: BelowOne = 0.0) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        self.label_smoothing = label_smoothing
        self.metrics = {"val": TextLoss(), "test": TextLoss()}

    @property
    def expected_start(self) -> float | None:
        """ln V: fresh weights hold every token equally likely."""
        return math.log(self.model.config.vocabulary or 1) if self.is_fresh else None

    def losses(self, batch: TextBatch) -> dict[str, Term]:
        """{"loss": summed negative log-likelihood over this micro-batch's targets}."""
        hidden = self.model(batch.ids, documents=batch.documents)
        nats = cross_entropy(
            self.model.unembed,
            hidden,
            batch.targets,
            label_smoothing=self.label_smoothing,
            is_full=batch.tokens == batch.targets.numel(),
        )
        return {"loss": Term(nats, "tokens")}

    def evaluate(self, batch: TextBatch, stage: str) -> None:
        """Adds the loss of one batch."""
        hidden = self.model(batch.ids, documents=batch.documents)
        nats = cross_entropy(self.model.unembed, hidden, batch.targets)
        metric = self.metrics[stage].to(nats.device)
        metric.update(nats, (batch.targets != IGNORED).sum(), batch.bytes)

    def results(self, stage: str) -> dict[str, float]:
        """loss, perplexity, bits_per_byte."""
        results = self.metrics[stage].compute()
        self.metrics[stage].reset()
        return results
