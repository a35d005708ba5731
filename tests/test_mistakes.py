"""Typical mistakes, typed as a user types them: each ends with at most three lines that name the remedy.

Two run as processes of their own; the others through the same `main` in this one, for importing torch takes seconds.
"""

import csv
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from alignlab.cli import main
from tests.conftest import ROOT, TINY, train

FILES = "data=files data.train="
LABELS = f"task=classification {FILES}"
# what is typed after `python train.py`, and what must stand in the message
MISTAKES = {
    "a mistyped group": ("modle=nano", "did you mean model=nano?"),
    "a mistyped choice": ("optim=adamww", "did you mean adamw?"),
    "a mistyped key": ("optim.lrr=1e-3", "did you mean lr?"),
    "a value of another type": ("optim.lr=abc", "optim.lr is 'abc'; expected a number"),
    "a number that is no whole one": ("trainer.max_steps=1e3", "write trainer.max_steps=1000"),
    "dashes": ("--optim.lr=1e-3", "without dashes: optim.lr=1e-3"),
    "several values without -m": ("optim.lr=1e-3,1e-4", "add -m"),
    "a file for a choice": ("data=messages.csv", "data=files data.train=messages.csv"),
    "a file for a share of the documentation": ("data.test=messages.csv", "data=files data.test=messages.csv"),
    "a missing file": (f"{FILES}massages.csv", "did you mean messages.csv?"),
    "no file": ("data=files trainer=debug", "set data.train=PATH"),
    "an empty file": (f"{LABELS}empty.csv", "empty.csv is empty; expected at least one row"),
    "a binary file": (f"{LABELS}picture.csv", "is a binary file (byte 0 at 8); expected text"),
    "a mistyped column": (f"{LABELS}messages.csv data.columns.label=labl", "data.columns.label=label"),
    "a column of another task": (f"task=chat {FILES}messages.csv", "data.columns.messages=NAME"),
    "an unknown label": (f"{LABELS}messages.csv data.val=other.csv", "seen in training are ['bill', 'praise']"),
    "a GPU that four bits need": (f"{FILES}book.txt tuning=qlora", "use tuning=lora"),
    "a GPU that is not there": (f"{FILES}book.txt trainer=gpu", "use trainer=cpu"),
    "an average of sharded weights": (
        f"{FILES}book.txt trainer=fsdp trainer.devices=2 trainer.accelerator=cpu ema=0.9",
        "expected ema=null",
    ),
    "both resume and init_from": ("resume=RUN init_from=RUN", "give one of them"),
    "another batch size when going on": ("resume=RUN datamodule.batch_size=4", "batch_size was 16, is 4"),
    "a run that is not there": ("init_from=RUM", "did you mean RUN?"),
    "a table for a run": (f"{LABELS}messages.csv init_from=messages.csv", "expected a run folder"),
    "another size than init_from": (f"{LABELS}messages.csv init_from=RUN model=small", "leave model out"),
    "rows of another task": ("task=classification data=arithmetic", "use task=grpo, chat or generative_qa"),
    "a context longer than the data": (f"{FILES}book.txt datamodule.max_length=100000", "max_length lower"),
    "a metric that is not measured": (f"{LABELS}messages.csv monitor=val/acc {' '.join(TINY)}", "val/accuracy"),
    "a folder that holds a run": (f"{FILES}book.txt hydra.run.dir=RUN", "resume=RUN"),
}
VERBS = {
    "a mistyped verb": ("prdict RUN --input new.csv", "did you mean predict?"),
    "a missing option": ("predict RUN", "--input"),
    "a run that answers no rows": ("predict RUN --input messages.csv", "alignlab generate"),
    "a mistyped run": ("generate RUM hello", "did you mean RUN?"),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with a run, texts, and files that are right and wrong."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "book.txt").write_bytes(corpus.read_bytes())
    (folder / "empty.csv").touch()
    (folder / "picture.csv").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0" * 9)
    rows = {"messages": [(f"hello {n}", ("bill", "praise")[n % 2]) for n in range(40)], "other": [("hi", "nonsense")]}
    for name, lines in rows.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *lines])
    done = train("data=files", "data.train=book.txt", *TINY, "trainer=debug", "hydra.run.dir=RUN",
                 folder=folder)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


def require_short(code: object, told: str, remedy: str) -> None:
    """At most three lines, the remedy among them, and no traceback."""
    start = told.find("error: ")
    assert start >= 0, told
    lines = told[start:].splitlines()
    assert code not in (0, None)
    assert len(lines) <= 3, told
    assert "Traceback" not in told
    assert remedy in " ".join(lines)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train(
    mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    typed, remedy = MISTAKES[mistake]
    if mistake.startswith("a GPU") and _has_gpu():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(place)
    own = [] if "resume=" in typed or "hydra.run.dir=" in typed else [f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(typed), *own])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    told = capsys.readouterr().err
    require_short(ended.value.code, told, remedy)
    if "monitor=" not in typed:  # that one is only found by a validation, after the run has told about itself
        assert len(told.splitlines()) <= 3


@pytest.mark.parametrize("mistake", VERBS)
def test_verbs(mistake: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    typed, remedy = VERBS[mistake]
    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(typed))
    require_short(ended.value.code, capsys.readouterr().err, remedy)


@pytest.mark.parametrize("mistake", ["a mistyped key", "an empty file"])
def test_as_a_process(mistake: str, place: Path) -> None:
    typed, remedy = MISTAKES[mistake]
    done = train(*shlex.split(typed), folder=place)
    require_short(done.returncode, done.stderr, remedy)


@pytest.mark.parametrize(
    ("package", "typed", "remedy"),
    [
        ("optuna", f"-m sweep=optuna {FILES}book.txt sweep.trials=1", "optuna"),
        ("huggingface_hub", f"{LABELS}messages.csv init_from=hub:some/model", "pip install huggingface-hub"),
    ],
)
def test_a_package_that_is_not_installed(
    package: str, typed: str, remedy: str, place: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.chdir(place)
    key = "hydra.sweep.dir" if "-m" in typed else "hydra.run.dir"
    monkeypatch.setattr(sys, "argv", ["train.py", *shlex.split(typed), f"{key}={tmp_path / 'run'}"])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    told = capsys.readouterr().err
    require_short(ended.value.code, told, remedy)
    assert "pip install" in told


def test_a_file_of_another_task_is_not_answered(place: Path) -> None:
    from alignlab.rows.given import Given

    given = Given(rows=[{"question": "late?"}], kind="labels", columns={})
    assert "data.columns.text=NAME" in given.errors[0]


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()
