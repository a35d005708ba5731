"""Group-relative policy optimization: answers are drawn in groups, rewarded by a checker, and compared within a group.

Unusual: it stays an ordinary task of the trainer. The answers of a step are drawn before its first micro-batch, and
`updates` steps learn from them; the log-probabilities of the first update are the old ones of the others. It knows
nothing of files and templates.
"""

# B answers of a micro-batch, T tokens, V vocabulary

import logging
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed
from torch import Tensor

from alignlab.batch import IGNORED, PromptBatch
from alignlab.errors import UserError
from alignlab.generate import Generation, Sampling
from alignlab.generate.engine import generate_all
from alignlab.losses import token_log_probs
from alignlab.models.gpt import GPT
from alignlab.optim import Optim
from alignlab.policy_losses import GRPO, PolicyLoss, k3
from alignlab.ranks import gathered
from alignlab.rewards import Exact, Reward
from alignlab.tasks.rollout import Rollout, Written, joined, mean, scored, table, uniforms
from alignlab.tasks.task import TaskModule, Term
from alignlab.text.tokenizer import Tokenizer
from alignlab.types import NonNegativeInt, PositiveFloat, PositiveInt, Probability

log = logging.getLogger(__name__)
SHOWN = 2  # answers of each validation, in the log
KL_ROWS = 32  # rows whose logits exist at one time


class Question(NamedTuple):
    """A prompt to be answered."""

    row: int
    ids: list[int]
    text: str
    reference: str | None


class Answer(NamedTuple):
    """A prompt that was answered, greedily; `kl` is summed over the `tokens` of the answer."""

    row: int
    prompt: str
    reference: str | None
    text: str
    rewards: dict[str, float]
    reward: float
    tokens: int
    kl: float


