"""Metrics of labels: confusion counts, calibration bins and sums for correlations; each adds up over ranks.

Unusual: nothing is stored per example but where the measure is one of ranks (average precision, Spearman), which needs
the scores themselves. It knows nothing of tasks.
"""

# B examples, C classes

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional import spearman_corrcoef
from torchmetrics.functional.classification import multilabel_average_precision

BINS = 15  # of confidence, for the calibration error


def f1(true_positives: Tensor, predicted: Tensor, present: Tensor) -> Tensor:
    """2 TP / (predicted + present), 0 where nothing is predicted or present."""
    total = predicted + present
    return torch.where(total > 0, 2 * true_positives / total.clamp(min=1), torch.zeros_like(total))


class ClassScores(Metric):
    """Accuracy, F1 and calibration error of one label per example; `confusion` (C, C) counts truth x prediction.

    f1_macro is the mean over the classes that occur in truth or prediction, as in scikit-learn. The calibration error
    is that of Guo et al. 2017, eq. 3, over 15 bins of confidence.
    """

    full_state_update = False
    confusion: Tensor
    bins: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("confusion", torch.zeros(classes, classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("bins", torch.zeros(BINS, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds logits (B, C) and label ids (B,)."""
        confidence, predicted = logits.double().softmax(dim=-1).max(dim=-1)
        ones = torch.ones_like(confidence)
        self.confusion.index_put_((labels, predicted), ones, accumulate=True)
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        is_right = (predicted == labels).double()
        self.bins.index_add_(0, place, torch.stack([ones, confidence, is_right], dim=-1))

    def compute(self) -> dict[str, Any]:
        """accuracy, f1_macro, f1_micro, calibration_error, nan without examples; each_f1, confusion and bins."""
        total = float(self.confusion.sum()) or math.nan
        right = self.confusion.diagonal()
        occurs = self.confusion.sum(0) + self.confusion.sum(1) > 0
        each = f1(right, self.confusion.sum(0), self.confusion.sum(1))
        gaps = (self.bins[:, 1] - self.bins[:, 2]).abs().sum()
        return {
            "accuracy": float(right.sum()) / total,
            "f1_macro": float(each[occurs].mean()),
            "f1_micro": float(right.sum()) / total,
            "calibration_error": float(gaps) / total,
            "each_f1": each,
            "confusion": self.confusion.clone(),
            "bins": self.bins.clone(),
        }


class SetScores(Metric):
    """Any number of labels per example: F1, the share of examples whose every label is right, mean average precision.

    A label is predicted where its probability is above 1/2. `map` is the mean over the labels that occur.
    """

    full_state_update = False
    counts: Tensor
    right: Tensor
    examples: Tensor
    logits: list[Tensor]
    labels: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.add_state("counts", torch.zeros(3, classes, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("right", "examples"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("logits", "labels"):  # average precision is over the order of all scores
            self.add_state(name, [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Adds logits (B, C) and truth values (B, C)."""
        predicted, present = logits > 0, labels > 0.5
        self.counts += torch.stack([(predicted & present).sum(0), predicted.sum(0), present.sum(0)]).double()
        self.right += (predicted == present).all(dim=-1).sum()
        self.examples += len(logits)
        self.logits.append(logits.double())
        self.labels.append(present)

    def compute(self) -> dict[str, Any]:
        """accuracy, f1_macro, f1_micro, map; each_f1 (C,). Needs one example."""
        logits = self.logits if isinstance(self.logits, Tensor) else torch.cat(self.logits)
        labels = self.labels if isinstance(self.labels, Tensor) else torch.cat(self.labels)
        occurs = labels.any(dim=0)
        precision = multilabel_average_precision(
            logits.sigmoid(), labels.long(), num_labels=labels.shape[1], average="none", thresholds=None
        )
        each = f1(*self.counts)
        return {
            "accuracy": float(self.right / self.examples),
            "f1_macro": float(each.mean()),
            "f1_micro": float(f1(*self.counts.sum(dim=1))),
            "map": float(precision[occurs].mean()) if bool(occurs.any()) else math.nan,
            "each_f1": each,
        }


class NumberScores(Metric):
    """Pearson's and Spearman's correlation and the root of the mean squared error of numbers."""

    full_state_update = False
    predicted: list[Tensor]
    present: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("predicted", [], dist_reduce_fx="cat")  # Spearman's is over the order of all
        self.add_state("present", [], dist_reduce_fx="cat")
        self.set_dtype(torch.float64)

    def update(self, predicted: Tensor, present: Tensor) -> None:
        """Adds numbers (B,) and what they should be (B,)."""
        self.predicted.append(predicted.double())
        self.present.append(present.double())

    def compute(self) -> dict[str, float]:
        """pearson, spearman, rmse; a correlation with a constant is nan."""
        predicted = self.predicted if isinstance(self.predicted, Tensor) else torch.cat(self.predicted)
        present = self.present if isinstance(self.present, Tensor) else torch.cat(self.present)
        is_constant = len(present) < 2 or not float(predicted.std()) or not float(present.std())
        pair = torch.stack([predicted, present])
        return {
            "pearson": math.nan if is_constant else float(torch.corrcoef(pair)[0, 1]),
            "spearman": math.nan if is_constant else float(spearman_corrcoef(predicted, present)),
            "rmse": float((predicted - present).square().mean().sqrt()),
        }
