"""Recipes of conf/experiment on tiny rows: each composes, builds and takes two steps of every stage."""

import csv
import json
from pathlib import Path

import pytest

from tests.conftest import train

TOPICS = {"ag_news": ("Sports", "World"), "thucnews": ("体育", "财经")}
SMALL = (
    "model.layers=1", "model.width=32", "model.heads=2", "tokenizer.vocab_size=300", "trainer.max_steps=2",
    "trainer.precision=32-true", "callbacks=none", "logger=none", "hydra.run.dir=run",
)  # fmt: skip


@pytest.mark.parametrize("recipe", sorted(TOPICS))
def test_stages_of_a_classifier_take_two_steps(recipe: str, tmp_path: Path) -> None:
    lines = [{"text": f"{TOPICS[recipe][n % 2]} {n} " * 8, "label": TOPICS[recipe][n % 2]} for n in range(120)]
    with open(tmp_path / "rows.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(lines)
    done = train(
        f"experiment={recipe}", "data=files", "data.train=rows.csv", "data.test=rows.csv", *SMALL, folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert values["stage/0/step"] == values["stage/1/step"] == 2
    assert "stage/0/val/bits_per_byte" in values, "the first stage is a language model"
    assert 0 <= values["test/accuracy"] <= 1
    answers = [json.loads(line) for line in (tmp_path / "run/predictions.jsonl").open(encoding="utf-8")]
    assert [answer["target"] for answer in answers] == [line["label"] for line in lines]
