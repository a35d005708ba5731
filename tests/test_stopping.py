"""Stopping and going on, as a user does it: signals, kill -9, a damaged file, a full disk, a changed file."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from alignlab import checkpoint as files
from alignlab.launch import freeze, frozen
from tests.conftest import ROOT, TINY, train
from tests.test_laws import assert_equal

LONG = (*TINY, "data=files", "trainer.max_steps=3000", "eval_every=1500", "checkpoint_every=5", "test=false")


def started(folder: Path, corpus: Path, *more: str) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), f"data.train={corpus}", "hydra.run.dir=run", *LONG, *more]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.05)


def step_of(path: Path) -> int:
    return files.read(path)["position"]["step"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_so(number: signal.Signals, code: int, tmp_path: Path, corpus: Path) -> None:
    process = started(tmp_path, corpus)
    last = tmp_path / "run/checkpoints/last.ckpt"
    wait_for(last)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert 0 < step_of(last) < 3000
    assert not (tmp_path / "run/checkpoints/best.ckpt").exists()  # no validation on the way out


def test_killed_in_a_write_a_run_ends_where_an_undisturbed_one_does(tmp_path: Path, corpus: Path) -> None:
    short = ("trainer.max_steps=40", "eval_every=20", "checkpoint_every=1", "trainer.accumulate_grad_batches=2")
    process = started(tmp_path, corpus, *short)
    wait_for(tmp_path / "run/checkpoints/last-1.ckpt")
    process.kill()
    process.communicate(timeout=60)
    stopped_at = step_of(tmp_path / "run/checkpoints/last.ckpt")
    resumed = train("resume=run", folder=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    whole = train(f"data.train={corpus}", "hydra.run.dir=whole", *LONG, *short, folder=tmp_path)
    assert whole.returncode == 0, whole.stderr
    one, other = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("run", "whole"))
    for name in ("state_dict", "optimizer_states", "lr_schedulers", "rng", "position", "counters"):
        assert_equal(one[name], other[name], name)
    assert stopped_at < 40
    again = train("resume=run", folder=tmp_path)
    assert again.returncode == 0
    assert "nothing left to do" in again.stderr
    changed = train("resume=run", "optim.lr=1", folder=tmp_path)
    assert changed.returncode == 2
    assert "optim.lr cannot change when a run goes on" in changed.stderr


def test_killed_in_a_rollout_a_run_draws_the_same_again(tmp_path: Path) -> None:
    """The reward of the third rollout says that it is asked, and waits to be killed; later it answers at once."""
    (tmp_path / "slow_reward.py").write_text(
        "import pathlib, time\n"
        "def digits(prompts, completions, references):\n"
        "    calls = pathlib.Path('calls'); calls.write_text(calls.read_text() + 'x' if calls.exists() else 'x')\n"
        "    if pathlib.Path('waits').exists() and len(calls.read_text()) == 3:\n"
        "        pathlib.Path('asked').touch(); time.sleep(120)\n"
        "    return [sum(map(str.isdigit, one)) / 6 for one in completions]\n",
        encoding="utf-8",
    )
    rows = "".join(json.dumps({"prompt": f"{n}?", "reference": "x"}) + "\n" for n in range(24))
    (tmp_path / "prompts.jsonl").write_text(rows, encoding="utf-8")
    (tmp_path / "waits").touch()
    path = {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    grpo = (
        "task=grpo", "data=files", "data.train=prompts.jsonl", "data.holdout=0", *TINY, "task.max_new_tokens=6",
        "task.samples=4", "task.updates=2", "datamodule.max_length=24", "datamodule.batch_size=4",
        "task.rewards={digits:{_target_:slow_reward.digits,_partial_:true}}", "trust=[slow_reward]", "test=false",
        "trainer.max_steps=8", "checkpoint_every=1", "eval_every=8",
    )  # fmt: skip
    command = [sys.executable, str(ROOT / "train.py"), *grpo, "hydra.run.dir=run"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **path}, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "asked")
    process.kill()
    process.communicate(timeout=60)
    assert step_of(tmp_path / "run/checkpoints/last.ckpt") == 4  # two rollouts were learned from, two updates each
    (tmp_path / "waits").unlink()
    for arguments in (("resume=run",), (*grpo, "hydra.run.dir=whole")):
        done = train(*arguments, folder=tmp_path, environment=path)
        assert done.returncode == 0, done.stderr
    one, other = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("run", "whole"))
    for name in ("state_dict", "optimizer_states", "rng", "position", "counters"):
        assert_equal(one[name], other[name], name)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        files.rotate(tmp_path, keep=2)
        files.write({"step": step, "weights": __import__("torch").arange(1000.0)}, tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last-1.ckpt", "last.ckpt"]
    content = bytearray((tmp_path / "last.ckpt").read_bytes())
    content[len(content) // 2] ^= 1  # one flipped bit, which torch.load does not see
    (tmp_path / "last.ckpt").write_bytes(bytes(content))
    newest = files.newest_good(tmp_path)
    assert newest is not None
    assert newest.name == "last-1.ckpt"
    assert files.read(newest)["step"] == 2
    assert "last.ckpt is damaged" in caplog.text
    files.set_aside(newest)
    files.rotate(tmp_path, keep=2)  # what comes next may not be written: the good one is still there
    assert files.newest_good(tmp_path) == newest
    assert (tmp_path / "damaged-last.ckpt").exists()
    (tmp_path / "last-1.ckpt").write_bytes(b"PK")
    with pytest.raises(files.DamagedCheckpoint, match="no undamaged checkpoint"):
        files.newest_good(tmp_path)


def test_a_run_goes_on_by_steps_or_by_epochs(tmp_path: Path, corpus: Path) -> None:
    """Whatever said before how long it is: the last word counts."""
    options = ("data=files", f"data.train={corpus}", *TINY, "test=false", "datamodule.batch_size=64", "eval_every=100")
    first = train(*options, "trainer.max_epochs=1", "hydra.run.dir=run", folder=tmp_path)
    assert first.returncode == 0, first.stderr
    told = json.loads((tmp_path / "run/metrics.json").read_text())
    epoch = told["step"]
    for length, steps in (("max_steps", epoch + 1), ("max_epochs", 2), ("max_steps", 2 * epoch + 1)):
        resumed = train("resume=run", f"trainer.{length}={steps}", folder=tmp_path)
        assert resumed.returncode == 0, resumed.stderr
        reached = json.loads((tmp_path / "run/metrics.json").read_text())["step"]
        assert reached == (steps * epoch if length == "max_epochs" else steps)


def test_changed_data_is_refused_unless_allowed(tmp_path: Path, corpus: Path) -> None:
    copy = tmp_path / "text.txt"
    copy.write_text(corpus.read_text(encoding="utf-8"), encoding="utf-8")
    arguments = ("data=files", f"data.train={copy}", "hydra.run.dir=run", *TINY, "trainer.max_steps=2", "test=false")
    assert train(*arguments, folder=tmp_path).returncode == 0
    refused = train(*arguments, folder=tmp_path)
    assert refused.returncode == 2
    assert "holds a run already" in refused.stderr
    copy.write_text(corpus.read_text(encoding="utf-8") + "One more line.\n" * 50, encoding="utf-8")
    changed = train("resume=run", "trainer.max_steps=4", folder=tmp_path)
    assert changed.returncode == 2
    assert "cannot go on exactly: data was" in changed.stderr
    assert len(changed.stderr.strip().splitlines()) <= 12
    allowed = train("resume=run", "trainer.max_steps=4", "resume_with=[data]", folder=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "the horizon changes from 2 to 4 steps" in allowed.stderr
    assert json.loads((tmp_path / "run/metrics.json").read_text())["step"] == 4


def test_what_is_allowed_by_name_may_stand_beside_resume(tmp_path: Path, corpus: Path) -> None:
    arguments = (f"data.train={corpus}", "data=files", "hydra.run.dir=run", *TINY, "trainer.max_steps=2", "test=false")
    assert train(*arguments, "datamodule.batch_size=4", folder=tmp_path).returncode == 0
    longer = ("resume=run", "trainer.max_steps=3")
    refused = train(*longer, "datamodule.batch_size=8", folder=tmp_path)
    assert refused.returncode == 2
    assert "error: datamodule.batch_size was 4, is 8: the run cannot go on exactly" in refused.stderr
    assert "resume_with=[batch_size]" in refused.stderr
    allowed = train(*longer, "datamodule.batch_size=8", "resume_with=[batch_size]", folder=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    frozen = (tmp_path / "run/.hydra/config.yaml").read_text()
    (tmp_path / "moved.txt").write_text("Another text. " * 500)
    other = train("resume=run", "trainer.max_steps=4", "data.train=moved.txt", folder=tmp_path)
    assert "data.train was" in other.stderr  # what was allowed once is not allowed for ever
    late = train("resume=run", "trainer.max_steps=4", "data.train=gone.txt", "resume_with=[data]", folder=tmp_path)
    assert late.returncode == 2
    assert (tmp_path / "run/.hydra/config.yaml").read_text() == frozen  # a run that was refused is as it was


def test_a_run_that_failed_before_its_first_step_may_be_begun_again(tmp_path: Path, corpus: Path) -> None:
    arguments = ("data=files", "hydra.run.dir=run", *TINY, "trainer.max_steps=1", "test=false")
    wrong = train(*arguments, f"data.train={corpus}", "optim.lr=abc", folder=tmp_path)
    assert wrong.returncode == 2
    assert not (tmp_path / "run/.hydra").exists()
    failed = train(*arguments, f"data.train={corpus}", "trainer.gradient_clip_val=-1", folder=tmp_path)
    assert "error: trainer.gradient_clip_val is -1; expected a number >= 0" in failed.stderr
    assert (tmp_path / "run/run.log").read_text().splitlines()[-1].startswith("error: trainer.gradient_clip_val")
    with open(tmp_path / "run/run.log", "a") as log:
        log.write("another begins\n")  # and is at work
    assert "holds a run already" in train(*arguments, f"data.train={corpus}", folder=tmp_path).stderr
    with open(tmp_path / "run/run.log", "a") as log:
        log.write("error: and failed\n")
    done = train(*arguments, f"data.train={corpus}", folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_diverging_stops_with_an_error_and_keeps_finite_weights(tmp_path: Path, corpus: Path) -> None:
    arguments = (f"data.train={corpus}", "hydra.run.dir=run", *LONG, "optim=sgd", "optim.lr=1e30")
    run = train(*arguments, "trainer.gradient_clip_val=null", "checkpoint_every=1", folder=tmp_path)
    assert run.returncode not in (0, 1), run.stderr
    assert "finite" in run.stderr
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert not last.exists() or not files.not_finite(files.read(last)["state_dict"])


@contextlib.contextmanager
def mounted(disk: Path, options: str) -> Iterator[Path]:
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(disk)], check=False).returncode:
        pytest.skip("this machine does not allow mounting")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, corpus: Path) -> None:
    with mounted(tmp_path / "disk", "size=300k") as disk:
        run = train(f"data.train={corpus}", f"hydra.run.dir={disk}/run", *LONG, folder=tmp_path)
    assert run.returncode == 2, run.stderr
    assert "No space left" in run.stderr or "could not write" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a disk needs root")
def test_a_read_only_folder_is_told_with_the_remedy(tmp_path: Path, corpus: Path) -> None:
    with mounted(tmp_path / "disk", "ro") as disk:
        run = train(f"data.train={corpus}", f"hydra.run.dir={disk}/run", *LONG, folder=tmp_path)
    assert run.returncode == 2, run.stderr
    first, second = run.stderr.splitlines()[-2:]
    assert first == f"error: Read-only file system: {disk}/run"
    assert "hydra.run.dir=FOLDER" in second


@pytest.mark.parametrize("unwritten", ["config", "overrides"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_configuration_that_cannot_be_written_leaves_the_old_one(
    unwritten: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze(OmegaConf.create({"seed": 1}), tmp_path, ["seed=1"])
    found = {path.name: path.read_text() for path in (tmp_path / ".hydra").iterdir()}
    write_text = Path.write_text

    def full(path: Path, text: str, **more: str) -> int:
        if unwritten in path.name and "2" in text:
            write_text(path, "half", **more)
            raise error
        return write_text(path, text, **more)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(type(error)), frozen(OmegaConf.create({"seed": 2}), tmp_path, ["seed=2"]):
        raise AssertionError("the run began")
    assert {path.name: path.read_text() for path in (tmp_path / ".hydra").iterdir()} == found


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    def drawn() -> tuple[float, ...]:
        legacy = np.random.rand(), np.random.randn()  # noqa: NPY002 - the one that is saved, for users' code draws from it
        return random.random(), random.gauss(0, 1), *legacy, float(torch.rand(()))

    drawn()  # of each pair of normal numbers one is kept
    files.write(files.random_state(), tmp_path / "rng.ckpt")
    expected = drawn()
    drawn()
    files.restore_random_state(files.read(tmp_path / "rng.ckpt"))
    assert drawn() == expected


def test_a_flipped_bit_is_never_read(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    files.write({"weights": torch.arange(1000.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(files.DamagedCheckpoint, match="checksum"):
        files.read(path)
