"""A trained run answers rows, and is measured on other files: as `alignlab predict` and `alignlab test` do."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import alignlab
from alignlab.answers import measure
from alignlab.cli import main
from alignlab.errors import UserError

Run = Callable[..., dict[str, Any]]
ROWS = [{"body": f"{'sun' if n % 2 else 'rain'} {n}", "label": n % 2} for n in range(20)]


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Path:
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["body", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    path = tmp_path / "rows.csv"
    values = tiny_run(
        "run", "task=classification", f"data.train={path}", f"data.val={path}", f"data.test={path}",
        "data.columns.text=body", "trainer.max_steps=30", "optim.lr=1e-2",
    )  # fmt: skip
    assert values["test/accuracy"] == 1
    return tmp_path / "run"


def test_rows_are_answered_in_order_and_bad_ones_say_why(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = alignlab.load(str(run))
    given = ["rain 4", {"body": "sun 5", "label": 1}, {"text": " "}, {"text": "雨 🌧 rain"}, {"nothing": 1}]
    answers = model.predict(given)
    assert [answer["row"] for answer in answers] == list(range(5))
    assert [answer.get("output") for answer in answers[:2]] == [0, 1]
    assert answers[1]["target"] == 1
    assert answers[2]["error"] == "text is empty; expected text"
    assert "text is missing" in answers[4]["error"]
    assert model.predict([]) == []
    assert len(model.predict("sun 5")) == 1
    assert "is 5; expected a dict" in model.predict(["sun", 5])[1]["error"]
    (tmp_path / "lines.txt").write_text("sun 1\nrain 2\n", encoding="utf-8")
    main(["predict", str(run), "--input", str(tmp_path / "lines.txt"), "--output", str(tmp_path / "out.jsonl")])
    assert "2 rows" in capsys.readouterr().out
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert measure(str(run), [])["test/accuracy"] == 1
    with pytest.raises(ValueError, match="takes no optim"):
        measure(str(run), ["optim=sgd"])


def test_a_checkpoint_cannot_make_what_nobody_trusts(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["config"]["task"]["class_weights"] = {"_target_": "os.getcwd"}
    torch.save(checkpoint, best)
    with pytest.raises(UserError, match=r"best.ckpt|run: .*os.getcwd, which is neither"):
        alignlab.load(str(run)).predict(["sun 1"])
    monkeypatch.setenv("ALIGNLAB_TRUST", "os.getcwd")
    assert "output" in alignlab.load(str(run)).predict(["sun 1"])[0]
