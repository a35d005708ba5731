"""Small fakes that every test may use: a vocabulary of bytes, a corpus on disk, a run in a temporary folder."""

import os
import subprocess
import sys
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

ROOT = Path(__file__).parent.parent
TINY = (
    "model.layers=2", "model.width=32", "model.heads=2", "model.context=32", "tokenizer=bytes",
    "callbacks=none", "logger=none", "trainer.precision=32-true", "+trainer.enable_progress_bar=false",
)  # fmt: skip


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


def train(*arguments: str, folder: Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """`python train.py ARGUMENTS` in `folder`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *on_device(arguments)],
        cwd=folder, env={**os.environ, **(environment or {})}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
