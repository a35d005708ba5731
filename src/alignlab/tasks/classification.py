"""Classification: one label, any number of labels, or a number for a text or a pair of texts.

Unusual: a text is told by the hidden state of its last token, or by the mean over its tokens, found by length and never
by the id of a padding token. With `prefix_mask` the text sees itself fully, as an encoder would.
The auxiliary language-model loss of Radford et al. 2018 (section 3.2, L3 = L2 + lambda L1) is a term with its own
count: the tokens of the step, not its examples.
With `ngrams` a linear classifier of n-grams of tokens answers too. Each of the two learns by a loss of its own, so that
they err on other texts, and a weighted mean of their logits is the answer (a product of experts, Hinton 2002).
"""

# B texts, T tokens of the longest, D width, C classes

import logging
import math
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from alignlab.batch import IGNORED, LabelBatch, LabelSet
from alignlab.losses import cross_entropy
from alignlab.metrics.classes import ClassScores, NumberScores, SetScores
from alignlab.models.gpt import EMBEDDING_STD, GPT
from alignlab.models.ngrams import Ngrams
from alignlab.optim import Optim
from alignlab.tasks.confusion import Confusion
from alignlab.tasks.shown import ROWS, table
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import BelowOne, NonNegativeFloat, NonNegativeInt

log = logging.getLogger(__name__)

EACH_SHOWN = 50  # classes at most whose own F1 is logged
NGRAMS_COUNT = 2  # times as much as the model in their common answer; chosen in benchmarks/results_classification.md


class Reading(NamedTuple):
    """The share of the texts that is read, and each token's place in its text; None: all of them, in order."""

    ids: Tensor  # (B, T)
    targets: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    positions: Tensor | None  # (B, T)
    share: float