class GroupPolicy(TaskModule):
    """Learns to write what `rewards` reward; the first of them says whether a prompt is solved (at 1 or more).

    Without any, an answer is to be exactly the reference.
    `samples` answers of at most `max_new_tokens` are drawn to each prompt; `loss` compares them.
    `reward_weights` weigh the rewards in their sum (1 by default). `on_reward_error` is what a reward that crashes
    or gives no number does: end the run with the sample named, or count as 0.
    """

    def __init__(
        self,
        *,
        model: GPT,
        tokenizer: Tokenizer,
        optim: Optim,
        loss: PolicyLoss,
        rewards: dict[str, Reward] | None = None,
        reward_weights: dict[str, float] | None = None,
        on_reward_error: Literal["raise", "zero"] = "raise",
        samples: PositiveInt = 8,
        max_new_tokens: PositiveInt = 64,
        temperature: PositiveFloat = 1.0,
        top_p: Probability = 1.0,
        updates: PositiveInt = 1,
        seed: NonNegativeInt = 0,
    ) -> None:
        super().__init__(model=model, tokenizer=tokenizer, optim=optim)
        if samples < 2:
            raise ValueError(f"task.samples is {samples}; expected at least 2: answers are compared within a group")
        rewards = {"exact": Exact()} if rewards is None else rewards
        if not rewards:
            raise ValueError("task.rewards is empty; expected at least one, such as alignlab.rewards.Exact")
        if unknown := set(reward_weights or {}) - set(rewards):
            raise ValueError(f"task.reward_weights names {', '.join(sorted(unknown))}; the rewards are {list(rewards)}")
        self.rewards, self.weights, self.loss = rewards, reward_weights or {}, loss
        self.zero_on_error = on_reward_error == "zero"
        self.sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, samples=samples)
        self.updates, self.seed = updates, seed
        self.micro = 0
        self.rollouts: list[Rollout] = []
        self.rollout_tokens = 0.0  # of the answers of the whole step
        self.failed_rewards = 0
        self.questions: dict[str, list[Question]] = {"val": [], "test": []}

    @property
    def needs_reference(self) -> bool:
        """The divergence from the start is in the loss, or at least measured."""
        return True

    @property
    def expected_start(self) -> float | None:
        """0 where every answer weighs the same: the advantages of a group add up to nothing."""
        return 0.0 if isinstance(self.loss, GRPO) else None

    def training_step(self, batch: PromptBatch, batch_idx: int) -> Tensor:
        """Draws the answers of the step where none are left to learn from, then as every task."""
        self.micro = batch_idx % self.trainer.accumulate_grad_batches
        if self.micro == 0 and (self.trainer.global_step % self.updates == 0 or not self.rollouts):
            self._roll_out(batch)
        return super().training_step(batch._replace(tokens=self.rollouts[self.micro].written.tokens), batch_idx)

    def losses(self, batch: PromptBatch) -> dict[str, Term]:
        """{"loss": the policy's, over the tokens of this micro-batch's answers}."""
        rollout = self.rollouts[self.micro]
        log_probs = self._log_probs(self.model, rollout.written)
        if rollout.old is None:
            rollout = rollout._replace(old=log_probs.detach())
            self.rollouts[self.micro] = rollout
        assert rollout.old is not None, "the first update sets it"
        is_answer = rollout.written.targets != IGNORED
        policy = self.loss.tokens(log_probs, rollout.old, rollout.advantages, is_answer, rollout.reference)
        world = self.trainer.world_size * self.trainer.accumulate_grad_batches
        weights = self.loss.token_weights(
            rollout.written.lengths, len(is_answer) * world, self.rollout_tokens, self.sampling.max_new_tokens
        )
        answered = is_answer.sum()
        self.measures["entropy"] = -float(log_probs.detach().sum() / answered)  # expected value over what is drawn
        self.measures["clipped"] = float(policy.is_clipped.sum() / answered)
        if rollout.reference is not None:
            self.measures["kl"] = float((k3(log_probs.detach(), rollout.reference) * is_answer).sum() / answered)
        return {"loss": Term((policy.loss * weights[:, None]).sum(), "tokens", divisor=self.rollout_tokens)}

    def evaluate(self, batch: PromptBatch, stage: str) -> None:
        """Keeps the prompts that are to be answered."""
        self.questions[stage] += _questions(batch)

    def results(self, stage: str) -> dict[str, float]:
        """reward, and each by name, solved, response_tokens and kl, all of greedy answers."""
        questions, self.questions[stage] = self.questions[stage], []
        answers = self._answers(questions)
        if stage == "test":
            self.predictions |= {one.row: {"output": one.text, "scores": one.rewards} for one in answers}
        answers = _of_all_ranks(answers)
        if not answers:
            return {}
        for one in answers[:SHOWN]:
            log.info("sample  %s | %s | expected %s", *(" ".join(str(t).split())[:160] for t in one[1:4:2]), one[2])
        first = next(iter(self.rewards))
        results = {f"reward/{name}": mean([one.rewards[name] for one in answers]) for name in self.rewards}
        results |= {
            "reward": mean([one.reward for one in answers]),
            "solved": mean([one.rewards[first] >= 1 for one in answers]),
            "response_tokens": mean([one.tokens for one in answers]),
        }
        if self.reference:
            results["kl"] = sum(one.kl for one in answers) / sum(one.tokens for one in answers)
        return results

    def predict(self, batches: Iterable[PromptBatch]) -> dict[int, dict[str, Any]]:
        """{row: {"output": the greedy answer, "scores": {}}}."""
        questions = [question for batch in batches for question in _questions(batch)]
        written = self._written([one.ids for one in questions])
        pairs = zip(questions, written, strict=True)
        return {one.row: {"output": (answer.text or "").strip(), "scores": {}} for one, answer in pairs}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the answers that more updates are to learn from."""
        if self.trainer.global_step % self.updates == 0 or not self.rollouts:
            return
        mine = {"tokens": self.rollout_tokens, "parts": [one.state() for one in self.rollouts]}
        checkpoint["rollouts"] = gathered(mine)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up answers that are not used up."""
        super().on_load_checkpoint(checkpoint)
        held = checkpoint.get("rollouts")
        if held is not None and len(held) == self.trainer.world_size:
            own = held[self.trainer.global_rank]
            self.rollout_tokens = own["tokens"]
            self.rollouts = [Rollout.from_state(state, self.device) for state in own["parts"]]

    def _log_probs(self, model: GPT, written: Written) -> Tensor:
        """(B, T) log-probabilities of the answers' tokens at the temperature of the draws."""
        hidden = written.hidden(model)
        # the unembedding is linear, so its logits are divided by dividing what it reads
        hidden = hidden if self.sampling.temperature == 1 else hidden / self.sampling.temperature
        return token_log_probs(model.unembed, hidden, written.targets)

    @torch.no_grad()
    def _roll_out(self, batch: PromptBatch) -> None:
        """Draws and rewards answers to all prompts of this rank's step."""
        questions = _questions(batch)
        samples, ranks, rank = self.sampling.samples, self.trainer.world_size, self.trainer.global_rank
        each = len(questions) // self.trainer.accumulate_grad_batches  # prompts of a micro-batch
        places = [(at // each * ranks + rank) * each + at % each for at in range(len(questions))]
        rollout = self.trainer.global_step // self.updates
        numbers = uniforms(self.seed, rollout, places, samples, self.sampling.max_new_tokens)
        written = self._written([one.ids for one in questions], numbers)
        repeated = [question for question in questions for _ in range(samples)]
        texts = [(one.text or "").strip() for one in written]
        found = scored(
            self.rewards, self.weights, [one.text for one in repeated], texts, [one.reference for one in repeated],
            zero_on_error=self.zero_on_error,
        )  # fmt: skip
        rewards = torch.tensor(found.total, dtype=torch.float32, device=self.device).view(-1, samples)
        advantages = self.loss.advantages(rewards).flatten()
        self.rollouts = []
        for start in range(0, len(questions), each):
            asked, part = questions[start : start + each], slice(start * samples, (start + each) * samples)
            answers = joined([one.ids for one in asked], written[part], self.tokenizer.pad_id, self.device)
            reference = self._log_probs(self.reference_here(), answers) if self.loss.kl_weight else None
            self.rollouts.append(Rollout(answers, advantages[part], reference, None))
        self._count(written, found.parts, rewards, found.failed)
        self.texts["train/answers"] = table(questions[0].text, texts[:samples], found, 0)

    def _count(self, written: list[Generation], parts: dict[str, list[float]], rewards: Tensor, failed: int) -> None:
        """Sums over all ranks: the tokens that the loss is divided by, and what is logged of a rollout."""
        sums = [
            float(len(written)), float(sum(len(one.ids) for one in written)), float(rewards.sum()),
            float(sum(one.finished_by != "length" for one in written)), float(failed),
            float((rewards == rewards[:, :1]).all(dim=1).sum()), float(len(rewards)), *map(sum, parts.values()),
        ]  # fmt: skip
        total = torch.tensor(sums, dtype=torch.float64, device=self.device)
        if self.trainer.world_size > 1:
            torch.distributed.all_reduce(total)
        answers, self.rollout_tokens, reward, ended, wrong, equal, groups, *each = total.tolist()
        self.failed_rewards += int(wrong)
        self.measures |= {
            "reward": reward / answers,
            "response_tokens": self.rollout_tokens / answers,
            "ended": ended / answers,
            "equal_groups": equal / groups,  # they teach nothing
            **{f"reward/{name}": value / answers for name, value in zip(parts, each, strict=True)},
        }
        if self.failed_rewards:
            self.measures["failed_rewards"] = float(self.failed_rewards)

    @torch.no_grad()
    def _written(self, prompts: list[list[int]], numbers: Tensor | None = None) -> list[Generation]:
        """Draws that `numbers` decide, or one greedy answer to each prompt."""
        if self.is_sharded:
            raise UserError("task=grpo cannot draw answers from weights that are sharded; use trainer=ddp")
        greedy = replace(self.sampling, temperature=0.0, top_p=1.0, samples=1)
        with self.while_generating():
            return generate_all(
                self.model, prompts, greedy if numbers is None else self.sampling, eos_ids=self.tokenizer.stop_ids,
                pad_id=self.tokenizer.pad_id, decode=self.tokenizer.decode,
                uniforms=None if numbers is None else numbers.to(self.device),
            )  # fmt: skip

    @torch.no_grad()
    def _answers(self, questions: list[Question]) -> list[Answer]:
        if not questions:
            return []
        written = self._written([one.ids for one in questions])
        texts = [(one.text or "").strip() for one in written]
        found = scored(
            self.rewards, self.weights, [one.text for one in questions], texts, [one.reference for one in questions],
            zero_on_error=True,
        )  # fmt: skip
        kl = self._divergence([one.ids for one in questions], written) if self.reference else [0.0] * len(written)
        return [
            Answer(
                one.row, one.text, one.reference, texts[at], {name: found.parts[name][at] for name in found.parts},
                found.total[at], len(written[at].ids), kl[at],
            )
            for at, one in enumerate(questions)
        ]  # fmt: skip

    def _divergence(self, prompts: list[list[int]], written: list[Generation]) -> list[float]:
        """KL(now || at the start) of the next token, summed over the places of each answer."""
        sums: list[float] = []
        for start in range(0, len(prompts), KL_ROWS):
            rows = slice(start, start + KL_ROWS)
            answers = joined(prompts[rows], written[rows], self.tokenizer.pad_id, self.device)
            at = answers.targets != IGNORED
            reference = self.reference_here()
            now = self.model.unembed(answers.hidden(self.model)[at]).float().log_softmax(-1)  # (answers' tokens, V)
            then = reference.unembed(answers.hidden(reference)[at]).float().log_softmax(-1)
            each = torch.zeros(at.shape, device=at.device).masked_scatter(at, (now.exp() * (now - then)).sum(-1))
            sums += each.sum(dim=1).tolist()
        return sums


def _questions(batch: PromptBatch) -> list[Question]:
    """The prompts of a batch that count."""
    ids, lengths = batch.ids.tolist(), batch.lengths.tolist()
    return [
        Question(row, ids[place][: lengths[place]], batch.texts[place], batch.references[place])
        for place, row in enumerate(batch.rows)
    ]


def _of_all_ranks(answers: list[Answer]) -> list[Answer]:
    """The answers of every rank, in the order of their rows."""
    return sorted((answer for part in gathered(answers) for answer in part), key=lambda answer: answer.row)
