"""What is logged of training: the rate of the step itself, the loss of a validation's own step, peaks by name."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from alignlab.callbacks.training_log import peak_flops
from alignlab.tasks.pretrain import Pretraining


def test_a_step_is_logged_with_the_rate_it_was_made_with(tiny_run: Callable, tmp_path: Path) -> None:
    tiny_run(
        "run", "logger=tensorboard", "optim=sgd", "optim.lr=0.5", "optim.schedule=linear", "optim.warmup_steps=0",
        "trainer.max_steps=4", "eval_every=3", "trainer.log_every_n_steps=2", "test=false",
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    rates = {event.step: event.value for event in events.Scalars("train/learning_rate")}
    assert rates == {1: 0.5, 2: 0.375, 3: 0.25, 4: 0.125}  # 3: it is validated there


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A40", 150e12), ("NVIDIA RTX A4000", None), ("NVIDIA RTX A1000 Laptop GPU", None),
        ("NVIDIA T400", None), ("Tesla T4", 65e12), ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)  # fmt: skip
def test_a_peak_is_found_by_the_whole_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


@pytest.mark.parametrize(("expected", "warns"), [(None, False), (math.log(260), False), (2.0, True)])
def test_a_first_loss_that_fresh_weights_do_not_give_is_told(expected, warns, tiny_run, monkeypatch, caplog) -> None:
    monkeypatch.setattr(Pretraining, "expected_start", property(lambda self: expected))
    with caplog.at_level(logging.WARNING, logger="alignlab"):
        tiny_run("run", "trainer.max_steps=1")
    assert ("fresh weights give about 2.000" in caplog.text) == warns
