"""`patience` and `stop_at`: a run that ended early is finished, unless it is asked for more steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from alignlab.callbacks.patience import Patience


@pytest.mark.parametrize(
    ("options", "step", "told"),
    [
        (("optim.lr=0", "patience=2"), 3, "val/loss did not improve in the last 2 records"),
        (("optim.lr=0", "stop_at=20"), 1, "Stopping threshold reached: val/loss"),
        (("stop_at=0.001",), 8, None),
    ],
)
def test_ends_when_there_is_nothing_to_gain(
    tiny_run: Callable[..., dict[str, Any]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: tuple[str, ...],
    step: int,
    told: str | None,
) -> None:
    caplog.set_level(logging.INFO, logger="alignlab")
    arguments = (*options, "eval_every=1", "trainer.max_steps=8")
    assert tiny_run("run", *arguments)["step"] == step
    assert "ended early" not in caplog.text if told is None else f"at step {step}: " in caplog.text
    assert (told or "") in caplog.text
    caplog.clear()
    assert tiny_run("run", *arguments)["step"] == step
    assert f"nothing left to do: {tmp_path / 'run'} has done its {step} steps" in caplog.text
    longer = tiny_run("run", *options, "eval_every=1", "trainer.max_steps=10")["step"]
    assert longer == (10 if told is None else step + 1)  # asked for more it goes on, and ends where it is no better


def test_a_validation_that_was_not_measured_costs_no_patience() -> None:
    trainer, task = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False), LightningModule()
    trainer.state.fn, trainer.state.stage = TrainerFn.FITTING, RunningStage.VALIDATING
    patience = Patience("val/bleu", patience=2, mode="max", check_finite=False)
    waited = []
    for value, is_cut_short in ((3.0, False), (torch.nan, True), (2.0, False), (torch.nan, True), (torch.nan, False)):
        trainer.callback_metrics["val/bleu"] = torch.tensor(value)
        task.is_cut_short = is_cut_short
        patience.on_validation_end(trainer, task)
        waited.append(patience.wait_count)
    assert waited == [0, 0, 1, 1, 2]
    assert trainer.should_stop
