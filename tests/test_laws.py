"""Laws 1, 2 and 6 of exact training: accumulation, resuming, start values; each on whole runs."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.callbacks.rhythm import Rhythm, Stopped
from alignlab.tasks.pretrain import Pretraining

SGD = ("optim=sgd", "optim.lr=0.5", "optim.warmup_steps=0", "optim.momentum=0", "optim.schedule=constant")
UNEVEN = ("datamodule.max_length=32", "trainer.gradient_clip_val=null")
Run = Callable[..., dict[str, Any]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return files.read(folder / "checkpoints" / "last.ckpt")["state_dict"]


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_batch_of_eight_is_two_of_four_is_four_of_two(tiny_run: Run, tmp_path: Path) -> None:
    for rows, times in ((8, 1), (4, 2), (2, 4)):
        tiny_run(
            f"{rows}x{times}", *SGD, *UNEVEN, "trainer.max_steps=3", f"datamodule.batch_size={rows}",
            f"trainer.accumulate_grad_batches={times}", "trainer.limit_val_batches=0",
        )  # fmt: skip
    tiny_run("start", *SGD, *UNEVEN, "trainer.max_steps=1", "optim.lr=0", "trainer.limit_val_batches=0")
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "4x2")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


class StopAfter(Rhythm):
    """Acts as if a signal had come during step `step`."""


def stopping(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lets runs stop after step `step` as if a signal had come."""
    agree = Rhythm._agree

    def stop(self: Rhythm, trainer: Any, asked: int) -> int:
        return 15 if trainer.global_step == step else agree(self, trainer, asked)

    monkeypatch.setattr(Rhythm, "_agree", stop)


def stopped_and_resumed(run: Callable[[str], Any], folder: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> Any:
    """The last checkpoints of `run("whole")`, and of `run("parts")`, which was stopped after step `step` between."""
    run("whole")
    with monkeypatch.context() as patch:
        stopping(patch, step)
        with pytest.raises(Stopped):
            run("parts")
    run("parts")
    return [files.read(folder / name / "checkpoints/last.ckpt") for name in ("whole", "parts")]


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Bit-equal through dicts, lists and tensors."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}.{number}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("optim", ["adamw", "muon", "sgd"])
def test_stopped_and_resumed_is_not_stopped(
    optim: str, tiny_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        f"optim={optim}", "model.dropout=0.1", "trainer.max_steps=9", "eval_every=4", "datamodule.batch_size=5",
        "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=1", "ema=0.9", "logger=csv",
    )  # fmt: skip
    tiny_run("whole", *options)
    for step in (3, 4):  # in the middle of an epoch, and between a step and its validation
        with monkeypatch.context() as patch:
            stopping(patch, step)
            with pytest.raises(Stopped):
                tiny_run(f"parts{step}", *options)
        assert files.read(tmp_path / f"parts{step}/checkpoints/last.ckpt")["position"]["step"] == step
        tiny_run(f"parts{step}", *options)
        whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", f"parts{step}"))
        for checkpoint in (whole, parts):
            checkpoint.pop("config")
            for state in checkpoint["callbacks"].values():
                state.pop("seconds", None)
        assert_equal(whole, parts)
        assert losses(tmp_path / "whole") == losses(tmp_path / f"parts{step}")


def losses(folder: Path) -> dict[int, str]:
    """Every logged training loss by step, to the last digit."""
    import csv

    logged: dict[int, str] = {}
    for table in sorted(folder.glob("csv*/metrics.csv")):
        for row in csv.DictReader(table.open()):
            if row.get("train/loss"):
                logged[int(row["step"])] = row["train/loss"]
    assert logged
    return logged


def test_fresh_loss_is_that_of_a_uniform_guess(tiny_run: Run) -> None:
    values = tiny_run("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1")
    assert values["val/loss"] == pytest.approx(math.log(260), rel=0.02)


def test_the_start_is_measured_where_asked(tiny_run: Run, tmp_path: Path) -> None:
    values = tiny_run("first", "eval_first=true", "trainer.max_steps=3")
    assert values["start/val/loss"] == pytest.approx(math.log(260), rel=0.02)
    tiny_run("plain", "trainer.max_steps=3")
    assert_equal(weights(tmp_path / "first"), weights(tmp_path / "plain"))


def test_training_learns_the_corpus(tiny_run: Run) -> None:
    values = tiny_run("learn", "optim.lr=1e-2", "trainer.max_steps=60")
    assert values["val/loss"] < 2.5
    assert values["best/step"] > 0


def test_the_logged_loss_is_that_of_the_whole_step(tiny_run, tmp_path: Path) -> None:
    told = {}
    for rows, times in ((8, 1), (2, 4)):
        tiny_run(
            name := f"{rows}x{times}", *SGD, *UNEVEN, "trainer.max_steps=3", f"datamodule.batch_size={rows}",
            f"trainer.accumulate_grad_batches={times}", "logger=csv", "trainer.log_every_n_steps=1",
        )  # fmt: skip
        told[name] = [float(one) for one in losses(tmp_path / name).values()]
    assert told["8x1"] == pytest.approx(told["2x4"], rel=1e-5)


def test_another_size_of_a_step_is_refused(tiny_run) -> None:
    tiny_run("run", "trainer.max_steps=1", "datamodule.batch_size=4")
    with pytest.raises(ValueError, match="cannot go on exactly: batch_size was 4, is 8"):
        tiny_run("run", "trainer.max_steps=2", "datamodule.batch_size=4", "trainer.accumulate_grad_batches=2")


@pytest.mark.parametrize("times", [1, 2])
def test_a_step_that_is_not_finite_is_dropped_and_counted(times: int, tiny_run, monkeypatch) -> None:
    told = Pretraining.losses

    def spoilt(self: Pretraining, batch: Any) -> Any:
        terms = told(self, batch)
        if self.trainer.global_step == 1:
            return {name: term._replace(sum=term.sum * math.nan) for name, term in terms.items()}
        return terms

    monkeypatch.setattr(Pretraining, "losses", spoilt)
    values = tiny_run("run", "trainer.max_steps=3", "optim=adamw", f"trainer.accumulate_grad_batches={times}")
    assert values["skipped_steps"] == 1
    assert math.isfinite(values["val/loss"])
