"""`patience` and `stop_at`: a run that ended early is finished, unless it is asked for more steps."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


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
