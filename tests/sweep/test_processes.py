"""Whole sweeps as a user starts them: side by side, killed half-way and started again, two in the same second."""

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from alignlab.sweep import outcome
from tests.conftest import ROOT, TINY, train
from tests.sweep.hparams import compared

WIDTHS = ("32", "33", "36", "40", "44", "48")
GOOD, BAD = "02345", "1"  # the latter is the job whose width is no multiple of its heads
SAME_SECOND = f"""
import runpy, sys
from alignlab import folders
folders.stamp = lambda: "2026-01-01_00-00-00"
sys.argv = ["train.py", *sys.argv[1:]]
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""


def options(corpus: Path) -> tuple[str, ...]:
    """A run of a second, once torch is there."""
    return ("data=files", f"data.train={corpus}", *TINY, "model.layers=1", "test=false", "trainer.max_steps=4")


def statuses(sweep: Path) -> list[str]:
    """What the jobs' folders say, of those that have begun."""
    return [told.status for one in sweep.glob("*/") if (told := outcome.read(one)) is not None]


def until(holds: Callable[[], bool], process: subprocess.Popen, seconds: float = 200, pause: float = 0.05) -> None:
    """Waits for what must come while `process` runs."""
    end = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(pause)


def rows_of(sweep: Path) -> list[dict[str, str]]:
    """sweep.csv, a dictionary for each job."""
    with open(sweep / "sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def alive(sweep: Path) -> list[str]:
    """The jobs of `sweep` that some process trains."""
    names = []
    for lock in sweep.glob("*/.hydra/lock"):
        with open(lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                names.append(lock.parent.parent.name)
    return names


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, set[str], str]:
    """Six jobs, two at once, killed when half of them had ended, and started again: folder, what was done, terminal."""
    folder = tmp_path_factory.mktemp("killed")
    arguments = (
        "-m", "sweep=parallel", *options(corpus), "logger=tensorboard", f"model.width={','.join(WIDTHS)}",
        f"hydra.sweep.dir={folder / 'sweep'}",
    )  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    place = folder / "sweep"
    until(lambda: sum(one in ("done", "failed") for one in statuses(place)) >= 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 60
    while alive(place):  # the jobs see that nobody waits for them
        assert time.monotonic() < deadline
        time.sleep(0.1)
    done = {one.name for one in place.glob("*/") if (told := outcome.read(one)) and told.status == "done"}
    assert 2 <= len(done) <= 4
    again = train("resume=sweep", folder=folder)
    assert again.returncode == 1, again.stderr  # one job cannot work
    return place, done, again.stderr


def test_a_killed_sweep_finishes_only_the_rest(sweep: tuple[Path, set[str], str]) -> None:
    place, done, told = sweep
    for name in GOOD:
        assert (f"job {name}: done before" in told) == (name in done)
        assert (f"job {name} done, best val/loss" in told) == (name not in done)
        assert json.loads((place / name / "metrics.json").read_text())["step"] == 4
    assert f"job {BAD} failed: model.width 33 is not a multiple" in told
    assert "Traceback" not in told


def test_it_ends_with_a_table_a_csv_and_a_figure(sweep: tuple[Path, set[str], str]) -> None:
    place, _, told = sweep
    assert "6 jobs, 1 failed" in told
    rows = rows_of(place)
    assert [row["status"] for row in rows] == ["done"] * 5 + ["failed"]
    losses = [float(row["best"]) for row in rows[:5]]
    assert losses == sorted(losses)
    assert [WIDTHS[int(row["run"])] for row in rows] == [row["model.width"] for row in rows]
    assert "model.width 33 is not a multiple" in rows[5]["error"]
    lines = [line for line in told.splitlines() if "│" in line]
    assert [line.split("│")[0].strip() for line in lines] == [row["run"] for row in rows]
    assert f"\n{BAD}: model.width 33 is not a multiple" in told
    assert (place / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_tensorboard_compares_its_runs(sweep: tuple[Path, set[str], str]) -> None:
    place, _, _ = sweep
    shown = compared(place)
    assert sorted(shown) == [f"{name}/tensorboard" for name in GOOD]
    for row in rows_of(place)[:5]:
        told, reached = shown[f"{row['run']}/tensorboard"]
        assert told["model.width"] == float(row["model.width"])
        assert reached["best/val/loss"] == pytest.approx(float(row["best"]), rel=1e-6)


def test_two_sweeps_of_the_same_second_share_nothing(tmp_path: Path, corpus: Path) -> None:
    arguments = ("-m", *options(corpus), "trainer.max_steps=1", "optim.lr=0.001,0.002")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SAME_SECOND, *arguments, f"seed={seed}"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    for process in processes:
        _, told = process.communicate(timeout=200)
        assert process.returncode == 0, told
    folders = sorted((tmp_path / "runs/pretrain").iterdir())
    assert [one.name for one in folders] == ["sweep-2026-01-01_00-00-00", "sweep-2026-01-01_00-00-00-2"]
    seeds = []
    for folder in folders:
        assert statuses(folder) == ["done", "done"]
        assert sorted(row["optim.lr"] for row in rows_of(folder)) == ["0.001", "0.002"]
        configs = [(folder / name / ".hydra/config.yaml").read_text() for name in "01"]
        seeds.append({line for text in configs for line in text.splitlines() if line.startswith("seed: ")})
    assert sorted(map(sorted, seeds)) == [["seed: 1"], ["seed: 2"]]


def test_a_signal_after_the_last_step_is_no_end(tmp_path: Path, corpus: Path) -> None:
    arguments = [*options(corpus), f"hydra.run.dir={tmp_path / 'run'}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *arguments, "eval_every=4"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "run/metrics.json"
    until(metrics.is_file, process, pause=0.001)  # it stands there before the validation has ended for the trainer
    process.terminate()
    _, told = process.communicate(timeout=100)
    is_whole = "train/seconds" in json.loads(metrics.read_text())
    assert process.returncode in ((0, 143, -15) if is_whole else (143, -15)), told
    again = train(f"resume={tmp_path / 'run'}", folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "train/seconds" in json.loads(metrics.read_text())
