"""Frozen weights stay bit-equal, adapters leave their base out and resume exactly, a base is proved when found."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.callbacks.rhythm import Stopped
from alignlab.optim import SGD, AdamW
from alignlab.origin import origin
from tests.test_laws import assert_equal, losses, stopping

Run = Callable[..., dict[str, Any]]
BASE = ("optim=adamw", "optim.lr=1e-2", "trainer.max_steps=8", "trainer.limit_val_batches=1")
# what learns of a model with 2 blocks, tied, no biases, 32 wide, 88 hidden units
LEARNS = {
    "head": ("norm.", "unembedding."),
    "last_layers": ("norm.", "blocks.1."),
    "bias": ("norm.", "_norm."),
    "lora": ("lora_a", "lora_b"),
}
UNTIED = "model.tied=false"


def saved(folder: Path, name: str = "last") -> dict[str, Any]:
    return files.read(folder / "checkpoints" / f"{name}.ckpt")


@pytest.mark.parametrize("tuning", LEARNS)
def test_frozen_weight_is_bit_equal_after_training(tuning: str, tiny_run: Run, tmp_path: Path) -> None:
    extra = (UNTIED,) if tuning == "head" else ("tuning.layers=1",) if tuning == "last_layers" else ()
    model = (UNTIED,) if tuning == "head" else ()
    tiny_run("base", *BASE, *model)
    values = tiny_run("tuned", *BASE, f"tuning={tuning}", *extra, f"init_from={tmp_path / 'base'}")
    before, checkpoint = origin(str(tmp_path / "base")).weights, saved(tmp_path / "tuned")
    learned = checkpoint["state_dict"]
    assert all(any(part in name for part in LEARNS[tuning]) for name in learned)
    assert values["trained_parameters"] == sum(value.numel() for value in learned.values())
    after = origin(str(tmp_path / "tuned")).weights
    targets = {f"model.{name.rpartition('.')[0]}.lora_a" for name in after}
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    expected = {n for n in after if f"model.{n}" in learned or f"model.{n.rpartition('.')[0]}.lora_a" in learned}
    assert moved == expected, targets
    assert moved


def test_run_without_a_base_holds_all_its_weights(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("fresh", *BASE, "tuning=lora")
    checkpoint = saved(tmp_path / "fresh")
    assert checkpoint["base"] is None
    assert "model.embed.weight" in checkpoint["state_dict"]
    assert not [name for name in origin(str(tmp_path / "fresh")).weights if "lora" in name]


@pytest.mark.parametrize(
    "tuning", [("tuning=lora", "tuning.dropout=0.1"), ("tuning=lora", "tuning.dora=true", "ema=0.9"),
               ("tuning=last_layers", "tuning.layers=2", "tuning.unfreeze_every=3")],
    ids=["lora", "dora-ema", "unfreezing"],
)  # fmt: skip
def test_stopped_and_resumed_is_not_stopped(
    tuning: tuple[str, ...], tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_run("base", *BASE)
    options = (
        *tuning, f"init_from={tmp_path / 'base'}", "trainer.max_steps=9", "eval_every=4", "datamodule.batch_size=5",
        "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1", "logger=csv", "trainer.limit_val_batches=1",
    )  # fmt: skip
    tiny_run("whole", *options)
    for step in (3, 4):  # in the middle of an epoch, and between a step and its validation
        with monkeypatch.context() as patch:
            stopping(patch, step)
            with pytest.raises(Stopped):
                tiny_run(f"parts{step}", *options)
        tiny_run(f"parts{step}", *options)
        for name in ("last", "best"):
            whole, parts = saved(tmp_path / "whole", name), saved(tmp_path / f"parts{step}", name)
            for checkpoint in (whole, parts):
                for state in checkpoint["callbacks"].values():
                    state.pop("seconds", None)
            assert_equal(whole, parts)
        assert losses(tmp_path / "whole") == losses(tmp_path / f"parts{step}")


def test_blocks_begin_to_learn_from_the_top(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("base", *BASE)
    before = origin(str(tmp_path / "base")).weights
    for steps, learned in ((2, ("norm.",)), (4, ("norm.", "blocks.1.")), (6, ("norm.", "blocks.")), (8, ("",))):
        folder = f"after{steps}"
        tiny_run(folder, "tuning.unfreeze_every=2", f"init_from={tmp_path / 'base'}", f"trainer.max_steps={steps}",
                 "trainer.limit_val_batches=0")  # fmt: skip
        after = origin(str(tmp_path / folder)).weights
        moved = {name for name in after if not torch.equal(before[name], after[name])}
        assert moved == {name for name in after if name.startswith(learned)}


def test_adapter_asks_for_its_own_base(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("base", *BASE)
    tiny_run("tuned", *BASE, "tuning=lora", f"init_from={tmp_path / 'base'}")
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"base, which is not there; put it back, or let a link .* ln -s"):
        origin(str(tmp_path / "tuned"))
    tiny_run("base", *BASE, "seed=1")
    with pytest.raises(ValueError, match=r"tuned.* was trained on other weights than .*base holds now"):
        origin(str(tmp_path / "tuned"))
    with pytest.raises(ValueError, match="was trained on other weights"):
        tiny_run("tuned", *BASE, "tuning=lora", f"init_from={tmp_path / 'base'}", "trainer.max_steps=9")


def test_adapter_upon_an_adapter(tiny_run: Run, tmp_path: Path) -> None:
    tiny_run("base", *BASE)
    tiny_run("one", *BASE, "tuning=lora", f"init_from={tmp_path / 'base'}")
    tiny_run("two", "tuning=lora", f"init_from={tmp_path / 'one'}", "optim.lr=0", "trainer.max_steps=1")
    one, two = origin(str(tmp_path / "one")), origin(str(tmp_path / "two"))
    assert one.weights.keys() == two.weights.keys()
    assert all(torch.equal(one.weights[name], two.weights[name]) for name in one.weights)
    assert one.fingerprint != two.fingerprint


def test_head_of_a_tied_model_is_refused(tiny_run: Run) -> None:
    with pytest.raises(ValueError, match=r"tuning=head: .* \(tied\) and cannot learn alone; choose tuning=last_layers"):
        tiny_run("tied", "tuning=head", "trainer.max_steps=1")


def test_more_layers_than_there_are(tiny_run: Run) -> None:
    with pytest.raises(ValueError, match=r"tuning.layers is 3, but the model has 2 blocks"):
        tiny_run("deep", "tuning=last_layers", "tuning.layers=3", "trainer.max_steps=1")


def test_report_counts_weights_and_optimizer_state(tiny_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    tiny_run("lora", "tuning=lora", "tuning.rank=2", "tuning.targets=[query]", "trainer.max_steps=1")
    # 2 blocks x (2 x 32 + 32 x 2) = 256 weights, two fp32 moments each: 2,048 bytes
    assert "256 of " in caplog.text
    assert "optimizer state 0.00 MB" in caplog.text
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    assert AdamW().numbers_per_weight("a", weight) == 2
    assert SGD().numbers_per_weight("a", weight) == 1
    assert SGD(momentum=0).numbers_per_weight("a", weight) == 0
