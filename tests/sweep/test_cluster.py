"""Jobs in a queue: with submitit's local executor in the place of Slurm's, and the script that Slurm would get."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from alignlab.commandline import prepare
from alignlab.errors import UserError
from alignlab.launch import freeze
from alignlab.sweep import outcome
from alignlab.sweep.cluster import Submitted, executor_of
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.settings import Slurm, settings_of
from tests.conftest import ROOT, TINY, composed, train
from tests.sweep.folders import made_up
from tests.sweep.test_processes import options, rows_of, statuses, until


def test_a_sweep_goes_through_the_queue(tmp_path: Path, corpus: Path) -> None:
    arguments = (
        "-m", "sweep=slurm", "sweep.cluster=local", "sweep.threads=1", *options(corpus), "model.width=32,33",
        "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "hydra.sweep.dir=sweep",
    )  # fmt: skip
    run = train(*arguments, folder=tmp_path, environment={"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    assert run.returncode == 1, run.stderr
    assert "sent to local: " in run.stderr
    assert "2 jobs, 1 failed" in run.stderr
    good, bad = rows_of(tmp_path / "sweep")
    assert (good["model.width"], good["status"]) == ("32", "done")
    assert "model.width 33 is not a multiple" in bad["error"]
    assert " on rank 1" in (tmp_path / "sweep/0/run.log").read_text()  # though Slurm says that there is one


def test_a_sweep_goes_to_ray(tmp_path: Path, corpus: Path) -> None:
    pytest.importorskip("ray")
    arguments = ("-m", "sweep=ray", *options(corpus), "model.width=32,33", "hydra.sweep.dir=sweep")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "trainer.max_steps=100000", "eval_every=20"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    sweep = tmp_path / "sweep"
    until(lambda: (sweep / "0/checkpoints/last.ckpt").is_file() and "failed" in statuses(sweep), process)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=100)
    assert process.returncode == 143, told
    stopped, bad = rows_of(sweep)
    assert stopped["status"] == "stopped", told
    assert outcome.is_to_stop(sweep / "0")
    assert "model.width 33 is not a multiple" in bad["error"]
    assert "go on with what is missing: python train.py resume=" in told


def test_a_job_whose_time_is_up_goes_on(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "0"
    overrides = ["data=files", f"data.train={corpus}", *TINY, "trainer.max_steps=800", "eval_every=50", "test=false"]
    freeze(composed(*overrides), folder, overrides)
    outcome.write(folder, Outcome(status="waiting"))
    executor = executor_of(Slurm(cluster="local", minutes=20), tmp_path / ".submitit")
    job = executor.submit(Submitted(folder=str(folder), environment={"OMP_NUM_THREADS": "1"}))
    while not (folder / "checkpoints/last.ckpt").is_file():
        assert not job.done(), job.stdout()
        time.sleep(0.02)
    told = processes_of(folder)
    assert len(told) == 2
    for process in told:
        os.kill(process, signal.SIGUSR2)  # Slurm tells every process of a job
    assert job.result() == 0
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert log.count("go on with: python train.py") == 1  # it stopped by itself, after a whole step
    assert log.count("going on from") == 1
    assert json.loads((folder / "metrics.json").read_text())["step"] == 800
    assert outcome.read(folder) == Outcome(status="done")


def processes_of(folder: Path) -> list[int]:
    """The job in `folder`, and what the queue runs above it."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()[1:]]
    return [int(n) for pid, parent, args in rows if args.endswith(f"alignlab.sweep {folder}") for n in (pid, parent)]


def on_a_sweep(*overrides: str) -> DictConfig:
    """As `composed`, which takes no sweeps: what each job of one has in common."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [one for one in prepare(["-m", *overrides]) if one != "-m"])


def test_what_slurm_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("srun", ""), ("sbatch", f'cp "$1" {tmp_path}/asked; echo "Submitted batch job 77"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    config = on_a_sweep(
        "sweep=slurm", "sweep.partition=short", "sweep.gpus=2", "sweep.memory_gb=20", "sweep.minutes=90",
        "sweep.jobs=1", "+sweep.sbatch.account=words",
    )  # fmt: skip
    settings = settings_of(config)
    assert isinstance(settings, Slurm)
    sent = executor_of(settings, tmp_path / "queue").submit_array([partial(int, "1"), partial(int, "2")])
    assert [job.job_id for job in sent] == ["77_0", "77_1"]
    asked = (tmp_path / "asked").read_text().splitlines()
    for line in (
        "--array=0-1%1", "--partition=short", "--gpus-per-node=2", "--mem=20GB", "--time=90", "--nodes=1",
        "--ntasks-per-node=1", "--cpus-per-task=4", "--signal=USR2@120", "--account=words",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in asked


def test_without_slurm_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="finds no srun on this machine"):
        executor_of(Slurm(), tmp_path / "queue")


def test_a_job_waits_for_the_process_that_trains_it(tmp_path: Path) -> None:
    made_up(tmp_path / "0", "seed=0", best_val_loss=1.5)
    with open(tmp_path / "0/.hydra/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job = subprocess.Popen(
            [sys.executable, "-m", "alignlab.sweep", str(tmp_path / "0")], stderr=subprocess.PIPE, text=True
        )
        with pytest.raises(subprocess.TimeoutExpired):
            job.communicate(timeout=3)
    assert job.communicate(timeout=60)[1] == "job 0: done before\n"
    assert job.returncode == 0
