"""Small fakes that every test may use: a vocabulary of bytes, a corpus on disk, a run in a temporary folder."""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # workers share the cores, on which threads of several processes wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
STARTUP = str(Path(__file__).with_name("startup"))  # of the processes that tests start
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (STARTUP, os.environ.get("PYTHONPATH"))))

ROOT = Path(__file__).parent.parent
TIMEOUT = 300  # seconds of a run
TINY = (
    "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "tokenizer=bytes",
    "callbacks=none", "logger=none", "trainer.precision=32-true", "+trainer.enable_progress_bar=false",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sweeps first, which take longest: so that no worker ends alone with one."""
    items.sort(key=lambda item: item.path.parent.name != "sweep")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Derived files of the tests go to a folder of their own."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["ALIGNLAB_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 20 kB of learnable text."""
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    lines = [f"The number {n} is {'even' if n % 2 == 0 else 'odd'} and its square is {n * n}.\n" for n in range(450)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def on_device(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The command line with the trainer that ALIGNLAB_TEST_TRAINER names, such as gpu, where it asks for no other."""
    trainer = os.environ.get("ALIGNLAB_TEST_TRAINER")
    if trainer is None or any(one.startswith("trainer=") for one in overrides):
        return overrides
    return (f"trainer={trainer}", *overrides)


def composed(*overrides: str) -> DictConfig:
    """The configuration of a command line, composed as train.py does."""
    from alignlab.commandline import prepare

    overrides = on_device(overrides)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", prepare(list(overrides)))


@pytest.fixture
def tiny_run(tmp_path: Path, corpus: Path) -> Callable[..., dict[str, Any]]:
    """Trains a tiny GPT on the corpus in a folder of its own: tiny_run("name", *overrides) -> its metrics."""
    from alignlab.run import execute

    def run(name: str, *overrides: str) -> dict[str, Any]:
        config = composed("data=files", f"data.train={corpus}", *TINY, *overrides)
        return execute(config, tmp_path / name, command_line=list(overrides))

    return run


class Warm:
    """Runs train.py in forks of one process that has its imports done (warm.py)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, arguments: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            order = {"arguments": arguments, "folder": str(folder), "environment": environment}
            self.process.stdin.write(json.dumps(order | {"out": out.name, "err": err.name}) + "\n")
            self.process.stdin.flush()
            pid = int(self.process.stdout.readline())
            timer = threading.Timer(TIMEOUT, os.kill, (pid, signal.SIGKILL))
            timer.start()
            code = int(self.process.stdout.readline())
            timer.cancel()
            return subprocess.CompletedProcess(["train.py", *arguments], code, out.read(), err.read())


@functools.cache
def warm() -> Warm:
    """The one of this process; it ends with it, as its input does."""
    return Warm()


def train(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`python train.py ARGUMENTS` in `folder`."""
    arguments = on_device(arguments)
    everything = {**os.environ, **(environment or {})}
    if hasattr(os, "fork"):
        return warm().run(list(arguments), folder, everything)
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *arguments],
        cwd=folder, env=everything, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
