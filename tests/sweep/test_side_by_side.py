"""Jobs as processes: how many at once, how they end, and that a signal ends all of them."""

import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignlab.callbacks.agreement import digest
from alignlab.commandline import prepare
from alignlab.errors import UserError
from alignlab.sweep import outcome, side_by_side
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.pool import Pool, own_process
from alignlab.sweep.settings import Parallel
from alignlab.sweep.side_by_side import Job, run_side_by_side
from tests.conftest import TINY, train
from tests.sweep.folders import made_up


def pool(script: str, size: int, told: list[str]) -> Pool:
    return Pool(
        size=size,
        start=lambda folder, environment: own_process([sys.executable, "-c", script, str(folder)], folder, environment),
        environment=lambda place: {"PLACE": str(place)},
        started=lambda folder: told.append(f"+{folder.name}"),
        ended=lambda folder, code: told.append(f"-{folder.name} {code}"),
    )


def test_no_more_than_so_many_at_once(tmp_path: Path) -> None:
    script = (
        "import os, sys, time; print(os.environ['PLACE']); time.sleep(.2); sys.exit(3 if sys.argv[1][-1] == '1' else 0)"
    )
    folders = [tmp_path / str(number) for number in range(4)]
    for folder in folders:
        folder.mkdir()
    told: list[str] = []
    pool(script, 2, told).run(folders)
    assert told[:2] == ["+0", "+1"]
    running = [sum(1 if one[0] == "+" else -1 for one in told[: end + 1]) for end in range(len(told))]
    assert max(running) == 2
    assert "-1 3" in told
    assert {(folder / "terminal.log").read_text() for folder in folders} == {"0\n", "1\n"}


def test_a_signal_stops_what_runs_and_starts_nothing_more(tmp_path: Path) -> None:
    folders = [tmp_path / str(number) for number in range(3)]
    for folder in folders:
        folder.mkdir()
    told: list[str] = []
    before = signal.getsignal(signal.SIGTERM)
    threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as ended:
        pool("import time; time.sleep(60)", 2, told).run(folders)
    assert ended.value.code == 143
    assert sorted(told) == ["+0", "+1", "-0 -15", "-1 -15"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_done_jobs_are_left_and_killed_ones_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = OmegaConf.create({"monitor": "val/loss", "trainer": {"accelerator": "cpu", "devices": 1}})
    made_up(tmp_path / "0", "seed=0", best_val_loss=1.5)
    made_up(tmp_path / "2", "seed=5", best_val_loss=0.5)
    monkeypatch.setattr(side_by_side.sys, "executable", "/bin/false")  # ends with 1, and writes nothing down
    jobs = [Job(config, tmp_path / str(number), [f"seed={number}"]) for number in range(2)]
    assert run_side_by_side(jobs, Parallel(jobs=2)) == [1.5, None]
    told = outcome.read(tmp_path / "1")
    assert told == Outcome(status="failed", error=f"exit code 1; see {tmp_path / '1/terminal.log'}")
    assert capsys.readouterr().err.splitlines()[:2] == ["job 0: done before", "job 1: seed=1"]
    with pytest.raises(UserError, match="holds a run of other overrides: seed=5"):
        run_side_by_side([Job(config, tmp_path / "2", ["seed=2"])], Parallel())


def test_what_each_place_gets() -> None:
    settings = Parallel(jobs=3, threads=4, gpus=[2, 5])
    assert settings.environment(0)["OMP_NUM_THREADS"] == "4"
    assert [settings.environment(place)["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["2", "5", "2"]
    with pytest.raises(UserError, match="add -m to start one"):
        prepare(["sweep=parallel"])


def test_the_digest_knows_every_value_and_no_order() -> None:
    assert digest({"a": 1, "b": {"c": 2}}) == digest({"b": {"c": 2}, "a": 1})
    assert digest({"a": 1}) != digest({"a": 1.5})


def test_ranks_of_every_job_read_one_configuration(tmp_path: Path, corpus: Path) -> None:
    arguments = (
        "-m", "sweep=parallel", "data=files", f"data.train={corpus}", *TINY, "model.layers=1", "trainer.max_steps=1",
        "test=false", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "seed=1,2",
        "hydra.sweep.dir=sweep",
    )  # fmt: skip
    run = train(*arguments, folder=tmp_path, environment={"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr
    told = []
    for number in "01":
        log = (tmp_path / f"sweep/{number}/run.log").read_text(encoding="utf-8")
        (line,) = [line for line in log.splitlines() if "  config  " in line]
        one, other = line.partition("  config  ")[2].split(", ")
        assert one.replace("rank 0", "rank 1") == other
        told.append(one)
        assert json.loads((tmp_path / f"sweep/{number}/metrics.json").read_text())["step"] == 1
    assert told[0] != told[1]
