"""Losses of preferences against numbers worked out by hand, and against trl on the same weights and the same batch."""

import math
from collections import defaultdict
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alignlab.batch import IGNORED, PairBatch
from alignlab.data.pairs import Pairs
from alignlab.models.config import GPTConfig
from alignlab.models.gpt import GPT
from alignlab.models.huggingface_export import ClassificationHead, write_folder
from alignlab.optim import SGD
from alignlab.preference_losses import DPO, IPO, KTO, ORPO, Answers, Hinge, PairLoss, RobustDPO, SimPO, bradley_terry
from alignlab.tasks import reference
from alignlab.tasks.dpo import DirectPreference
from alignlab.tasks.reward import Reward
from alignlab.text.tokenizer import Bytes, Tokenizer
from tests.fakes import FakeRows
from tests.tasks.test_dpo import judged, pairs


def answers(log_prob: float, reference: float, tokens: int) -> Answers:
    return Answers(torch.tensor([log_prob]), torch.tensor([reference]), torch.tensor([tokens]))


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def odds(mean: float) -> float:
    return mean - math.log(1 - math.exp(mean))


GOOD, BAD = answers(-4.0, -6.0, 4), answers(-9.0, -8.0, 3)  # ratios 2 and -1


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (DPO(beta=0.5), -log_sigmoid(1.5)),
        (DPO(beta=0.5, label_smoothing=0.2), -0.8 * log_sigmoid(1.5) - 0.2 * log_sigmoid(-1.5)),
        (DPO(beta=0.5, length_normalized=True), -log_sigmoid(0.5 * (2 / 4 + 1 / 3))),
        (RobustDPO(beta=0.5, label_smoothing=0.2), (-0.8 * log_sigmoid(1.5) + 0.2 * log_sigmoid(-1.5)) / 0.6),
        (Hinge(beta=0.2), 0.4),
        (Hinge(beta=0.5), 0.0),
        (IPO(beta=0.5), (2 / 4 + 1 / 3 - 1) ** 2),
        (IPO(beta=0.5, length_normalized=False), (3 - 1) ** 2),
        (SimPO(beta=2.0, gamma=0.5), -log_sigmoid(2 * (-1 + 3) - 0.5)),
        (ORPO(beta=0.1), -0.1 * log_sigmoid(odds(-1.0) - odds(-3.0))),
    ],
)
def test_pairs_by_hand(loss: PairLoss, expected: float) -> None:
    assert float(loss(GOOD, BAD)) == pytest.approx(expected, abs=1e-6)