class Classification(TaskModule):
    """A linear head (C, D) on the last token of each text, or with `pooling="mean"` on the mean over its tokens.

    `labels` is a label set as a dict, from the data. `lm_weight` adds the language-model loss of the texts.
    `class_weights="balanced"` weighs an example by rows / (classes x rows of its class). `label_smoothing` and
    `head_dropout` act on the head alone. In training `token_dropout` blanks a share of the tokens that are read, and
    `token_skipping` leaves out a share of those between the first and the last, which takes less time too. With
    `prefix_mask` every token sees the whole text; the language-model loss then takes a second, causal pass. `ngrams`
    is the longest n-gram of the classifier beside the model; 0: there is none.
    """

    def __init__(
        self,
        *,
        model: GPT,
        tokenizer: Tokenizer,
        optim: Optim,
        labels: dict[str, Any],
        lm_weight: NonNegativeFloat = 0.0,
        class_weights: Literal["balanced"] | None = None,
        label_smoothing: BelowOne = 0.0,
        head_dropout: BelowOne = 0.0,
        token_dropout: BelowOne = 0.0,
        token_skipping: BelowOne = 0.0,
        pooling: Literal["last", "mean"] = "last",
        prefix_mask: bool = False,
        ngrams: NonNegativeInt = 0,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        self.labels = LabelSet(**labels)
        self.lm_weight = lm_weight
        self.label_smoothing = label_smoothing
        self.head_dropout = head_dropout
        self.token_dropout = token_dropout
        self.token_skipping = token_skipping
        self.pooling = pooling
        self.prefix_mask = prefix_mask
        self.head = nn.Linear(model.config.width, max(1, len(self.labels.names)), bias=False)
        nn.init.normal_(self.head.weight, std=EMBEDDING_STD)
        self.ngrams = Ngrams(ngrams, self.head.out_features) if ngrams else None
        self.class_weights = _balanced(self.labels) if class_weights == "balanced" else None
        self.metrics = {stage: _scores(self.labels) for stage in ("val", "test")}
        self.mean_losses = {stage: MeanMetric() for stage in ("val", "test")}
        self.answers: dict[str, list[tuple[object, ...]]] = {"val": [], "test": []}  # a few, to be shown

    @property
    def expected_start(self) -> float | None:
        """ln C: a fresh head holds every class equally likely; ln 2 for each of many labels; 1 for a variance."""
        if not self.is_head_fresh or self.class_weights is not None or self.label_smoothing:
            return None
        return {"classes": math.log(max(2, len(self.labels.names))), "multi_label": math.log(2), "regression": 1.0}[
            self.labels.form
        ]

    def meaning(self, found: dict[str, Any]) -> Any:
        """The form of the labels and their names in order."""
        labels = found.get("labels")
        return None if labels is None else (labels["form"], list(labels["names"]))

    def look_over(self, batches: Iterable[LabelBatch]) -> None:
        """How many texts have an n-gram, which says how much it tells."""
        if self.ngrams is not None:
            log.info("n-grams  counting those of the training texts")  # half a minute for a million
            self.ngrams.weigh((batch.ids, batch.lengths) for batch in batches)

    def monitored(self, asked: str) -> str:
        """Numbers have no accuracy, but a root mean squared error."""
        return "val/rmse" if self.labels.form == "regression" and asked == "val/accuracy" else asked

    @property
    def silent_when_fresh(self) -> tuple[str, ...]:
        """The n-grams."""
        return ("ngrams.embedding.weight", "ngrams.weights")

    def losses(self, batch: LabelBatch) -> dict[str, Term]:
        """{"loss": of the labels, "ngrams_loss" and "lm_loss", of the texts' tokens, where they are asked for}."""
        reading = self._reading(batch)
        hidden = self._hidden(reading)
        terms = {"loss": Term(self._loss(self._logits(hidden, reading.lengths), batch.labels), "examples")}
        if self.ngrams is not None:
            of_ngrams = self._loss(self.ngrams(batch.ids, batch.lengths), batch.labels)
            terms["ngrams_loss"] = Term(of_ngrams, "examples")
        if self.lm_weight:  # who sees a token need not predict it
            causal = self.model(reading.ids, positions=reading.positions) if self.prefix_mask else hidden
            nats = cross_entropy(self.model.unembed, causal, reading.targets)
            terms["lm_loss"] = Term(nats / reading.share, "tokens", self.lm_weight)
        return terms

    def evaluate(self, batch: LabelBatch, stage: str) -> None:
        """Adds the texts of one batch; on the test split their predictions too."""
        logits = self._real_logits(batch)
        labels = batch.labels[: len(batch.rows)]
        if not len(labels):
            return
        metric = self.metrics[stage].to(logits.device)
        self.mean_losses[stage].to(logits.device).update(self._loss(logits, labels) / len(labels), len(labels))
        if self.labels.form == "regression":
            metric.update(self._numbers(logits), labels * self.labels.std + self.labels.mean)
        else:
            metric.update(logits, labels)
        if stage == "test":
            self.predictions |= self._told(batch, logits)
        self._show(batch, logits, stage)

    def results(self, stage: str) -> dict[str, float]:
        """What the scores of this form measure, F1 of each class; what is to be shown is laid ready.

        majority is the accuracy of whoever always says the commonest class of training.
        """
        metric, names = self.metrics[stage], self.labels.names
        results = {"loss": float(self.mean_losses[stage].compute()), **metric.compute()}
        each, confusion = results.pop("each_f1", None), results.pop("confusion", None)
        if (bins := results.pop("bins", None)) is not None:
            self.bins[f"{stage}/calibration"] = bins.cpu()
        if each is not None and len(names) <= EACH_SHOWN:
            plain = (str(name).replace("/", "-") for name in names)
            results |= {f"f1/{name}": float(value) for name, value in zip(plain, each, strict=True)}
            self.texts[f"{stage}/classes"] = table(("class", "F1"), zip(names, each.tolist(), strict=True))
        if confusion is not None:
            if self.labels.counts:
                commonest = max(range(len(names)), key=self.labels.counts.__getitem__)
                results["majority"] = float(confusion[commonest].sum() / confusion.sum())
            self.tables[f"{stage}/confusion"] = Confusion(confusion.cpu(), [str(name) for name in names])
        names_shown = ("text", "truth", "answer", "probability")
        self.texts[f"{stage}/predictions"] = table(names_shown, self.answers[stage])
        self.answers[stage] = []
        metric.reset()
        self.mean_losses[stage].reset()
        return results

    @torch.no_grad()
    def predict(self, batches: Iterable[LabelBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": the label, labels or number, "scores": probability by label}}."""
        found: dict[int, dict[str, Any]] = {}
        for batch in batches:
            found |= self._told(batch, self._real_logits(batch))
        return found

    def _reading(self, batch: LabelBatch) -> Reading:
        """The whole texts; in training without the share `token_skipping` of their tokens, the rest in their places."""
        if not (self.token_skipping and self.training):
            return Reading(self._blanked(batch.ids), batch.targets, batch.lengths, None, 1.0)
        place = torch.arange(batch.ids.shape[1], device=batch.ids.device)
        is_kept = torch.rand(batch.ids.shape, device=batch.ids.device) >= self.token_skipping
        is_kept = (is_kept | (place == 0) | (place == batch.lengths[:, None] - 1)) & (place < batch.lengths[:, None])
        lengths = is_kept.sum(dim=1)
        order = is_kept.logical_not().long().argsort(dim=1, stable=True)[:, : int(lengths.max())]  # kept ones first
        is_text = torch.arange(order.shape[1], device=order.device) < lengths[:, None]
        ids = batch.ids.gather(1, order).masked_fill(~is_text, self.tokenizer.pad_id)
        targets = batch.targets.gather(1, order).masked_fill(~is_text, IGNORED)
        return Reading(self._blanked(ids), targets, lengths, order, 1 - self.token_skipping)

    def _show(self, batch: LabelBatch, logits: Tensor, stage: str) -> None:
        """Keeps text, truth, answer and its probability of the first rows of an evaluation."""
        if len(self.answers[stage]) >= ROWS:
            return
        for place, told in zip(range(ROWS), self._told(batch, logits).values(), strict=False):
            text = self.tokenizer.decode(batch.ids[place, : batch.lengths[place]].tolist())
            scores = told["scores"]
            probability = scores.get(str(told["output"]), "") if self.labels.form == "classes" else scores
            self.answers[stage].append((text, self._truth(batch.labels[place]), told["output"], probability))

    def _truth(self, label: Tensor) -> object:
        """A label of the data as it stands in the file."""
        if self.labels.form == "regression":
            return float(label) * self.labels.std + self.labels.mean
        if self.labels.form == "classes":
            return self.labels.names[int(label)]
        return [name for name, value in zip(self.labels.names, label.tolist(), strict=True) if value > 0.5]

    def _blanked(self, ids: Tensor) -> Tensor:
        """In training, ids (B, T) of which the share `token_dropout` is padding, which tells nothing."""
        if not (self.token_dropout and self.training):
            return ids
        is_dropped = torch.rand(ids.shape, device=ids.device) < self.token_dropout
        return ids.masked_fill(is_dropped & (ids != self.tokenizer.eos_id), self.tokenizer.pad_id)

    def _hidden(self, reading: Reading) -> Tensor:
        """(B, T, D); padding stands on the right, where causal attention does not see it."""
        prefix = None
        if self.prefix_mask:
            prefix = torch.arange(reading.ids.shape[1], device=reading.ids.device) < reading.lengths[:, None]
        return self.model(reading.ids, positions=reading.positions, prefix=prefix)

    def _logits(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """(B, T, D) -> (B, C) of each row's last token, or of the mean over its tokens."""
        if self.pooling == "last":
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]  # (B, D)
        else:
            is_text = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
            pooled = (hidden * is_text[..., None]).sum(dim=1) / lengths[:, None]
        return self.head(F.dropout(pooled, self.head_dropout, self.training)).float()

    def _real_logits(self, batch: LabelBatch) -> Tensor:
        whole = Reading(batch.ids, batch.targets, batch.lengths, None, 1.0)
        logits = self._logits(self._hidden(whole), batch.lengths)
        if self.ngrams is not None:
            told = self.ngrams(batch.ids, batch.lengths)
            logits = (logits + NGRAMS_COUNT * told) / (1 + NGRAMS_COUNT)
        return logits[: len(batch.rows)]

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed over the examples: cross-entropy, mean over labels of binary cross-entropy, or squared error."""
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.labels.form == "classes":
            return F.cross_entropy(
                logits, labels, weight=weights, reduction="sum", label_smoothing=self.label_smoothing
            )
        if self.labels.form == "multi_label":
            each = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=weights, reduction="sum")
            return each / logits.shape[1]
        return (logits[:, 0] - labels).square().sum()

    def _numbers(self, logits: Tensor) -> Tensor:
        return logits[:, 0] * self.labels.std + self.labels.mean

    def _told(self, batch: LabelBatch, logits: Tensor) -> dict[int, dict[str, Any]]:
        names = self.labels.names
        if self.labels.form == "regression":
            return {
                row: {"output": value, "scores": {}}
                for row, value in zip(batch.rows, self._numbers(logits).tolist(), strict=True)
            }
        is_single = self.labels.form == "classes"
        probabilities = (logits.softmax(dim=-1) if is_single else logits.sigmoid()).tolist()
        told: dict[int, dict[str, Any]] = {}
        for row, values in zip(batch.rows, probabilities, strict=True):
            chosen = [name for name, value in zip(names, values, strict=True) if value > 0.5]
            output = names[max(range(len(values)), key=values.__getitem__)] if is_single else chosen
            scores = {str(name): round(value, 6) for name, value in zip(names, values, strict=True)}
            told[row] = {"output": output, "scores": scores}
        return told


def _scores(labels: LabelSet) -> ClassScores | SetScores | NumberScores:
    if labels.form == "classes":
        return ClassScores(len(labels.names))
    return SetScores(len(labels.names)) if labels.form == "multi_label" else NumberScores()


def _balanced(labels: LabelSet) -> Tensor | None:
    """rows / (classes x rows of the class), as scikit-learn's "balanced"; for labels that combine, absent / present."""
    counts = torch.tensor(labels.counts, dtype=torch.float32)
    if labels.form == "classes":
        return labels.rows / (len(counts) * counts)
    return (labels.rows - counts) / counts if labels.form == "multi_label" else None
