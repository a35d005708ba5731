"""Group-relative policy optimization: laws 1, 2, 6 and 10 on whole runs, and rewards that teach nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.callbacks.rhythm import Stopped
from alignlab.errors import UserError
from alignlab.run import execute
from alignlab.tasks.rollout import uniforms
from tests.conftest import TINY, composed
from tests.test_laws import assert_equal, largest_difference, losses, stopping, weights

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trains on 24 short prompts: run("name", *overrides) -> metrics."""
    rows = "".join(json.dumps({"prompt": f"{n}?", "reference": str(n % 10)}) + "\n" for n in range(24))
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")

    def execute_in(name: str, *overrides: str) -> dict[str, Any]:
        common = (
            "task=grpo", "data=files", f"data.train={tmp_path / 'prompts.jsonl'}", *TINY, "task.max_new_tokens=4",
            "datamodule.batch_size=8", "task.samples=4", "datamodule.max_length=24", *overrides,
        )  # fmt: skip
        return execute(composed(*common), tmp_path / name, command_line=list(overrides))

    return execute_in


def has_letter_e(prompts, completions, references):
    """A planted reward: the share of e."""
    return [text.count("e") / 4 for text in completions]


def constant(prompts, completions, references):
    return [0.3] * len(completions)


PLANTED = ("task.rewards={planted:{_target_:tests.tasks.test_grpo.has_letter_e,_partial_:true}}",)
EQUAL = ("task.rewards={same:{_target_:tests.tasks.test_grpo.constant,_partial_:true}}",)


@pytest.mark.parametrize("loss", ["GRPO", "DrGRPO", "DAPO"])
def test_a_planted_reward_rises(loss: str, run: Run) -> None:
    lr = "optim.lr=3e-2" if loss == "DrGRPO" else "optim.lr=1e-2"
    values = run("planted", *PLANTED, f"task.loss._target_=alignlab.policy_losses.{loss}", "trainer.max_steps=30", lr)
    assert values["val/reward"] > 0.9
    assert values["val/kl"] > 0.1


def test_equal_rewards_leave_the_weights_alone(run: Run, tmp_path: Path) -> None:
    run("start", *EQUAL, "trainer.max_steps=1", "optim.lr=0")
    values = run("equal", *EQUAL, "trainer.max_steps=3", "optim.lr=0.1", "task.loss.kl_weight=0.1")
    assert_equal(weights(tmp_path / "start"), weights(tmp_path / "equal"))
    assert values["val/kl"] == 0


@pytest.mark.parametrize("loss", ["GRPO", "DrGRPO", "DAPO"])
def test_accumulation_is_exact(loss: str, run, tmp_path: Path) -> None:
    sgd = ("optim=sgd", "optim.lr=0.5", "optim.momentum=0", "trainer.gradient_clip_val=null", "trainer.max_steps=3")
    chosen = (f"task.loss._target_=alignlab.policy_losses.{loss}", "task.updates=2", "task.loss.kl_weight=0.1")
    for rows, times in ((8, 1), (2, 4)):
        run(
            f"{rows}x{times}", *PLANTED, *sgd, *chosen, f"datamodule.batch_size={rows}",
            f"trainer.accumulate_grad_batches={times}",
        )  # fmt: skip
    run("start", *PLANTED, "trainer.max_steps=1", "optim.lr=0")
    assert largest_difference(weights(tmp_path / "8x1"), weights(tmp_path / "2x4")) < 1e-6
    assert largest_difference(weights(tmp_path / "8x1"), weights(tmp_path / "start")) > 1e-3


def test_stopped_and_resumed_is_not_stopped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (
        *PLANTED, "task.updates=3", "trainer.max_steps=8", "eval_every=4", "task.loss.kl_weight=0.1",
        "trainer.log_every_n_steps=1", "logger=csv", "optim.lr=1e-2",
    )  # fmt: skip
    run("whole", *options)
    for step in (3, 4):  # at the border of a rollout, and among its updates
        with monkeypatch.context() as patch:
            stopping(patch, step)
            with pytest.raises(Stopped):
                run(f"parts{step}", *options)
        run(f"parts{step}", *options)
        assert_equal(weights(tmp_path / "whole"), weights(tmp_path / f"parts{step}"))
        assert losses(tmp_path / "whole") == losses(tmp_path / f"parts{step}")
    assert "rollouts" in files.read(tmp_path / "whole/checkpoints/last.ckpt")


def test_what_is_shown_of_a_run(run: Run, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(
        "shown", *PLANTED, "trainer.max_steps=2", "eval_every=2", "callbacks=default", "logger=tensorboard",
        "trainer.log_every_n_steps=1", "task.loss.kl_weight=0.1",
    )  # fmt: skip
    events = EventAccumulator(str(tmp_path / "shown/tensorboard")).Reload()
    logged = {
        "reward", "reward/planted", "kl", "entropy", "clipped", "response_tokens", "ended", "equal_groups", "loss",
    }  # fmt: skip
    assert {f"train/{name}" for name in logged} <= set(events.Tags()["scalars"])
    assert {f"val/{name}" for name in ("reward", "solved", "kl", "response_tokens")} <= set(events.Tags()["scalars"])
    entropy = [event.value for event in events.Scalars("train/entropy")]
    assert entropy[0] == pytest.approx(5.56, abs=0.2)  # ln 260 of fresh weights
    (name,) = (tag for tag in events.Tags()["tensors"] if "train/answers" in tag)
    shown = events.Tensors(name)[-1].tensor_proto.string_val[0].decode()
    assert "| answer | planted |" in shown
    assert len(shown.splitlines()) == 4 + 4  # the prompt, a blank line, two of a head, four answers with rewards


def test_a_group_of_one_is_refused(run: Run) -> None:
    with pytest.raises(Exception, match="expected at least 2: answers are compared"):
        run("one", "task.samples=1")


def test_a_reward_that_crashes_ends_the_run(run: Run, tmp_path: Path) -> None:
    crash = ("task.rewards={mine:{_target_:tests.test_rewards.crashes_on_b,_partial_:true}}", "trainer.max_steps=1")
    assert run("fine", *crash)["val/reward"] == 1  # no answer is just b
    with pytest.raises(UserError, match="reward none raised KeyError"):
        run("bad", "task.rewards={none:{_target_:tests.tasks.test_grpo.broken,_partial_:true}}")


def broken(prompts, completions, references):
    raise KeyError("x")


def test_draws_do_not_depend_on_the_batch() -> None:
    whole = uniforms(0, 7, range(4), 2, 5)
    assert torch.equal(whole[2:4], uniforms(0, 7, [1], 2, 5))
    assert not torch.equal(whole, uniforms(0, 8, range(4), 2, 5))
