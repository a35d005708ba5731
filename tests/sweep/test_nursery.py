"""Jobs as forks: they train what a process does, end as one does, and end with what started them."""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from alignlab.launch import freeze
from alignlab.run import execute
from alignlab.sweep import nursery as nurseries
from alignlab.sweep import outcome
from alignlab.sweep.nursery import Forked, Nursery
from alignlab.sweep.outcome import Outcome
from alignlab.sweep.pool import Pool
from tests.conftest import composed
from tests.sweep.test_processes import options
from tests.test_laws import weights

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="jobs are forked on Linux only")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PLACE": "7"}


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


def frozen(folder: Path, *overrides: str) -> Path:
    """A folder that a job is to be trained in."""
    freeze(composed(*overrides), folder, list(overrides))
    outcome.write(folder, Outcome(status="waiting"))
    return folder


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def ended(job: Forked) -> int | None:
    until(lambda: job.poll() is not None)
    return job.poll()


def test_a_fork_trains_what_a_process_does(nursery: Nursery, tmp_path: Path, corpus: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    execute(composed(*options(corpus), "model.dropout=0.1"), tmp_path / "alone")
    torch.set_num_threads(threads)
    folders = [frozen(tmp_path / name, *options(corpus), "model.dropout=0.1") for name in "ab"]
    for job in [nursery.start(folder, ENVIRONMENT) for folder in folders]:
        assert ended(job) == 0
    for folder in folders:
        assert outcome.read(folder) == Outcome(status="done")
        assert "val/loss" in (folder / "terminal.log").read_text(encoding="utf-8")
        for name, value in weights(tmp_path / "alone").items():
            assert torch.equal(value, weights(folder)[name]), name


def test_it_tells_how_jobs_end(nursery: Nursery, tmp_path: Path, corpus: Path) -> None:
    never = frozen(tmp_path / "never", *options(corpus), "trainer.max_steps=100000", "eval_every=100000")
    called_off = nursery.start(never, ENVIRONMENT)
    called_off.send_signal(signal.SIGTERM)  # nothing was heard of it yet
    assert called_off.poll() == -signal.SIGTERM
    wrong = frozen(tmp_path / "wrong", *options(corpus), "trainer.max_steps=1")
    (wrong / ".hydra/config.yaml").write_text("[]", encoding="utf-8")  # which no job begins with
    killed = nursery.start(frozen(tmp_path / "killed", *options(corpus), "trainer.max_steps=100000"), ENVIRONMENT)
    assert ended(nursery.start(wrong, ENVIRONMENT)) == 1
    assert "AssertionError" in (wrong / "terminal.log").read_text(encoding="utf-8")
    assert killed.poll() is None
    killed.kill()
    assert ended(killed) == -signal.SIGKILL
    killed.send_signal(signal.SIGTERM)  # which reaches nobody else
    assert not (never / "metrics.json").exists()


def test_jobs_end_with_it_and_others_begin(nursery: Nursery, tmp_path: Path, corpus: Path) -> None:
    long = frozen(tmp_path / "long", *options(corpus), "trainer.max_steps=100000", "eval_every=100000")
    job = nursery.start(long, ENVIRONMENT)
    until(lambda: job.poll() is None and (told := outcome.read(long)) is not None and told.status == "running")
    assert nursery.process is not None
    os.kill(nursery.process.pid, signal.SIGKILL)
    until(lambda: nursery.process.poll() is not None)
    short = frozen(tmp_path / "short", *options(corpus), "trainer.max_steps=1")
    other = nursery.start(short, ENVIRONMENT)  # forked by another process, while the first job ends
    assert ended(job) == -signal.SIGKILL
    assert outcome.read(long) == Outcome(status="stopped")  # and can go on
    assert ended(other) == 0
    assert json.loads((short / "metrics.json").read_text())["step"] == 1


def test_one_that_cannot_begin_is_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nurseries.sys, "executable", "/bin/false")
    assert ended(Nursery().start(tmp_path, ENVIRONMENT)) == 1


def test_signals_reach_jobs_that_wait_for_imports(tmp_path: Path, corpus: Path) -> None:
    folders = [frozen(tmp_path / name, *options(corpus)) for name in "abc"]
    told: list[str] = []
    made = Nursery()
    pool = Pool(
        size=2, start=made.start, environment=lambda place: ENVIRONMENT, started=lambda folder: None,
        ended=lambda folder, code: told.append(f"{folder.name} {code}"),
    )  # fmt: skip
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    begin = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        pool.run(folders)
    assert stopped.value.code == 143
    assert sorted(told) == ["a -15", "b -15"]
    assert time.monotonic() - begin < 2.5, "nobody waits for imports"
    made.close()
