"""Search with Optuna: what is drawn, what the study is told, and that a search goes on without repeating itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from alignlab.callbacks.pruning import Pruning
from alignlab.commandline.quoting import parsed
from alignlab.errors import UserError
from alignlab.sweep import outcome
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.search import Searching, distribution, objectives_of, split
from alignlab.sweep.settings import NAME, Search, settings_of, storage
from tests.conftest import TINY, train

SPACE = {"optim.lr": "tag(log, interval(1e-4, 1e-2))", "optim": "choice(adamw, sgd)"}


def searching(folder: Path, launch: Callable, space: dict[str, str] = SPACE, **settings: Any) -> Searching:
    wanted = Search(space=space, **settings)
    fixed, searched = split(["sweep=optuna", "++model.width=32"], space)
    objectives = objectives_of(wanted, "val/loss")
    return Searching(
        settings=wanted, folder=folder, fixed=fixed, searched=searched, objectives=objectives, seed=0, launch=launch
    )


def trained(folder: Path, value: Callable[[dict[str, str]], float], log: list[dict[str, str]]) -> Callable:
    """In the place of training: writes what a job would, with `value` of its options as the loss."""

    def launch(batch: list[list[str]]) -> None:
        for overrides in batch:
            options = dict(one.lstrip("+").split("=", 1) for one in overrides)
            log.append(options)
            place = folder / options["hydra.sweep.subdir"]
            outcome.write(place, Outcome(status="done"))
            values = {"best/val/loss": value(options), "parameters": 1000 * (1 + len(log) % 3)}
            (place / "metrics.json").write_text(json.dumps(values), encoding="utf-8")

    return launch


def drawn(text: str) -> Any:
    reading = parsed(f"x={text}")
    assert reading is not None
    return distribution(reading)


def test_sweeps_become_distributions() -> None:
    assert drawn("a,b") == CategoricalDistribution(["a", "b"])
    assert drawn("interval(0, 0.3)") == FloatDistribution(0.0, 0.3)
    assert drawn("tag(log, interval(1e-4, 1e-2))") == FloatDistribution(1e-4, 1e-2, log=True)
    assert drawn("int(interval(1, 6))") == IntDistribution(1, 6)
    assert drawn("range(2, 9, 2)") == IntDistribution(2, 8, step=2)  # the end of a range is left out
    with pytest.raises(UserError, match="expected a start above 0"):
        drawn("tag(log, interval(0, 1))")


def test_the_command_line_wins_over_the_space() -> None:
    fixed, searched = split(["++optim.lr=0.5", "model.layers=1,2"], SPACE)
    assert fixed == ["++optim.lr=0.5"]
    assert list(searched) == ["model.layers", "optim"]
    with pytest.raises(UserError, match="nothing is searched"):
        split(["seed=1"], {})
    with pytest.raises(UserError, match=r"sweep.space.optim.lr is 3; expected interval"):
        split([], {"optim.lr": "3"})


def test_a_search_goes_on_without_repeating_points(tmp_path: Path) -> None:
    log: list[dict[str, str]] = []
    launch = trained(tmp_path, lambda options: abs(float(options["optim.lr"]) - 0.001), log)
    searching(tmp_path, launch, trials=4, random_trials=2).run()
    assert [one["hydra.sweep.subdir"] for one in log] == ["0", "1", "2", "3"]
    assert all(one["model.width"] == "32" and one["sweep.trial"] == one["hydra.sweep.subdir"] for one in log)
    searching(tmp_path, launch, trials=4).run()
    assert len(log) == 4  # nothing was missing
    searching(tmp_path, launch, trials=8, jobs=2, random_trials=2).run()
    assert len(log) == 8
    assert len({(one["optim.lr"], one["optim"]) for one in log}) == 8
    study = optuna.load_study(study_name=NAME, storage=storage(str(tmp_path / "study.db")))
    assert study.best_value == min(abs(float(one["optim.lr"]) - 0.001) for one in log)


def test_a_small_space_is_tried_once_each(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log: list[dict[str, str]] = []
    launch = trained(tmp_path, lambda options: float(options["optim.beta1"]), log)
    searching(tmp_path, launch, {"optim.beta1": "choice(0.8, 0.9, 0.95)"}, trials=10).run()
    assert sorted(one["optim.beta1"] for one in log) == ["0.8", "0.9", "0.95"]
    told = capsys.readouterr().err
    assert "no point is left that was not tried; 3 trials" in told
    assert "the best job: " in told


def test_a_trial_that_was_cut_off_goes_on_in_its_folder(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def killed(batch: list[list[str]]) -> None:
        seen.extend(batch)
        if len(seen) == 2:
            raise SystemExit(143)
        outcome.write(tmp_path / "0", Outcome(status="failed", error="diverged"))

    with pytest.raises(SystemExit):
        searching(tmp_path, killed, trials=3).run()
    log: list[dict[str, str]] = []
    searching(tmp_path, trained(tmp_path, lambda options: 1.0, log), trials=3).run()
    assert [one["hydra.sweep.subdir"] for one in log] == ["1", "2"]
    before = dict(one.lstrip("+").split("=", 1) for one in seen[1])
    assert log[0]["optim.lr"] == before["optim.lr"]
    study = optuna.load_study(study_name=NAME, storage=storage(str(tmp_path / "study.db")))
    assert [one.state.name for one in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]


def test_several_objectives(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log: list[dict[str, str]] = []
    launch = trained(tmp_path, lambda options: float(options["optim.lr"]), log)
    wanted = {"val/loss": "minimize", "parameters": "maximize"}
    searching(tmp_path, launch, trials=6, objectives=wanted).run()
    study = optuna.load_study(study_name=NAME, storage=storage(str(tmp_path / "study.db")))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.trials[1].values == [float(log[1]["optim.lr"]), 3000.0]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not beaten in all")]
    assert len(told) == len(study.best_trials)
    assert not Search(objectives=wanted).prunes
    with pytest.raises(UserError, match="a study of other objectives"):
        searching(tmp_path, launch, trials=6)
    log.clear()
    searching(
        tmp_path / "other", trained(tmp_path / "other", lambda o: 1.0, log), trials=1, objectives={"x": "minimize"}
    ).run()
    assert "job 0 did not measure x" in capsys.readouterr().err


def test_what_lies_behind_the_median_is_pruned(tmp_path: Path) -> None:
    address = storage(str(tmp_path / "study.db"))
    study = optuna.create_study(study_name=NAME, storage=address)
    for loss in (1.0, 2.0, 3.0):
        trial = study.ask()
        trial.report(loss, 10)
        study.tell(trial, loss)

    def is_behind(loss: float, random_trials: int = 3) -> bool:
        trial = study.ask()
        pruning = Pruning(
            storage=address, study=NAME, trial=trial.number, monitor="val/loss", random_trials=random_trials
        )
        return pruning.is_behind(10, loss)

    assert is_behind(2.1)
    assert not is_behind(1.9)
    assert not is_behind(2.1, random_trials=4)  # too few have ended to tell
    assert is_behind(float("nan"))


def test_settings_are_checked_before_anything_is_made() -> None:
    with pytest.raises(UserError, match=r"sweep.trials is 'abc'; expected a whole number"):
        settings_of(OmegaConf.create({"sweep": {"_target_": "alignlab.sweep.settings.Search", "trials": "abc"}}))
    with pytest.raises(UserError, match=r"sweep._target_ is os.system"):
        settings_of(OmegaConf.create({"sweep": {"_target_": "os.system"}}))


def test_a_real_search_prunes(tmp_path: Path, corpus: Path) -> None:
    search_ = ("sweep=optuna", "sweep.trials=5", "sweep.random_trials=3", "optim.lr=0,0.001,0.01,0.02,1e-9", "seed=8")
    arguments = (
        "-m", *search_, "data=files", f"data.train={corpus}", *TINY, "model.layers=1", "trainer.max_steps=20",
        "eval_every=5", "test=false", "optim.weight_decay=0.1", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    run = train(*arguments, folder=tmp_path)
    assert run.returncode == 0, run.stderr
    rows = [row.split(",") for row in (tmp_path / "sweep/sweep.csv").read_text(encoding="utf-8").splitlines()]
    assert rows[0][:2] == ["run", "optim.lr"]
    assert sorted(row[1] for row in rows[1:]) == ["0", "0.001", "0.01", "0.02", "1e-09"]
    status = {row[1]: row[rows[0].index("status")] for row in rows[1:]}
    assert status["0.02"] == "done"
    study = optuna.load_study(study_name=NAME, storage=storage(str(tmp_path / "sweep/study.db")))
    pruned = [one for one in study.trials if one.state.name == "PRUNED"]
    assert len(pruned) == list(status.values()).count("pruned")
    assert pruned, "a rate of 0 lies behind the others"
    assert all(max(one.intermediate_values) < 20 for one in pruned)
    assert (tmp_path / "sweep" / str(pruned[0].number) / ".hydra/outcome.json").is_file()
