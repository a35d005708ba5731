"""What only a GPU can show; skipped without one. ALIGNLAB_TEST_TRAINER=gpu lets the other tests train on it too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignlab import losses
from alignlab.generate import Sampling, generate
from alignlab.losses import cross_entropy
from alignlab.models.narrow import aligned_linear, linear
from tests.test_generate import EOS, FAMILIES, PAD, PROMPTS, tiny
from tests.test_laws import assert_equal, largest_difference, stopped_and_resumed, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
Run = Callable[..., dict[str, Any]]


class Head(nn.Linear):
    """An unembedding of a model that says whether it is compiled."""

    is_compiled = False


@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_compiled_loss_is_the_plain_one(is_weighted: bool) -> None:
    torch.manual_seed(0)
    head = Head(64, 1003, device="cuda")
    hidden = torch.randn(500, 64, device="cuda", requires_grad=True)
    targets = torch.randint(1003, (500,), device="cuda")
    weights_of = torch.rand(500, device="cuda") if is_weighted else None
    found = []
    for head.is_compiled in (False, True):
        with torch.autocast("cuda", torch.bfloat16):
            loss = cross_entropy(head.forward, hidden, targets, weights=weights_of, label_smoothing=0.1, chunk=120)
        found.append((loss, *torch.autograd.grad(loss, (hidden, head.weight))))
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-2, atol=2e-2)
    torch.testing.assert_close(found[0][0], found[1][0])


def test_a_table_of_odd_length_is_padded_for_tensor_cores() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(40, 64, device="cuda", requires_grad=True)
    weight = torch.randn(203, 64, device="cuda", requires_grad=True)
    found = []
    with torch.autocast("cuda", torch.bfloat16):
        for product in (linear, aligned_linear):
            logits = product(hidden, weight)
            found.append((logits, *torch.autograd.grad(logits.float().square().sum(), (hidden, weight))))
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(plain, padded, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("family", range(len(FAMILIES)))
@pytest.mark.parametrize("beams", [1, 3])
def test_a_gpu_writes_what_a_cpu_writes(family: int, beams: int) -> None:
    model = tiny(**FAMILIES[family])
    sampling = Sampling(max_new_tokens=12, temperature=0.0, beams=beams)
    on_cpu = generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, prefix=True)
    on_gpu = generate(model.cuda(), PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD, prefix=True)
    assert [one.ids for one in on_gpu] == [one.ids for one in on_cpu]


def test_draws_on_a_gpu_are_repeatable() -> None:
    model = tiny().cuda()
    sampling = Sampling(max_new_tokens=12, temperature=1.0, top_p=0.9, samples=4, seed=3)
    with torch.autocast("cuda", torch.bfloat16):
        one, other = (generate(model, PROMPTS, sampling, eos_ids=[EOS], pad_id=PAD) for _ in range(2))
    assert [row.ids for row in one] == [row.ids for row in other]
    assert len({tuple(row.ids) for row in one[:4]}) > 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_stopped_and_resumed_on_a_gpu(
    precision: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    options = (
        "trainer=gpu", f"trainer.precision={precision}", "+trainer.deterministic=true", "model.dropout=0.1",
        "trainer.accumulate_grad_batches=2", "trainer.max_steps=8", "eval_every=3",
    )  # fmt: skip
    one, other = stopped_and_resumed(lambda folder: tiny_run(folder, *options), tmp_path, monkeypatch, 4)
    assert_equal(one["state_dict"], other["state_dict"])
    assert_equal(one["optimizer_states"], other["optimizer_states"])


def test_gpu_and_cpu_take_the_same_steps(tiny_run: Run, tmp_path: Path) -> None:
    options = ("optim=sgd", "optim.lr=0.1", "trainer.max_steps=3", "trainer.precision=32-true")
    for trainer in ("cpu", "gpu"):
        tiny_run(trainer, f"trainer={trainer}", *options)
    assert largest_difference(weights(tmp_path / "cpu"), weights(tmp_path / "gpu")) < 1e-5


def test_compiled_and_eager_take_the_same_steps(tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "FUSED_CHUNK_LOGITS", 2**14)  # several chunks
    options = ("trainer=gpu", "optim=sgd", "optim.lr=0.1", "trainer.max_steps=3", "trainer.precision=32-true")
    for name, value in (("eager", "false"), ("compiled", "true")):
        tiny_run(name, *options, f"compile={value}")
    assert largest_difference(weights(tmp_path / "eager"), weights(tmp_path / "compiled")) < 1e-5
