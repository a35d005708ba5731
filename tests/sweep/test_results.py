"""Tables and figures of runs, from folders that were made up."""

import csv
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from alignlab.sweep import figure, table
from alignlab.sweep.conduct import conclude, is_sweep, sweep_folder
from alignlab.sweep.results import ranked, result, results_in, swept
from tests.sweep.folders import made_up


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four jobs: 1 is the best, 0 is behind it, 2 failed, 10 was killed."""
    made_up(tmp_path / "0", "++optim.lr=0.001", "optim=adamw", best_val_loss=2.5, best_step=4)
    made_up(tmp_path / "1", "++optim.lr=0.1", "optim=adamw", best_val_loss=1.5, best_step=2)
    made_up(tmp_path / "2", "++optim.lr=5", "optim=sgd", status="failed", error="not finite, with a comma")
    made_up(tmp_path / "10", "++optim.lr=0.01", "optim=sgd", status="running", best_val_loss=0.5)
    made_up(tmp_path / "1/stages/0-pretrain", best_val_loss=0.1)
    return tmp_path


def test_the_best_comes_first_and_failures_last(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    results = results_in(sweep)
    assert [one.name for one in results] == ["0", "1", "2", "10"]
    assert [one.name for one in ranked(results)] == ["1", "0", "10", "2"]
    assert swept(results) == ["optim.lr", "optim"]
    assert conclude(sweep) == 1
    told = capsys.readouterr().err
    lines = told.splitlines()
    assert lines[0].strip() == "4 jobs, 1 failed"
    assert lines[1].split("┃")[3].strip() == "best val/loss"
    assert lines[3].split("│")[:4] == ["1   ", " 0.1      ", " adamw ", "           1.5 "]
    assert "2: not finite, with a comma" in told


def test_the_csv_has_every_run_and_every_reason(sweep: Path) -> None:
    conclude(sweep)
    with open(sweep / "sweep.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["1", "0", "10", "2"]
    assert rows[0]["optim.lr"] == "0.1"
    assert (rows[0]["metric"], float(rows[0]["best"]), rows[0]["step"]) == ("val/loss", 1.5, "2")
    assert rows[3]["error"] == "not finite, with a comma"
    assert rows[3]["best"] == ""


def test_an_accuracy_ranks_downwards(tmp_path: Path) -> None:
    for number, accuracy in enumerate((0.5, 0.9, float("nan"))):
        folder = made_up(tmp_path / str(number), f"seed={number}", best_val_accuracy=accuracy)
        (folder / ".hydra/config.yaml").write_text("monitor: val/accuracy\n", encoding="utf-8")
    assert [one.name for one in ranked(results_in(tmp_path))] == ["1", "0", "2"]


def test_a_run_that_does_not_name_an_option_has_it_from_its_configuration(tmp_path: Path) -> None:
    made_up(tmp_path / "a", "++optim.lr=0.1", "optim=sgd", best_val_loss=1.0)
    config = "optim:\n  _target_: alignlab.optim.AdamW\n  lr: 0.003\n"
    made_up(tmp_path / "deeper/b", best_val_loss=2.0, config=config)
    one, other = results_in(tmp_path)
    assert swept([one, other]) == ["optim.lr", "optim"]
    assert (other.name, other.option("optim.lr"), other.option("optim")) == ("deeper/b", "0.003", "AdamW")


def test_a_panel_for_each_option_numbers_that_span_much_on_a_logarithmic_axis(sweep: Path) -> None:
    panels = Figure().subplots(1, 3)
    results = [one for one in results_in(sweep) if one.value is not None]
    figure.panel(panels[0], "optim.lr", results)
    figure.panel(panels[1], "optim", results)
    near = made_up(sweep / "11", "++optim.lr=0.09", best_val_loss=1.0)
    figure.panel(panels[2], "optim.lr", [result(near, sweep), *results[2:]])  # 0.09 is 9 times 0.01
    assert [axes.get_xscale() for axes in panels] == ["log", "linear", "linear"]
    assert [text.get_text() for text in panels[1].get_xticklabels()] == ["adamw", "sgd"]
    (line,) = panels[1].get_lines()
    assert list(line.get_ydata()) == [1.5, 0.5]  # the best of each
    assert panels[0].get_ylabel() == "best val/loss"
    assert figure.draw(results, sweep / "x.png")
    assert (sweep / "x.png").read_bytes().startswith(b"\x89PNG")
    assert not figure.draw(results[:1], sweep / "none.png")


def test_several_metrics_are_ranked_apart(sweep: Path, capsys: pytest.CaptureFixture) -> None:
    folder = made_up(sweep / "20", "task=classification", best_val_accuracy=0.9)
    (folder / ".hydra/config.yaml").write_text("monitor: val/accuracy\n", encoding="utf-8")
    results = results_in(sweep)
    table.show(results, title="all", to_stderr=False)
    head = capsys.readouterr().out.splitlines()[1]
    assert "metric" in head
    assert [one.name for one in ranked(results)] == ["20", "1", "0", "10", "2"]


def test_what_is_a_sweep_and_where() -> None:
    assert is_sweep(["-m", "seed=1,2"])
    assert not is_sweep(["-m", "--cfg", "job"])
    assert sweep_folder(["hydra.sweep.dir=a", "seed=1,2", "++hydra.sweep.dir='b c'"]) == Path("b c")
