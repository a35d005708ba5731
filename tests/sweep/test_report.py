"""`alignlab report`: any runs side by side."""

import math
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.errors import UserError
from alignlab.sweep import curves
from alignlab.sweep.report import best_of_tasks, gathered, over_seeds
from tests.sweep.folders import made_up

TASK = "task:\n  _target_: alignlab.tasks.pretrain.Pretraining\nseed: 0\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two rates with two seeds each, of which one run did not name its seed; and a run of another task."""
    for number, (rate, seed, loss) in enumerate([(0.1, 1, 2.0), (0.2, 0, 1.0), (0.2, 1, 1.5), (0.1, 0, 3.0)]):
        seeds = [f"seed={seed}"] if seed else []
        folder = tmp_path / f"pretrain/{number}"
        made_up(folder, f"++optim.lr={rate}", *seeds, status=None, config=TASK, best_val_loss=loss, train_seconds=1.0)
    other = made_up(tmp_path / "other", "++optim.lr=0.2", status=None, best_val_accuracy=0.9, train_seconds=2.0)
    (other / ".hydra/config.yaml").write_text("monitor: val/accuracy\ntask: {_target_: x.Classification}\nseed: 0\n")
    return tmp_path


def test_means_over_seeds(runs: Path) -> None:
    one, other = over_seeds(gathered([runs]))
    assert [result.name for result in one.runs] == ["pretrain/1", "pretrain/2"]
    assert one.mean == 1.25
    assert one.spread == pytest.approx(math.sqrt(2 * 0.25**2))  # of a sample: divided by n - 1 = 1
    assert (other.mean, len(other.runs)) == (2.5, 2)


def test_the_best_of_each_task(runs: Path) -> None:
    assert [(one.task, one.name) for one in best_of_tasks(gathered([runs]))] == [
        ("Classification", "other"), ("Pretraining", "pretrain/1"),
    ]  # fmt: skip


def test_the_verb_prints_and_writes(runs: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    log = runs / "pretrain/1/csv/metrics.csv"
    log.parent.mkdir()
    log.write_text("step,train/loss,val/loss\n1,3.0,\n1,,2.5\n2,,1.0\n", encoding="utf-8")
    main(["report", str(runs / "pretrain"), str(runs / "other"), str(runs), "--output", str(tmp_path / "out")])
    told = capsys.readouterr().out
    assert told.splitlines()[0].strip() == "5 runs"  # each once, though named twice
    assert "Over seeds" in told
    assert "Best of each task" in told
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["curves.png", "report.csv", "report.png"]
    assert curves.curve(runs / "pretrain/1", "val/loss") == [(1, 2.5), (2, 1.0)]


def test_a_folder_without_runs_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run under"):
        gathered([tmp_path])
