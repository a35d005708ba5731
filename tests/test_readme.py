"""Law 11 for words: every command of the README composes, and those that train do so, shortened by trainer=debug."""

import csv
import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from alignlab.cli import parser
from alignlab.commandline import check, trusted
from alignlab.folders import resumed
from alignlab.run import execute
from tests.conftest import ROOT, TINY, composed

SMALL = ("trainer=debug", *TINY[:4], "callbacks=none", "logger=none", "datamodule.batch_size=2")


def commands(start: str) -> list[list[str]]:
    """The arguments of every line of code in the README that begins with `start`, comments left out."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = {line.split(" #")[0].strip() for block in blocks for line in block.splitlines()}
    return sorted(shlex.split(line)[len(start.split()) :] for line in lines if line.startswith(start))


TRAIN = [arguments for arguments in commands("python train.py") if "--help" not in arguments]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with what the README's commands name: RUN, texts, messages."""
    from alignlab.launch import freeze

    folder = tmp_path_factory.mktemp("readme")
    config = composed("data=files", f"data.train={corpus}", *TINY, "trainer=debug")
    execute(config, folder / "RUN")
    freeze(config, folder / "RUN", [])
    for name in ("book.txt", "mine.txt"):
        (folder / name).write_bytes(corpus.read_bytes())
    with open(folder / "messages.csv", "w", newline="", encoding="utf-8") as file:
        rows = [{"text": f"{'late' if n % 2 else 'thanks'} {n}", "label": ("bill", "praise")[n % 2]} for n in range(40)]
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def test_there_are_commands() -> None:
    assert len(TRAIN) >= 6
    assert len(commands("alignlab")) >= 3


@pytest.mark.parametrize("arguments", TRAIN, ids=" ".join)
def test_training_commands(arguments: list[str], place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    if (run := resumed(arguments)) is not None:
        assert run[1] == Path("RUN")
        return
    swept = [argument.split("=", 1) for argument in arguments if argument != "-m"]
    choices = [[f"{name}={value}" for value in values.split(",")] for name, values in swept]
    for number, overrides in enumerate(product(*choices)):
        check(composed(*overrides), trusted(overrides))
        if number or any(name in " ".join(overrides) for name in ("trainer=ddp", "trainer=fsdp", "model=")):
            continue  # one of a sweep is enough; large models and several ranks have tests of their own
        small = [
            name for name in SMALL if not (name.startswith(("model.", "tokenizer")) and "init_from=RUN" in overrides)
        ]
        if not any(override.startswith("data=") for override in overrides) and "task=" not in " ".join(overrides):
            small += ["data=files", "data.train=book.txt"]  # the embedded corpus takes a while to read
        config = composed(*small, *(one for one in overrides if not one.startswith("trainer.max_")))
        values = execute(config, place / f"run-{abs(hash(tuple(overrides)))}", command_line=list(overrides))
        assert values["step"] == 2


@pytest.mark.parametrize("arguments", commands("alignlab"), ids=" ".join)
def test_verbs_parse(arguments: list[str]) -> None:
    assert callable(parser().parse_args(arguments).act)
