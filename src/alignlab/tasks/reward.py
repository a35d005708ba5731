"""Reward model: one number for an answer, such that the better one of two has the larger.

Unusual: the head starts at zero, so that every pair begins as a tie, at a loss of exactly ln 2. A sequence is told by
the hidden state of its last token, the end of the answer. It knows nothing of templates and files.
"""

# B pairs, T tokens of the longest, D width

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from alignlab.batch import PairBatch
from alignlab.errors import UserError
from alignlab.metrics.preferences import Means, PairCalibration, wins
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.preference_losses import bradley_terry
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeFloat

NAMES = ("loss", "accuracy", "margin", "length_baseline", "score/chosen", "score/rejected")


class Reward(TaskModule):
    """A linear head (1, D), without bias, on the last token of prompt and answer; trained on pairs.

    The loss is that of Bradley and Terry 1952, by Ouyang et al. 2022, eq. 1; where rows say by how much an answer is
    better, that margin is to be exceeded (Touvron et al. 2023, eq. 2). `center_weight` weighs
    (chosen + rejected)^2, which keeps scores around 0 (Eisenstein et al. 2023).
    """

    def __init__(
        self,
        *,
        model: GPT,
        tokenizer: Tokenizer,
        optim: Optim,
        paired: bool = True,
        center_weight: NonNegativeFloat = 0.0,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        if not paired:
            raise UserError(
                "task=reward compares two answers; the rows have prompt, completion and desirable: "
                "expected prompt, chosen and rejected"
            )
        self.center_weight = center_weight
        self.head = nn.Linear(model.config.width, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.has_margins = False
        self.metrics = {stage: (Means(NAMES), PairCalibration()) for stage in ("val", "test")}

    @property
    def expected_start(self) -> float | None:
        """ln 2: every pair is a tie."""
        return math.log(2) if self.is_head_fresh and not self.has_margins else None

    def meaning(self, found: dict[str, Any]) -> Any:
        """A reward is a reward, whatever the pairs."""
        return "reward" if "paired" in found else None

    def losses(self, batch: PairBatch) -> dict[str, Term]:
        """{"loss": of the pairs, "center_loss": of their sums, where it has a weight}."""
        chosen, rejected = self._scores(batch).chunk(2)
        self.has_margins |= bool(batch.margins.any())
        terms = {"loss": Term(bradley_terry(chosen, rejected, batch.margins).sum(), "examples")}
        if self.center_weight:
            terms["center_loss"] = Term((chosen + rejected).square().sum(), "examples", self.center_weight)
        ahead = (chosen - rejected).detach()
        self.measures |= {"accuracy": float(wins(ahead).mean()), "margin": float(ahead.mean())}
        return terms

    def evaluate(self, batch: PairBatch, stage: str) -> None:
        """Adds the pairs of one batch; on the test split their scores too."""
        real = len(batch.rows)
        chosen, rejected = (scores[:real] for scores in self._scores(batch).chunk(2))
        if not real:
            return
        means, calibration = self.metrics[stage]
        longer, other = (lengths[:real] for lengths in batch.lengths.chunk(2))
        loss = bradley_terry(chosen, rejected, batch.margins[:real])
        if self.center_weight:
            loss = loss + self.center_weight * (chosen + rejected).square()
        means.to(chosen.device).update(
            {
                "loss": loss, "accuracy": wins(chosen - rejected), "margin": chosen - rejected,
                "length_baseline": wins(longer - other), "score/chosen": chosen, "score/rejected": rejected,
            }
        )  # fmt: skip
        calibration.to(chosen.device).update(chosen - rejected)
        if stage == "test":
            for row, *scores in zip(batch.rows, chosen.tolist(), rejected.tolist(), strict=True):
                told = {"chosen": round(scores[0], 6), "rejected": round(scores[1], 6)}
                self.predictions[row] = {"output": told["chosen"], "scores": told}

    def results(self, stage: str) -> dict[str, float]:
        """loss, accuracy, margin, calibration_error, and the accuracy of "the longer answer wins"."""
        means, calibration = self.metrics[stage]
        results = {**means.compute(), "calibration_error": float(calibration.compute())}
        means.reset()
        calibration.reset()
        return results

    @torch.no_grad()
    def predict(self, batches: Iterable[PairBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": the reward of the (better) answer, "scores": of each answer}}."""
        told: dict[int, dict[str, Any]] = {}
        for batch in batches:
            for row, each in zip(batch.rows, batch.by_row(self._scores(batch)), strict=False):
                told[row] = {"output": each["chosen"], "scores": each}
        return told

    def _scores(self, batch: PairBatch) -> Tensor:
        """One for each sequence; padding stands on the right, where causal attention does not see it."""
        hidden = self.model(batch.ids)
        last = hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]
        scores = self.head(last)[:, 0]
        return scores.to(torch.promote_types(scores.dtype, torch.float32))
