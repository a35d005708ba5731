"""Policy losses against hand-computed numbers and against trl's trainer."""

import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignlab.policy_losses import DAPO, GRPO, DrGRPO, PolicyLoss, k3


def total(loss: PolicyLoss, log_probs: torch.Tensor, inputs: dict[str, torch.Tensor], longest: int) -> torch.Tensor:
    """What the task computes from one micro-batch that is a whole step."""
    mask = inputs["mask"]
    policy = loss.tokens(log_probs, inputs["old"], inputs["advantages"], mask, inputs["reference"])
    tokens, lengths = float(mask.sum()), mask.sum(dim=1)
    weights = loss.token_weights(lengths, len(mask), tokens, longest)
    return (policy.loss * weights[:, None]).sum() / tokens


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1]])
    # mean 1/2, unbiased standard deviation sqrt(4 * 1/4 / 3) = 0.57735
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert GRPO().advantages(rewards)[0].tolist() == pytest.approx([expected, -expected, -expected, expected])
    assert DAPO().advantages(rewards)[1].tolist() == [0, 0, 0, 0]  # exactly, though 0.1 has no exact mean
    assert DrGRPO().advantages(rewards)[0].tolist() == [0.5, -0.5, -0.5, 0.5]


def test_clipped_surrogate_by_hand() -> None:
    log_probs = torch.log(torch.tensor([[1.5, 0.5]]))
    old, mask = torch.zeros(1, 2), torch.tensor([[True, True]])
    up = GRPO().tokens(log_probs, old, torch.tensor([2.0]), mask, None)
    # ratio 1.5 is clipped to 1.2 where the advantage is above 0; 0.5 is not: its product is the smaller one
    assert up.loss.tolist()[0] == pytest.approx([-2.4, -1.0])
    assert up.is_clipped.tolist() == [[True, False]]
    down = GRPO().tokens(log_probs, old, torch.tensor([-1.0]), mask, None)
    assert down.loss.tolist()[0] == pytest.approx([1.5, 0.8])
    assert DAPO().tokens(log_probs, old, torch.tensor([2.0]), mask, None).loss[0, 0] == pytest.approx(-2.56)


def test_divergence_by_hand() -> None:
    # p = 1/2 against a reference of 1/4: r = 1/2, r - ln r - 1
    assert k3(torch.tensor(math.log(0.5)), torch.tensor(math.log(0.25))) == pytest.approx(0.5 + math.log(2) - 1)
    assert k3(torch.tensor(-1.0), torch.tensor(-1.0)) == 0


def test_weights_of_tokens_by_hand() -> None:
    lengths = torch.tensor([1, 3])
    # two answers of 1 and 3 tokens, 4 in all: GRPO gives both answers a half
    assert (GRPO().token_weights(lengths, 2, 4.0, 10) * lengths / 4).tolist() == [0.5, 0.5]
    assert (DAPO().token_weights(lengths, 2, 4.0, 10) * lengths / 4).tolist() == [0.25, 0.75]
    assert (DrGRPO().token_weights(lengths, 2, 4.0, 10) * lengths / 4).tolist() == pytest.approx([1 / 20, 3 / 20])


@pytest.mark.parametrize("kl_weight", [0.0, 0.04])
@pytest.mark.parametrize(("name", "sort"), [("grpo", GRPO), ("dr_grpo", DrGRPO), ("dapo", DAPO)])
def test_equals_trl(name: str, sort: type, kl_weight: float) -> None:
    trainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    random = torch.Generator().manual_seed(0)
    rows, tokens, longest = 6, 7, 9
    lengths = torch.tensor([7, 3, 1, 5, 7, 2])
    inputs = {
        "mask": torch.arange(tokens) < lengths[:, None],
        "old": torch.randn(rows, tokens, generator=random) * 0.4 - 2,
        "reference": torch.randn(rows, tokens, generator=random) * 0.4 - 2,
        "advantages": torch.randn(rows, generator=random),
    }
    start = torch.randn(rows, tokens, generator=random) * 0.4 - 2
    ours, theirs = (start.clone().requires_grad_() for _ in range(2))
    loss = sort(kl_weight=kl_weight)
    mine = total(loss, ours, inputs, longest)
    expected = trainer._compute_loss(
        _trainer(name, kl_weight, loss.clip_high, longest, theirs), SimpleNamespace(training=True),
        {
            "prompt_ids": torch.zeros(rows, 1), "prompt_mask": torch.ones(rows, 1),
            "completion_ids": torch.zeros(rows, tokens), "completion_mask": inputs["mask"].float(),
            "advantages": inputs["advantages"], "old_per_token_logps": inputs["old"],
            "ref_per_token_logps": inputs["reference"], "num_items_in_batch": inputs["mask"].sum(),
        },
    )  # fmt: skip
    assert mine.item() == pytest.approx(expected.item(), abs=1e-5)
    mine.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert float(ours.grad.abs().max()) > 1e-3


def _trainer(name: str, beta: float, clip_high: float, longest: int, log_probs: torch.Tensor) -> Any:
    """As much of trl's trainer as its loss asks for; the model's part is `log_probs`."""
    return SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (log_probs, torch.zeros_like(log_probs), None),
        aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, beta=beta, loss_type=name,
        importance_sampling_level="token", epsilon_low=0.2, epsilon_high=clip_high, use_vllm=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=longest,
        _entropy_bonus_enabled=False, args=SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1,
        ),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=True,
        ),
        _metrics=defaultdict(lambda: defaultdict(list)),
    )  # fmt: skip


@pytest.mark.parametrize("loss", [GRPO(), DrGRPO(), DAPO()])
@pytest.mark.parametrize("samples", [2, 3, 7, 16])
def test_equal_rewards_of_any_value_have_no_advantage(loss, samples) -> None:
    rewards = torch.rand(500, 1, generator=torch.Generator().manual_seed(0)).repeat(1, samples)
    assert bool((loss.advantages(rewards) == 0).all())
