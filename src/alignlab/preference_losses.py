"""Losses of preferences, from log-probabilities of whole answers to one number a row. They know no models and no text.

Unusual: what a loss calls the reward of an answer is part of it, so that margins and accuracies are those of the loss.
`chosen` is the better answer of a pair; of rows that are judged one by one it is the answer itself.
"""

# B rows

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.errors import UserError
from alignlab.types import BelowOne, NonNegativeFloat, PositiveFloat


def bradley_terry(chosen: Tensor, rejected: Tensor, margins: Tensor) -> Tensor:
    """-log sigmoid(chosen - rejected - margin), (B,): Bradley and Terry 1952; margins as Touvron et al. 2023, eq. 2."""
    return -F.logsigmoid(chosen - rejected - margins)


class Answers(NamedTuple):
    """One answer of each row, (B,): its log-probability summed over its `tokens`, now and by the reference."""

    log_probs: Tensor
    reference: Tensor
    tokens: Tensor

    @property
    def ratio(self) -> Tensor:
        """log p(answer) - log p_reference(answer)."""
        return self.log_probs - self.reference

    @property
    def mean(self) -> Tensor:
        """Log-probability of a token."""
        return self.log_probs / self.tokens


@dataclass(frozen=True, kw_only=True)
class PreferenceLoss(ABC):
    """A loss of answers. `nll_weight` adds the cross-entropy of the better answers' tokens, by a mean over them."""

    paired: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    nll_weight: NonNegativeFloat = 0.0

    @abstractmethod
    def rewards(self, answers: Answers) -> Tensor:
        """(B,) what an answer is worth by the policy."""

    @property
    def start(self) -> float | None:
        """The loss while policy and reference are the same; None where it depends on the answers."""
        return None


@dataclass(frozen=True, kw_only=True)
class PairLoss(PreferenceLoss):
    """A loss of two answers."""

    @abstractmethod
    def __call__(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,) one number for each pair."""


@dataclass(frozen=True, kw_only=True)
class ReferenceLoss(PairLoss):
    """A loss of h, the reward of the chosen answer less that of the rejected one.

    The reward is beta (log p - log p_reference), with `length_normalized` per token of the answer.
    """

    beta: NonNegativeFloat = 0.1
    length_normalized: bool = False

    def rewards(self, answers: Answers) -> Tensor:
        """beta (log p - log p_reference), or a token's share of it."""
        ratio = answers.ratio / answers.tokens if self.length_normalized else answers.ratio
        return self.beta * ratio

    def __call__(self, chosen: Answers, rejected: Answers) -> Tensor:
        """(B,) the loss of h."""
        return self.of(self.rewards(chosen) - self.rewards(rejected))

    @abstractmethod
    def of(self, ahead: Tensor) -> Tensor:
        """(B,) of h (B,)."""

    @property
    def start(self) -> float | None:
        """The loss of h = 0."""
        return float(self.of(torch.zeros(())))


@dataclass(frozen=True, kw_only=True)
class DPO(ReferenceLoss):
    """-(1 - e) log sigmoid(h) - e log sigmoid(-h): Rafailov et al. 2023, eq. 7; e = label_smoothing, Mitchell 2023."""

    label_smoothing: BelowOne = 0.0

    def of(self, ahead: Tensor) -> Tensor:
        """As above."""
        return -(1 - self.label_smoothing) * F.logsigmoid(ahead) - self.label_smoothing * F.logsigmoid(-ahead)


@dataclass(frozen=True, kw_only=True)
class RobustDPO(ReferenceLoss):
    """(-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e), e the share of wrong labels: Chowdhury et al. 2024."""

    label_smoothing: BelowOne = 0.1

    def __post_init__(self) -> None:
        if self.label_smoothing >= 0.5:
            raise UserError(f"task.loss.label_smoothing is {self.label_smoothing}; RobustDPO expects less than 0.5")

    def of(self, ahead: Tensor) -> Tensor:
        """As above."""
        noise = self.label_smoothing
        return (-(1 - noise) * F.logsigmoid(ahead) + noise * F.logsigmoid(-ahead)) / (1 - 2 * noise)


