"""Metrics of preferences: means of named values, and how well a probability of being preferred is calibrated."""

# B pairs

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

BINS = 15  # of confidence


class Means(Metric):
    """The mean of each of `names` over all values that were given."""

    full_state_update = False
    totals: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = list(names)
        self.add_state("totals", torch.zeros(len(names), 2, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Adds one value for each example, of some names."""
        for name, each in values.items():
            place = self.names.index(name)
            self.totals[place, 0] += each.double().sum()
            self.totals[place, 1] += each.numel()

    def compute(self) -> dict[str, float]:
        """By name; what was never given is left out."""
        return {
            name: total / count for name, (total, count) in zip(self.names, self.totals.tolist(), strict=True) if count
        }


class PairCalibration(Metric):
    """The calibration error (Guo et al. 2017, eq. 3, 15 bins) of sigmoid(|margin|) as the chance of being right."""

    full_state_update = False
    bins: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("bins", torch.zeros(BINS, 3, dtype=torch.float64), dist_reduce_fx="sum")
        self.set_dtype(torch.float64)

    def update(self, margins: Tensor) -> None:
        """Adds score of the better answer less score of the other, (B,)."""
        confidence = margins.double().abs().sigmoid()
        place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        self.bins.index_add_(0, place, torch.stack([torch.ones_like(confidence), confidence, wins(margins)], dim=-1))

    def compute(self) -> float:
        """From 0 to 1; nan without pairs."""
        total = float(self.bins[:, 0].sum()) or math.nan
        return float((self.bins[:, 1] - self.bins[:, 2]).abs().sum()) / total


def wins(margins: Tensor) -> Tensor:
    """1 where the better answer is ahead, 0 where it is behind, a half for a tie: (B,) of float64."""
    return (margins.double().sign() + 1) / 2
