"""Integrated gradients: complete, equal to captum's, and exact where the answer is known."""

import pytest
import torch
from captum.attr import LayerIntegratedGradients
from torch import Tensor

from alignlab.explain import attribution as module
from alignlab.explain.attribution import attribution
from alignlab.models.gpt import GPT
from tests.models.architectures import ARCHITECTURES, noisy

IDS = torch.tensor([[7, 3, 9, 9, 1, 40, 22, 8, 5, 2]])
BASELINE = torch.tensor([[7, 0, 0, 0, 0, 0, 0, 0, 0, 2]])


def log_odds(model: GPT, wanted: int = 3) -> module.Number:
    def number(hidden: Tensor) -> Tensor:
        logits = model.unembed(hidden[:, -1])
        others = torch.cat([logits[:, :wanted], logits[:, wanted + 1 :]], dim=1)
        return logits[:, wanted] - others.logsumexp(dim=-1)

    return number


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_complete_within_one_percent(name: str) -> None:
    model = noisy(ARCHITECTURES[name])
    number = log_odds(model)
    found = attribution(model, IDS, number, baseline=BASELINE)
    with torch.no_grad():
        ends = [float(number(model(row))) for row in (BASELINE, IDS)]
    assert [found.baseline, found.value] == pytest.approx(ends, abs=1e-5)
    assert float(found.tokens.sum()) == pytest.approx(ends[1] - ends[0], abs=0.01 * abs(ends[1] - ends[0]))
    assert found.error < 0.01
    assert found.tokens[[0, 9]].tolist() == [0, 0]  # equal in text and baseline
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "mistral"])
def test_captum_agrees(name: str) -> None:
    model = noisy(ARCHITECTURES[name])
    number = log_odds(model)
    found = attribution(model, IDS, number, baseline=BASELINE)
    theirs = LayerIntegratedGradients(lambda ids: number(model(ids)), model.embed)
    each = theirs.attribute(IDS, BASELINE, n_steps=400, internal_batch_size=50, method="gausslegendre")
    expected = each.sum(dim=-1)[0].double()
    assert (found.tokens - expected).abs().max() < 0.01 * expected.abs().max()
    assert expected.abs().max() > 0.1


def test_a_prefix_is_part_of_the_path() -> None:
    model = noisy(ARCHITECTURES["llama"])
    first = log_odds(model)

    def at_the_first(hidden: Tensor) -> Tensor:  # reads a token that sees the others through the prefix alone
        return first(hidden[:, :1])

    alone = attribution(model, IDS, at_the_first, baseline=BASELINE)
    assert alone.tokens.abs().max() == 0
    seen = attribution(model, IDS, at_the_first, baseline=BASELINE, prefix=torch.ones(1, 10, dtype=torch.bool))
    assert seen.tokens.abs().max() > 1e-3
    assert seen.error < 0.01


def test_a_sum_is_shared_by_its_parts() -> None:
    """For a number linear in the embeddings each token's share is its own difference, whatever the steps."""
    config = ARCHITECTURES["llama"]
    model = noisy(config)
    for block in model.blocks:  # the stream passes through
        torch.nn.init.zeros_(block.get_submodule("attention.output").weight)
        torch.nn.init.zeros_(block.get_submodule("feedforward.down").weight)
    seen: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = attribution(model, IDS, lambda _: seen[-1].sum(dim=(1, 2)), baseline=BASELINE)
    with torch.no_grad():
        expected = (model.embed(IDS) - model.embed(BASELINE)).sum(dim=-1)[0]
    assert torch.allclose(found.tokens.float(), expected, atol=1e-5)


def test_rough_paths_stop_and_tell_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRADIENTS", 16)
    monkeypatch.setattr(module, "TOLERANCE", 0.0)
    model = noisy(ARCHITECTURES["gpt2"])
    found = attribution(model, IDS, log_odds(model), baseline=BASELINE)
    assert found.gradients == 16
    assert found.error == pytest.approx(abs(float(found.tokens.sum()) / (found.value - found.baseline) - 1), rel=1e-6)


def test_nothing_to_explain_is_no_error() -> None:
    model = noisy(ARCHITECTURES["gpt2"])
    found = attribution(model, IDS, log_odds(model), baseline=IDS)
    assert found.error == 0
    assert found.tokens.tolist() == [0] * 10
