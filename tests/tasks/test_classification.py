"""Classification on whole tiny runs: laws 1, 2, 6 and 10, what it predicts, and where it starts from."""

import csv
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab import checkpoint as files
from alignlab.callbacks.rhythm import Stopped
from tests.test_laws import SGD, _stopping, assert_equal, largest_difference, weights

Run = Callable[..., dict[str, Any]]
WORDS = {"animals": ["cat", "dog", "马", "owl"], "colours": ["red", "blue", "绿色", "grey"], "tools": ["saw", "axe 🪓"]}


def rows(count: int) -> list[dict[str, Any]]:
    """Texts of uneven length whose words tell the label."""
    names = list(WORDS)
    made = []
    for number in range(count):
        words = WORDS[names[number % 3]]
        text = " ".join(words[(number + i) % len(words)] for i in range(1 + number % 4))
        made.append({"text": text, "label": names[number % 3]})
    return made


def table(path: Path, lines: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return path


@pytest.fixture
def classified(tiny_run: Run, tmp_path: Path) -> Run:
    """classified(name, *overrides, rows=...) -> metrics of a tiny classification."""

    def run(name: str, *overrides: str, given: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        path = table(tmp_path / f"{name}.csv", given or rows(36))
        return tiny_run(name, "task=classification", f"data.train={path}", f"data.val={path}", *overrides)

    return run


def test_law_1_however_a_step_is_split(classified: Run, tmp_path: Path) -> None:
    for size, times in ((8, 1), (4, 2), (2, 4)):
        classified(
            f"{size}x{times}", *SGD, "trainer.max_steps=3", f"datamodule.batch_size={size}", "task.lm_weight=0.5",
            f"trainer.accumulate_grad_batches={times}", "trainer.gradient_clip_val=null", "task.class_weights=balanced",
        )  # fmt: skip
    classified("start", *SGD, "trainer.max_steps=1", "optim.lr=0", "task.lm_weight=0.5")
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "4x2")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-6
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


def test_law_2_stopped_and_resumed_is_not_stopped(
    classified: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("model.dropout=0.1", "task.head_dropout=0.1", "trainer.max_steps=7", "datamodule.batch_size=5",
               "trainer.accumulate_grad_batches=2", "task.lm_weight=0.3")  # fmt: skip
    classified("whole", *options)
    with monkeypatch.context() as patch:
        _stopping(patch, 4)
        with pytest.raises(Stopped):
            classified("parts", *options)
    classified("parts", *options)
    whole, parts = (files.read(tmp_path / name / "checkpoints/last.ckpt") for name in ("whole", "parts"))
    for name in ("state_dict", "optimizer_states", "rng", "position", "counters", "found"):
        if name != "position":
            assert_equal(whole[name], parts[name], name)


def test_law_6_fresh_loss_is_ln_c(classified: Run) -> None:
    values = classified("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1")
    assert values["val/loss"] == pytest.approx(math.log(3), rel=0.05)


def test_law_10_a_memorized_batch(classified: Run, tmp_path: Path) -> None:
    values = classified(
        "learned", "trainer.max_steps=60", "optim.lr=1e-2", "datamodule.batch_size=12", "eval_every=60",
        f"data.test={table(tmp_path / 'test.csv', rows(9))}", given=rows(12),
    )  # fmt: skip
    assert values["val/loss"] < 0.05
    assert values["val/accuracy"] == values["test/accuracy"] == values["val/f1/tools"] == 1
    lines = [json.loads(line) for line in (tmp_path / "learned/predictions.jsonl").open(encoding="utf-8")]
    assert [line["row"] for line in lines] == list(range(9))
    assert [line["output"] for line in lines] == [row["label"] for row in rows(9)] == [line["target"] for line in lines]
    assert [line["input"] for line in lines] == [row["text"] for row in rows(9)]
    assert sum(lines[0]["scores"].values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("label", "metrics"),
    [
        (lambda n: json.dumps([["odd", "even"][n % 2 == 0]] + ["three"] * (n % 3 == 0)), ("map", "f1_micro")),
        (lambda n: n % 5 + 0.5, ("pearson", "spearman", "rmse")),
    ],
)
def test_other_forms_of_labels_learn(label: Callable, metrics: tuple, classified: Run) -> None:
    given = [{"text": f"{number % 2} {number % 3} {number % 5}", "label": label(number)} for number in range(30)]
    monitor = f"monitor=val/{metrics[0]}"
    values = classified("form", "trainer.max_steps=60", "optim.lr=1e-2", "eval_every=60", monitor, given=given)
    assert all(f"val/{name}" in values for name in metrics)
    assert values[f"val/{metrics[0]}"] > 0.9


def test_head_is_kept_for_the_same_labels_only(
    classified: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    classified("first", "trainer.max_steps=1")
    fixed = ("optim=sgd", "optim.lr=0", "trainer.max_steps=1", f"init_from={tmp_path / 'first'}")
    classified("same", *fixed)
    assert "is kept" in caplog.text
    assert torch.equal(weights(tmp_path / "first")["head.weight"], weights(tmp_path / "same")["head.weight"])
    others = [{**row, "label": row["label"].upper()} for row in rows(36)]
    classified("others", *fixed, given=others)
    assert "is dropped: it stands for ('classes', ['animals', 'colours', 'tools']), this task's for" in caplog.text
    kept, dropped = weights(tmp_path / "first"), weights(tmp_path / "others")
    assert not torch.equal(kept["head.weight"], dropped["head.weight"])
    assert torch.equal(kept["model.embed.weight"], dropped["model.embed.weight"])


def test_pooling_ignores_padding(classified: Run, tmp_path: Path) -> None:
    from alignlab.batch import LabelBatch
    from alignlab.build import load

    classified("padded", "trainer.max_steps=1")
    task = load(str(tmp_path / "padded"))
    ids = torch.tensor([[256, 99, 97, 256, 256, 7], [256, 99, 97, 256, 1, 256]])
    lengths = torch.tensor([4, 6])

    def batch(ids: torch.Tensor, lengths: torch.Tensor) -> LabelBatch:
        return LabelBatch(ids, ids, lengths, lengths, list(range(len(ids))), {}, 0)

    both = task.predict([batch(ids, lengths)])
    alone = task.predict([batch(ids[:1, :4], lengths[:1])])
    assert both[0]["scores"] == pytest.approx(alone[0]["scores"], abs=1e-5)
