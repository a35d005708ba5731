"""Direct preference optimization and its relatives: the model itself is the reward, its log-probabilities are trained.

Unusual: the reference is asked before the first step, once, and then forgotten: its log-probabilities come from a cache
by content. Both answers of all rows are read in one pass. It knows nothing of templates, files and formulas.
"""

# B rows, T tokens of the longest

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from alignlab.batch import IGNORED, SIDES, PairBatch
from alignlab.errors import UserError
from alignlab.losses import token_log_probs
from alignlab.metrics.preferences import Means, wins
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.policy_losses import k3
from alignlab.preference_losses import KTO, Answers, PairLoss
from alignlab.ranks import gathered
from alignlab.tasks import reference
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer

NAMES = (
    "loss", "nll", "accuracy", "kl", "length_baseline",
    *(f"{name}/{side}" for name in ("rewards", "log_probs", "length") for side in SIDES),
)  # fmt: skip


class DirectPreference(TaskModule):
    """Raises the probability of better answers over that of worse ones, as `loss` says.

    Of rows {"prompt", "completion", "desirable"} (`paired` is False), good answers stand for chosen ones, bad ones for
    rejected ones.
    """

    def __init__(
        self, *, model: GPT, tokenizer: Tokenizer, optim: Optim, loss: PairLoss | KTO, paired: bool = True
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        if loss.paired != paired:
            wanted = ("prompt, completion and desirable", "prompt, chosen and rejected")[loss.paired]
            other = "DPO" if paired else "KTO"
            raise UserError(
                f"task.loss {type(loss).__name__} needs rows of {wanted}; these are others: "
                f"take such rows, or task.loss._target_=alignlab.preference_losses.{other}"
            )
        self.loss = loss
        self.said: dict[str, reference.Table] = {}  # by the reference, of each split
        self.metrics = {stage: Means(NAMES) for stage in ("val", "test")}

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the weights at the start."""
        return self.loss.needs_reference

    @property
    def predicts_against_reference(self) -> bool:
        """What an answer is worth is told beside what the reference says of it."""
        return self.needs_reference

    @property
    def expected_start(self) -> float | None:
        """That of the loss while the policy is the reference."""
        return None if self.loss.nll_weight else self.loss.start

    def on_fit_start(self) -> None:
        """Asks the reference, and lets it go."""
        self._ask_reference("train", "val", "test")

    def on_test_start(self) -> None:
        """Asks the reference where no training did."""
        self._ask_reference("test")

    def losses(self, batch: PairBatch) -> dict[str, Term]:
        """{"loss": of the rows, with the cross-entropy of the better answers where it has a weight}."""
        log_probs, against = self._both(batch), self._against(batch, "train")
        first, second = self._answers(batch, log_probs, against, len(batch.margins))
        each = self._each(batch, first, second, over_ranks=True)
        counted = "tokens" if self.loss.paired else "chosen_tokens"
        count = batch.counts[counted]
        total = each.sum() * (count / batch.counts["examples"])
        if self.loss.nll_weight:
            nll = -first.log_probs.sum()
            total = total + nll * (self.loss.nll_weight * count / batch.counts["chosen_tokens"])
        with torch.no_grad():
            means = Means(NAMES).to(each.device)
            means.update(self._values(batch, each, first, second, log_probs, against))
            self.measures |= {name: value for name, value in _named(means).items() if name != "loss"}
        return {"loss": Term(total, counted)}

    def evaluate(self, batch: PairBatch, stage: str) -> None:
        """Adds the rows of one batch; on the test split what each answer is worth too."""
        log_probs, real = self._both(batch), len(batch.rows)
        if not real:
            return
        against = self._against(batch, stage)
        first, second = self._answers(batch, log_probs, against, real)
        each = self._each(batch, first, second, over_ranks=False)
        self.metrics[stage].to(each.device).update(self._values(batch, each, first, second, log_probs, against))
        if stage == "test":
            for place, row in enumerate(batch.rows):
                worth = [float(self.loss.rewards(one)[place]) for one in ((first, second)[: 1 + self.loss.paired])]
                told = dict(zip(SIDES, worth, strict=False)) if self.loss.paired else {"completion": worth[0]}
                self.predictions[row] = {"output": max(told, key=told.__getitem__), "scores": told}

    def results(self, stage: str) -> dict[str, float]:
        """loss, accuracy, margin, kl, and rewards, log-probabilities and lengths of both kinds of answers."""
        results = _named(self.metrics[stage])
        self.metrics[stage].reset()
        if self.loss.nll_weight:
            results["loss"] += self.loss.nll_weight * results["nll"]
        return results

    @torch.no_grad()
    def predict(self, batches: Iterable[PairBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": what the (better) answer is worth, "scores": the same of each answer}}."""
        told: dict[int, dict[str, Any]] = {}
        for batch in batches:
            sums = [
                token_log_probs(model.unembed, model(batch.ids), batch.targets).sum(dim=1)
                for model in (self.model, *self.reference)
            ]
            answers = Answers(sums[0], sums[-1], (batch.targets != IGNORED).sum(dim=1))
            for row, each in zip(batch.rows, batch.by_row(self.loss.rewards(answers)), strict=False):
                told[row] = {"output": each["chosen"], "scores": each}
        return told

    def _ask_reference(self, *splits: str) -> None:
        if not self.needs_reference or not self.reference:
            return
        model = self.reference_here()
        self.reference = ()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        weights = reference.fingerprint(model)
        for split in splits:
            if (rows := data.identity(split)) is None:
                continue
            place = reference.place_of(
                weights, rows, self.trainer.precision, data.batch_size, self.trainer.world_size, self.device.type
            )
            held = self.trainer.strategy.broadcast(reference.read(place) if self.trainer.is_global_zero else None)
            self.said[split] = held if held is not None else self._asked(model, data.once(split))
            if held is None and self.trainer.is_global_zero:
                reference.write(place, self.said[split])

    def _asked(self, model: GPT, batches: Any) -> reference.Table:
        """What `model` says of all rows, over all ranks, in the precision of the run."""
        strategy = self.trainer.strategy
        with self.trainer.precision_plugin.forward_context():
            own = reference.measured(model, (strategy.batch_to_device(batch) for batch in batches))
        return {row: said for part in gathered(own) for row, said in part.items()}

    def _both(self, batch: PairBatch) -> Tensor:
        """(2B, T) log-probabilities of the targets; those of answers to other prompts have no gradient."""
        if self.loss.paired:
            return token_log_probs(self.model.unembed, self.model(batch.ids), batch.targets)
        halves = [(batch.ids.chunk(2)[half], batch.targets.chunk(2)[half]) for half in (0, 1)]
        own = token_log_probs(self.model.unembed, self.model(halves[0][0]), halves[0][1])
        with torch.no_grad():
            others = token_log_probs(self.model.unembed, self.model(halves[1][0]), halves[1][1])
        return torch.cat([own, others])

    def _against(self, batch: PairBatch, stage: str) -> Tensor | None:
        """(2B, T) log-probabilities by the reference, where the loss needs them."""
        if not self.needs_reference:
            return None
        if stage not in self.said:
            raise UserError(
                "task=dpo compares with the weights that its run began with, and they are not known here: "
                "measure a run of task=dpo, or train one with init_from"
            )
        return reference.laid_out(self.said[stage], batch)

    def _answers(
        self, batch: PairBatch, log_probs: Tensor, against: Tensor | None, real: int
    ) -> tuple[Answers, Answers]:
        tokens = (batch.targets != IGNORED).sum(dim=1)
        sums = log_probs.sum(dim=1)
        before = sums.detach() if against is None else against.sum(dim=1)
        halves = [[values[:real] for values in one.chunk(2)] for one in (sums, before, tokens)]
        first, second = (Answers(*(half[at] for half in halves)) for at in (0, 1))
        return first, second

    def _each(self, batch: PairBatch, first: Answers, second: Answers, *, over_ranks: bool) -> Tensor:
        """(B,) the loss of each row."""
        if isinstance(self.loss, PairLoss):
            return self.loss(first, second)
        divergence = second.ratio.detach().mean()
        if over_ranks and self.trainer.world_size > 1:
            divergence = self.trainer.strategy.reduce(divergence, reduce_op="mean")
        return self.loss(first, batch.desirable[: len(first.tokens)], divergence)

    def _values(
        self, batch: PairBatch, each: Tensor, first: Answers, second: Answers, log_probs: Tensor, against: Tensor | None
    ) -> dict[str, Tensor]:
        """What is logged, by name, one value a row or token."""
        rewards = [self.loss.rewards(one) for one in (first, second)]
        is_answer = batch.targets != IGNORED
        if self.loss.paired:
            sides = [(one, worth) for one, worth in zip((first, second), rewards, strict=True)]
            values = {"accuracy": wins(rewards[0] - rewards[1]), "length_baseline": wins(first.tokens - second.tokens)}
        else:
            good = batch.desirable[: len(first.tokens)]
            sides = [(Answers(*(part[own] for part in first)), rewards[0][own]) for own in (good, ~good)]
            values = {"accuracy": wins(torch.where(good, rewards[0], -rewards[0]))}
            is_answer = torch.cat([is_answer.chunk(2)[0], torch.zeros_like(is_answer.chunk(2)[1])])
        for side, (one, worth) in zip(SIDES, sides, strict=True):
            own = {"rewards": worth, "log_probs": one.log_probs, "length": one.tokens}
            values |= {f"{name}/{side}": value for name, value in own.items()}
        if against is not None:
            values["kl"] = k3(log_probs, against)[is_answer]
        if self.loss.nll_weight:
            values["nll"] = -log_probs.chunk(2)[0][is_answer.chunk(2)[0]]
        return {"loss": each, **values}


def _named(means: Means) -> dict[str, float]:
    """The means and the margin between the rewards."""
    results: dict[str, float] = means.compute()
    if all(f"rewards/{side}" in results for side in SIDES):
        results["margin"] = results["rewards/chosen"] - results["rewards/rejected"]
    return results