@dataclass(frozen=True, kw_only=True)
class Hinge(ReferenceLoss):
    """max(0, 1 - h): SLiC (Zhao et al. 2023) with the rewards of DPO (Liu et al. 2023)."""

    def of(self, ahead: Tensor) -> Tensor:
        """As above."""
        return torch.relu(1 - ahead)


@dataclass(frozen=True, kw_only=True)
class IPO(ReferenceLoss):
    """(h / beta - 1 / (2 beta))^2: Azar et al. 2023, eq. 17; per token, as its authors measured it, unless told not."""

    beta: PositiveFloat = 0.1
    length_normalized: bool = True

    def of(self, ahead: Tensor) -> Tensor:
        """As above."""
        return (ahead / self.beta - 1 / (2 * self.beta)).square()


@dataclass(frozen=True, kw_only=True)
class SimPO(PairLoss):
    """-log sigmoid(beta (m_chosen - m_rejected) - gamma), m the log-probability of a token: Meng et al. 2024, eq. 6."""

    needs_reference: ClassVar[bool] = False
    beta: NonNegativeFloat = 2.0
    gamma: NonNegativeFloat = 1.0

    def rewards(self, answers: Answers) -> Tensor:
        """beta m."""
        return self.beta * answers.mean

    def __call__(self, chosen: Answers, rejected: Answers) -> Tensor:
        """As above."""
        return -F.logsigmoid(self.rewards(chosen) - self.rewards(rejected) - self.gamma)


@dataclass(frozen=True, kw_only=True)
class ORPO(PairLoss):
    """-beta log sigmoid(log odds(chosen) - log odds(rejected)), beside the cross-entropy of the chosen answers.

    odds = p / (1 - p) with p = e^m, m the log-probability of a token: Hong et al. 2024, eq. 4 to 7.
    """

    needs_reference: ClassVar[bool] = False
    beta: NonNegativeFloat = 0.1
    nll_weight: NonNegativeFloat = 1.0

    def rewards(self, answers: Answers) -> Tensor:
        """beta m."""
        return self.beta * answers.mean

    def __call__(self, chosen: Answers, rejected: Answers) -> Tensor:
        """As above."""
        return -self.beta * F.logsigmoid(_log_odds(chosen.mean) - _log_odds(rejected.mean))


@dataclass(frozen=True, kw_only=True)
class KTO(PreferenceLoss):
    """w (1 - sigmoid(+-(r - z))): Ethayarajh et al. 2024, eq. 8; + and w = desirable_weight for a good answer.

    r = beta (log p - log p_reference); z = beta max(0, mean over answers to other prompts of log p - log p_reference),
    which has no gradient. The mean is over the rows of a micro-batch on all ranks.
    """

    paired: ClassVar[bool] = False
    beta: NonNegativeFloat = 0.1
    desirable_weight: NonNegativeFloat = 1.0
    undesirable_weight: NonNegativeFloat = 1.0

    def rewards(self, answers: Answers) -> Tensor:
        """beta (log p - log p_reference)."""
        return self.beta * answers.ratio

    def __call__(self, answers: Answers, desirable: Tensor, divergence: Tensor) -> Tensor:
        """(B,) one number for each answer; `divergence` is z / beta before it is cut at 0."""
        ahead = self.rewards(answers) - self.beta * divergence.detach().clamp(min=0)
        sign = torch.where(desirable, 1.0, -1.0)
        weights = torch.where(desirable, self.desirable_weight, self.undesirable_weight)
        return weights * (1 - torch.sigmoid(sign * ahead))

    @property
    def start(self) -> float | None:
        """A half, where good and bad answers weigh the same."""
        return 0.5 * self.desirable_weight if self.desirable_weight == self.undesirable_weight else None


def _log_odds(mean: Tensor) -> Tensor:
    """log(p / (1 - p)) of log p."""
    # log(1 - e^m): each form is exact where the other one loses digits (Maechler 2012)
    rest = torch.where(mean > -math.log(2), torch.log(-torch.expm1(mean)), torch.log1p(-torch.exp(mean)))
    return mean - rest
