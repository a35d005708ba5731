"""Jobs are contained; a sweep that was killed goes on with what is missing."""

import json
import os
import time
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from alignlab.errors import UserError
from alignlab.folders import again, assign_folder
from alignlab.sweep import job, outcome
from alignlab.sweep.outcome import Outcome
from tests.conftest import ROOT, TINY, train
from tests.sweep.folders import made_up

CONFIG = OmegaConf.create({"monitor": "val/loss"})


def fails(error: BaseException) -> object:
    def training(config: DictConfig, folder: Path, overrides: list[str]) -> None:
        raise error

    return training


def test_a_failure_is_written_down_and_one_line_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(job, "check", lambda config, trust: None)
    monkeypatch.setattr(job, "train", fails(RuntimeError("out of luck\nand more")))
    assert job.attempt(CONFIG, tmp_path / "3", ["seed=3"]) is None
    assert outcome.read(tmp_path / "3") == Outcome(status="failed", error="RuntimeError: out of luck")
    log = (tmp_path / "3/run.log").read_text(encoding="utf-8")
    assert "Traceback" in log
    assert log.endswith("error: RuntimeError: out of luck\n")
    told = capsys.readouterr().err.splitlines()
    assert told == ["job 3: seed=3", f"job 3 failed: RuntimeError: out of luck; see {tmp_path / '3/run.log'}"]
    monkeypatch.setattr(job, "train", fails(SystemExit(7)))  # as where a rank ended
    job.attempt(CONFIG, tmp_path / "4", ["seed=4"])
    assert outcome.read(tmp_path / "4") == Outcome(status="failed", error="exit code 7")


@pytest.mark.parametrize("ending", [SystemExit(143), KeyboardInterrupt()])
def test_a_signal_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: BaseException) -> None:
    monkeypatch.setattr(job, "check", lambda config, trust: None)
    monkeypatch.setattr(job, "train", fails(ending))
    with pytest.raises(SystemExit) as ended:
        job.attempt(CONFIG, tmp_path / "0", ["seed=0"])
    assert ended.value.code == (143 if isinstance(ending, SystemExit) else 130)
    assert outcome.read(tmp_path / "0") == Outcome(status="stopped")


def test_a_finished_job_is_not_run_again_and_another_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "check", lambda config, trust: None)
    monkeypatch.setattr(job, "train", fails(AssertionError("it was trained")))
    made_up(tmp_path / "0", "++optim.lr=0.1", "sweep=parallel", best_val_loss=1.25)
    assert job.attempt(CONFIG, tmp_path / "0", ["++optim.lr=0.1"]) == 1.25  # how jobs run is no part of them
    with pytest.raises(UserError, match=r"holds a run of other overrides: \+\+optim.lr=0.1"):
        job.attempt(CONFIG, tmp_path / "0", ["++optim.lr=0.2"])
    made_up(tmp_path / "1", "++optim.lr=0.2", status="running", best_val_loss=1.0)
    job.attempt(CONFIG, tmp_path / "1", ["++optim.lr=0.2"])
    told = outcome.read(tmp_path / "1")
    assert told is not None
    assert told.error == "AssertionError: it was trained"


def test_a_sweep_that_goes_on_keeps_its_configurations(tmp_path: Path) -> None:
    arguments = ["-m", "seed=1,2", f"hydra.sweep.dir={tmp_path}/${{now:%Y}}"]
    place = tmp_path / time.strftime("%Y")
    assert assign_folder(arguments, ROOT / "conf") == ["-m", "seed=1,2", f"hydra.sweep.dir={place}"]
    place.mkdir()
    (place / "multirun.yaml").touch()
    assert assign_folder(arguments, ROOT / "conf")[-1] == "hydra.output_subdir=null"
    with pytest.raises(UserError, match="expected a path"):
        assign_folder(["-m", "hydra.sweep.dir=${seed}"], ROOT / "conf")
    told = {"hydra": {"overrides": {"task": ["seed=1,2", "++a.b=c d"], "hydra": ["hydra.mode=MULTIRUN"]}}}
    OmegaConf.save(OmegaConf.create(told), place / "multirun.yaml")
    assert again([f"resume={place}", "++sweep.jobs=3"]) == [
        "-m", "seed=1,2", "++a.b=c d", "++sweep.jobs=3", f"hydra.sweep.dir={place}",
    ]  # fmt: skip
    with pytest.raises(UserError, match="seed=3 cannot change when a sweep goes on"):
        again([f"resume={place}", "seed=3"])


def test_a_real_sweep_outlives_a_job_and_goes_on(tmp_path: Path, corpus: Path) -> None:
    arguments = (
        "-m", "data=files", f"data.train={corpus}", *TINY, "model.layers=1", "trainer.max_steps=2", "test=false",
        "model.width=32,33,36", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    first = train(*arguments, folder=tmp_path)
    assert first.returncode == 1, first.stderr
    assert "Traceback" not in first.stderr
    assert "3 jobs, 1 failed" in first.stderr
    sweep = tmp_path / "sweep"
    rows = (sweep / "sweep.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "run,model.width,metric,best,step,seconds,status,error,folder"
    assert sorted(row.split(",")[:2] for row in rows[1:3]) == [["0", "32"], ["2", "36"]]
    assert [row.split(",")[6] for row in rows[1:]] == ["done", "done", "failed"]
    assert ',failed,"model.width 33 is not a multiple' in rows[3]
    assert (sweep / "sweep.png").is_file()
    before = json.loads((sweep / "0/metrics.json").read_text(encoding="utf-8"))
    outcome.write(sweep / "0", Outcome(status="running"))  # as if it had been killed
    (sweep / "0/metrics.json").unlink()
    kept = os.stat(sweep / "2/metrics.json").st_mtime_ns
    second = train("resume=sweep", folder=tmp_path)
    assert second.returncode == 1, second.stderr
    assert "job 2: done before" in second.stderr
    assert "going on from" in second.stderr
    after = json.loads((sweep / "0/metrics.json").read_text(encoding="utf-8"))
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name] and not name.startswith("train/")] == []
    assert os.stat(sweep / "2/metrics.json").st_mtime_ns == kept
