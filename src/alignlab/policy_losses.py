"""Policy-gradient losses over groups of answers to one prompt: GRPO, Dr. GRPO and DAPO.

All are the clipped surrogate of PPO (Schulman et al. 2017) with an advantage that is the same for every token of an
answer; they differ in how rewards become advantages and in what weight a token has. Knows nothing of models and text.
"""

# N answers, S of them to each prompt, T tokens

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from alignlab.types import NonNegativeFloat

STD_FLOOR = 1e-4


class Policy(NamedTuple):
    """What a token's loss is made of, with gradient where the log-probabilities had one."""

    loss: Tensor  # (N, T), to be weighted and summed
    is_clipped: Tensor  # (N, T) bool: no gradient comes from the surrogate there


@dataclass(frozen=True, kw_only=True)
class PolicyLoss(ABC):
    """The clipped surrogate, and k3 against the reference (Schulman 2020, "Approximating KL divergence").

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl_weight (e^(ref - log p) - (ref - log p) - 1),
    r = e^(log p - old).
    """

    clip_low: NonNegativeFloat = 0.2
    clip_high: NonNegativeFloat = 0.2
    kl_weight: NonNegativeFloat = 0.0

    @abstractmethod
    def advantages(self, rewards: Tensor) -> Tensor:
        """(P, S) rewards of the answers to each prompt -> advantages of the same shape."""

    @abstractmethod
    def token_weights(self, lengths: Tensor, answers: int, tokens: float, longest: int) -> Tensor:
        """(N,) weight of each token of an answer, such that the weighted sum over `tokens` is the mean wanted.

        `lengths` (N,) in tokens; `answers` and `tokens` count those of the whole optimizer step, `longest` is the
        limit of an answer.
        """

    def tokens(
        self, log_probs: Tensor, old: Tensor, advantages: Tensor, is_answer: Tensor, reference: Tensor | None
    ) -> Policy:
        """The loss of each token: log_probs, old, reference and is_answer (N, T), advantages (N,)."""
        ratio = (log_probs - old).exp()
        wide = advantages[:, None]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * wide
        loss = -torch.minimum(ratio * wide, clipped)
        if self.kl_weight and reference is not None:
            loss = loss + self.kl_weight * k3(log_probs, reference)
        return Policy(torch.where(is_answer, loss, 0.0), is_answer & (clipped < ratio * wide))


def k3(log_probs: Tensor, reference: Tensor) -> Tensor:
    """An unbiased estimate of KL(policy || reference) from drawn tokens, never below 0; shapes as given."""
    ahead = reference - log_probs
    return ahead.exp() - ahead - 1


@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyLoss):
    """Shao et al. 2024 (DeepSeekMath): advantages by standard deviation, the mean over answers of their token means."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """(r - mean) / (std + 1e-4), within each group."""
        return _centered(rewards) / (rewards.std(dim=1, keepdim=True) + STD_FLOOR)

    def token_weights(self, lengths: Tensor, answers: int, tokens: float, longest: int) -> Tensor:
        """tokens / (answers x length)."""
        return tokens / (answers * lengths.clamp(min=1))


@dataclass(frozen=True, kw_only=True)
class DrGRPO(PolicyLoss):
    """Liu et al. 2025 (Understanding R1-Zero-like training): neither standard deviation nor length favours anything."""

    def advantages(self, rewards: Tensor) -> Tensor:
        """r - mean, within each group."""
        return _centered(rewards)

    def token_weights(self, lengths: Tensor, answers: int, tokens: float, longest: int) -> Tensor:
        """tokens / (answers x longest): every token weighs the same, however long its answer."""
        return torch.full_like(lengths, tokens / (answers * longest), dtype=torch.float32)


@dataclass(frozen=True, kw_only=True)
class DAPO(PolicyLoss):
    """Yu et al. 2025: the mean over all tokens of the step, and a higher upper clip for unlikely tokens."""

    clip_high: NonNegativeFloat = 0.28

    def advantages(self, rewards: Tensor) -> Tensor:
        """(r - mean) / (std + 1e-4), within each group."""
        return _centered(rewards) / (rewards.std(dim=1, keepdim=True) + STD_FLOOR)

    def token_weights(self, lengths: Tensor, answers: int, tokens: float, longest: int) -> Tensor:
        """1 for every token."""
        return torch.ones_like(lengths, dtype=torch.float32)


def _centered(rewards: Tensor) -> Tensor:
    # a group of equal rewards gives exactly 0: its mean may differ from them by a rounding
    is_equal = (rewards == rewards[:, :1]).all(dim=1, keepdim=True)
    return torch.where(is_equal, 0.0, rewards - rewards.mean(dim=1, keepdim=True))