def test_answers_one_by_one_by_hand() -> None:
    loss = KTO(beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    both = Answers(*(torch.cat([a, b]) for a, b in zip(GOOD, BAD, strict=True)))
    found = loss(both, torch.tensor([True, False]), torch.tensor(0.4)).tolist()
    sigmoid = torch.sigmoid(torch.tensor([1.0 - 0.2, 0.2 + 0.5])).tolist()
    assert found == pytest.approx([2 * (1 - sigmoid[0]), 3 * (1 - sigmoid[1])], abs=1e-6)
    below = loss(both, torch.tensor([True, False]), torch.tensor(-7.0)).tolist()
    assert below[0] == pytest.approx(2 * (1 - 1 / (1 + math.exp(-1))), abs=1e-6)


def test_rewards_by_hand() -> None:
    found = bradley_terry(torch.tensor([2.0]), torch.tensor([0.5]), torch.tensor([1.0]))
    assert float(found) == pytest.approx(-log_sigmoid(0.5), abs=1e-6)


def test_odds_stay_exact_near_certainty() -> None:
    sure = Answers(torch.tensor([-1e-6], requires_grad=True), torch.zeros(1), torch.ones(1))
    loss = ORPO()(sure, answers(-2.0, 0.0, 1))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(sure.log_probs.grad).all()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


def gpt(tokenizer: Tokenizer, seed: int) -> GPT:
    """A tiny model with noise on every weight."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(layers=2, width=32, heads=2, context=64, vocabulary=tokenizer.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_of(rows: list[dict], tokenizer: Tokenizer) -> PairBatch:
    numbered = [{**row, "row": number} for number, row in enumerate(rows)]
    data = Pairs(rows=FakeRows(train=numbered), tokenizer=tokenizer, max_length=64, style="plain")
    examples = data.examples("train")
    assert examples is not None
    everything = np.arange(len(examples))
    batch: PairBatch = examples.batch(everything, examples.counts(everything), len(everything))
    return batch


def learned(tokenizer: Tokenizer, loss: Any, batch: PairBatch) -> tuple[float, GPT, dict[str, float]]:
    """Our loss over `batch`, the model with its gradients, and what is logged."""
    model, before = gpt(tokenizer, 1), gpt(tokenizer, 2)
    task = DirectPreference(model=model, tokenizer=tokenizer, optim=SGD(), loss=loss, paired=loss.paired)
    task.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    task.said["train"] = reference.measured(before, [batch])
    term = task.losses(batch)["loss"]
    value = term.sum / batch.counts[term.counted]
    value.backward()
    return float(value), model, task.measures


def test_equal_answers_give_no_gradient(tokenizer: Tokenizer) -> None:
    batch = batch_of(pairs(6), tokenizer)
    half = len(batch.rows)
    ids, targets = (torch.cat([one[:half], one[:half]]) for one in (batch.ids, batch.targets))
    equal = batch._replace(ids=ids, targets=targets, lengths=batch.lengths[:half].repeat(2))
    for loss in (DPO(), RobustDPO(), Hinge(), IPO(), SimPO(), ORPO(nll_weight=0.0)):
        _, model, measures = learned(tokenizer, loss, equal)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) < 1e-5 * max(1.0, getattr(loss, "beta", 1)), (loss, name)
        assert measures["accuracy"] == 0.5
    _, model, _ = learned(tokenizer, DPO(), batch)  # and unequal ones do
    assert float(model.embed.weight.grad.abs().max()) > 1e-3  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def theirs(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """theirs(seed) -> transformers' model with the weights of gpt(tokenizer, seed), as trl prepares it."""
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    def opened(seed: int) -> Any:
        folder = tmp_path_factory.mktemp("hf") / str(seed)
        write_folder(gpt(tokenizer, seed), folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
        return model

    return opened


def trainer_like(**facts: Any) -> SimpleNamespace:
    """What the loss of a trl trainer reads of its trainer."""
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    return SimpleNamespace(
        accelerator=accelerator, _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
        aux_loss_enabled=False, precompute_ref_logps=False, **facts,
    )  # fmt: skip


def inputs_of(ids: Tensor, targets: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "completion_mask": F.pad((targets[:, :-1] != IGNORED).long(), (1, 0)),
    }


def assert_same(value: float, ours: GPT, loss: Tensor, model: Any) -> None:
    """Loss and gradients agree to 1e-5."""
    assert value == pytest.approx(loss.item(), abs=1e-5)
    loss.backward()
    pairs = [
        (ours.embed.weight, model.get_input_embeddings().weight),
        (ours.norm.weight, model.model.norm.weight),
        (ours.blocks[0].feedforward.down.weight, model.model.layers[0].mlp.down_proj.weight),
        (ours.blocks[1].attention.output.weight, model.model.layers[1].self_attn.o_proj.weight),
    ]
    assert max(float(one.grad.abs().max()) for one, _ in pairs) > 1e-4
    for one, other in pairs:
        assert float((one.grad - other.grad).abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        (DPO(beta=0.3), "sigmoid"),
        (IPO(beta=0.3), "ipo"),
        (Hinge(beta=0.1), "hinge"),
        (RobustDPO(beta=0.3, label_smoothing=0.2), "robust"),
        (DPO(beta=0.3, length_normalized=True), "sigmoid_norm"),
    ],
)
def test_dpo_is_that_of_trl(loss: Any, kind: str, theirs: Any, tokenizer: Tokenizer) -> None:
    from trl import DPOTrainer

    batch = batch_of(pairs(8), tokenizer)
    value, ours, measures = learned(tokenizer, loss, batch)
    model = theirs(1)
    trainer = trainer_like(
        model=model, ref_model=theirs(2), ld_alpha=None, f_divergence_type="reverse_kl", loss_types=[kind],
        loss_weights=[1.0], use_weighting=False, beta=loss.beta, label_smoothing=getattr(loss, "label_smoothing", 0.0),
        args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    found = DPOTrainer._compute_loss(trainer, model, inputs_of(batch.ids, batch.targets, batch.lengths), False)
    assert_same(value, ours, found, model)
    logged = trainer._metrics["train"]
    assert measures["log_probs/chosen"] == pytest.approx(logged["logps/chosen"][0], abs=1e-4)
    if not getattr(loss, "length_normalized", False):
        assert measures["margin"] == pytest.approx(logged["rewards/margins"][0], abs=1e-5)
        assert measures["accuracy"] == logged["rewards/accuracies"][0]


def test_kto_is_that_of_trl(theirs: Any, tokenizer: Tokenizer) -> None:
    from trl import KTOTrainer

    batch = batch_of(judged(8), tokenizer)
    loss = KTO(beta=0.3, desirable_weight=1.5)
    value, ours, _ = learned(tokenizer, loss, batch)
    model = theirs(1)
    trainer = trainer_like(
        model=model, ref_model=theirs(2), calculate_KL=True, loss_type="kto", beta=loss.beta, desirable_weight=1.5,
        undesirable_weight=1.0, args=SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
    )  # fmt: skip
    trainer._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, trainer)
    halves = [[one.chunk(2)[half] for one in (batch.ids, batch.targets, batch.lengths)] for half in (0, 1)]
    inputs = inputs_of(*halves[0]) | {f"KL_{name}": value for name, value in inputs_of(*halves[1]).items()}
    found = KTOTrainer._compute_loss(trainer, model, inputs | {"label": batch.desirable}, False)
    assert_same(value, ours, found, model)


@pytest.mark.parametrize("name", ["orpo", "simpo"])
def test_losses_without_reference_are_those_of_trl(
    name: str, theirs: Any, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    trainer: Any
    if name == "orpo":
        from trl.experimental.orpo import ORPOTrainer as Theirs
    else:
        from trl.experimental.cpo import CPOTrainer as Theirs
    batch = batch_of(pairs(8), tokenizer)
    model = theirs(1)
    inputs = inputs_of(batch.ids, batch.targets, batch.lengths)
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
    chosen, rejected = Theirs.get_batch_logps(logits, labels, average_log_prob=True).chunk(2)
    trainer = trainer_like(beta=0.4, simpo_gamma=0.7, alpha=0.0, loss_type="simpo", label_smoothing=0.0)
    if name == "orpo":
        value, ours, _ = learned(tokenizer, ORPO(beta=0.4), batch)
        half = len(labels) // 2  # their cross-entropy has the prompt too; the paper's (eq. 2) has the answer alone
        nll = F.cross_entropy(logits[:half, :-1].flatten(0, 1), labels[:half, 1:].flatten())
        found = nll - Theirs.odds_ratio_loss(trainer, chosen, rejected)[0].mean()
    else:
        value, ours, _ = learned(tokenizer, SimPO(beta=0.4, gamma=0.7), batch)
        found = Theirs.cpo_loss(trainer, chosen, rejected)[0].mean()
    assert_same(value, ours, found, model)


def test_reward_is_that_of_trl(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification
    from trl import RewardTrainer

    rows = [{**row, "margin": number / 8} for number, row in enumerate(pairs(8))]
    batch = batch_of(rows, tokenizer)
    ours = Reward(model=gpt(tokenizer, 1), tokenizer=tokenizer, optim=SGD(), center_weight=0.2)
    torch.nn.init.normal_(ours.head.weight, std=0.02)
    value = sum(term.weight * term.sum / batch.counts[term.counted] for term in ours.losses(batch).values())
    assert isinstance(value, Tensor)
    value.backward()
    head = ClassificationHead(weight=ours.head.weight.detach(), labels=("reward",), problem="regression")
    pad = tokenizer.token_id("<|im_start|>")  # no text ends with it
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad}
    write_folder(ours.model, tmp_path / "hf", head=head, token_ids=ids)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf", dtype=torch.float32).train()
    inputs = inputs_of(batch.ids, batch.targets, batch.lengths)
    del inputs["completion_mask"]
    inputs["input_ids"] = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, pad)
    trainer = trainer_like(model=model, args=SimpleNamespace(center_rewards_coefficient=0.2))

    def called(**arguments: Any) -> Any:
        return model(**{name: value for name, value in arguments.items() if name != "margin"})

    called.training = True  # type: ignore[attr-defined]
    found = RewardTrainer.compute_loss(trainer, called, {**inputs, "margin": batch.margins})
    assert_same(float(value), ours.model, found, model)
    assert ours.head.weight.grad is not None
    assert float((ours.head.weight.grad - model.score.weight.grad).abs().max()) < 1e-5
