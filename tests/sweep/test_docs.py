"""Every command of docs/sweeps.md, run in its order on a tiny model."""

import re
import shlex
from pathlib import Path

import pytest

from alignlab.cli import main
from tests.conftest import ROOT, train
from tests.sweep.test_processes import options, rows_of
from tests.test_readme import lines_of

# no GPU and no Slurm in a test; few trials
HERE = {"sweep.gpus=[0,1]": None, "sweep.gpus=1": None, "sweep.partition=gpu": None, "trainer=gpu": None,
        "sweep.jobs=8": None, "sweep.threads=8": "sweep.cluster=local", "sweep.trials=20": "sweep.trials=2",
        "sweep.trials=40": "sweep.trials=3"}  # fmt: skip


def test_every_command_works(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture) -> None:
    small = (*options(corpus), "trainer.max_steps=2", "eval_every=1")
    sweep = tmp_path
    seen: list[int] = []
    known: set[tuple[str, ...]] = set()
    for line in lines_of(ROOT / "docs/sweeps.md"):
        words = shlex.split(line)
        if words[:2] == ["alignlab", "report"]:
            folders = [str(tmp_path / "runs") if one == "runs" else str(sweep) for one in words[2:]]
            main(["report", *folders])
            assert "at step" in capsys.readouterr().out
        if words[0] != "python":
            assert words[0] in ("pip", "alignlab", "tensorboard")
            continue
        arguments = [told for one in words[2:] if (told := HERE.get(one, one)) is not None]
        if tuple(arguments) in known:  # on a GPU it would be another
            continue
        known.add(tuple(arguments))
        goes_on = any(one.startswith("resume=") for one in arguments)
        arguments = [one.replace("SWEEP", str(sweep)) for one in arguments] + ([] if goes_on else [*small])
        run = train(*arguments, folder=tmp_path, environment={"OMP_NUM_THREADS": "1"})
        assert run.returncode == 0, f"{line}\n{run.stderr}"
        (told,) = re.findall(r"^(\S+)/sweep\.csv", run.stderr, re.MULTILINE)
        assert not goes_on or (tmp_path / told) == sweep
        sweep = tmp_path / told
        assert {row["status"] for row in rows_of(sweep)} <= {"done", "pruned"}
        seen.append(len(rows_of(sweep)))
    assert seen == [4, 2, 2, 2, 2, 2, 2, 2, 3, 2, 2]
