"""Recipes of several stages: each starts from the one before, and a recipe that was stopped goes on."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignlab import checkpoint as files
from alignlab.commandline import check
from alignlab.errors import UserError
from alignlab.folders import resumed
from alignlab.stages import stage_overrides, started_from
from tests.conftest import TINY, composed, train


def test_two_stages_chain_and_go_on(tmp_path: Path, corpus: Path) -> None:
    recipe = "stages=[{task: pretrain, trainer.max_steps: 3, eval_every: 1}, {task: pretrain, optim.lr: 0}]"
    arguments = ("data=files", f"data.train={corpus}", *TINY, "trainer.max_steps=2", "hydra.run.dir=run", recipe)
    first = train(*arguments, folder=tmp_path)
    assert first.returncode == 0, first.stderr
    assert "0 pretrain" in first.stderr.split("Stages")[-1]
    run = tmp_path / "run"
    values = json.loads((run / "metrics.json").read_text())
    assert values["stage/0/step"] == 2  # the command line wins over the stage
    assert values["step"] == values["stage/1/step"] == 2
    assert values["val/loss"] == values["stage/0/best/val/loss"]  # a rate of 0 leaves the weights as they came
    config = OmegaConf.load(run / "stages/1-pretrain/.hydra/config.yaml")
    assert Path(config.init_from).parts[-2:] == ("stages", "0-pretrain")
    assert (run / "checkpoints/best.ckpt").is_file()
    start = files.read(run / "stages/0-pretrain/checkpoints/best.ckpt")["state_dict"]
    end = files.read(run / "checkpoints/last.ckpt")["state_dict"]
    assert all(bool((start[name] == end[name]).all()) for name in start)
    again = train("resume=run", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("nothing left to do") == 2


def test_the_command_line_wins_over_the_stage_and_the_start_over_both() -> None:
    config = composed("init_from=null")
    stage = OmegaConf.create({"task": "pretrain", "optim.lr": 0.1})
    told = stage_overrides(config, stage, ["experiment=shakespeare", "++optim.lr=0.3", "stages=x"], "runs/a b")
    assert told[:2] == ["experiment=shakespeare", "stages=null"]
    assert told.index("++optim.lr=0.1") < told.index("++optim.lr=0.3")
    assert told[-1] == "init_from=runs/a b" or told[-1] == "init_from='runs/a b'"
    assert "stages=x" not in told


def test_what_only_one_stage_takes_is_told_to_it_alone() -> None:
    told = ["experiment=arithmetic_grpo", "++task.samples=8", "++task.max_new_tokens=5", "++datamodule.batch_size=4"]
    recipe = composed(*told)
    check(recipe)
    first, second = (stage_overrides(recipe, stage, told, None) for stage in recipe.stages)
    assert "++task.samples=8" not in first
    assert "++task.samples=8" in second
    for both in ("++task.max_new_tokens=5", "++datamodule.batch_size=4"):
        assert both in first
        assert both in second
    check(composed("experiment=arithmetic_grpo", "++datamodule.generate_rows=9"))  # which pretraining has not
    with pytest.raises(UserError, match=r"task.sample is not an argument of any stage; did you mean samples"):
        check(composed("experiment=arithmetic_grpo", "++task.sample=8"))


def test_a_recipe_may_branch() -> None:
    stages = OmegaConf.create([{"task": "pretrain"}, {"task": "chat"}, {"task": "chat", "after": 0}, {"after": 3}])
    assert started_from(stages[0], 0, [], None) is None
    assert started_from(stages[0], 0, [], "run") == "run"
    assert started_from(stages[1], 1, ["a"], "run") == "a"
    assert started_from(stages[2], 2, ["a", "b"], "run") == "a"
    with pytest.raises(ValueError, match=r"stages.3.after is 3; expected the number of an earlier stage, below 3"):
        started_from(stages[3], 3, ["a", "b", "c"], None)
    assert "after=0" not in stage_overrides(composed("init_from=null"), stages[2], [], "a")


def test_a_recipe_goes_on_as_it_began(tmp_path: Path) -> None:
    place = tmp_path / ".hydra"
    place.mkdir()
    (place / "config.yaml").write_text("stages: [{task: pretrain}]\n")
    (place / "overrides.yaml").write_text("[]\n")
    with pytest.raises(UserError, match=r"(?s)goes on as it began; got trainer.max_steps=8.*stages/N-TASK trainer"):
        resumed([f"resume={tmp_path}", "++trainer.max_steps=8"])
    assert resumed([f"resume={tmp_path}"]) is not None
