"""Recipes of conf/experiment on tiny rows: each composes, builds and takes two steps of every stage."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.commandline.recipe import borrowed_rate
from tests.conftest import ROOT, composed, train

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


PAIR = {"prompt": "What?", "chosen": "a good one", "rejected": "none"}
SPAN = {"context": "The number 4 is even.", "question": "Which?", "answers": [{"text": "4", "answer_start": 11}]}
TALK = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
FRESH = {  # recipes that begin from nothing
    "multi30k_en_de": {"source": "a dog", "target": "ein Hund"}, "shakespeare": {"text": "To be or not to be. " * 30},
    "shakespeare_gpu": {"text": "To be or not to be. " * 60}, "shakespeare_long": {"text": "To be or not to be. " * 60},
    "sorting": {"question": "sort 2 1", "answer": "1 2"}, "tatoeba_en_zh": {"source": "a dog", "target": "一条狗"},
}  # fmt: skip
UPON_A_RUN = {
    "customer_service": TALK, "dialogsum_smollm2": {"document": "A: Hi. B: Bye.", "summary": "They meet."},
    "few_rows": {"text": "a parcel", "label": "late"}, "pydocs_chat": TALK, "pydocs_dpo": PAIR,
    "pydocs_labels": {"text": "a tensor", "label": "torch"}, "pydocs_qa": SPAN, "reward_smollm2": PAIR,
    "squad_smollm2": SPAN,
}  # fmt: skip
STAGED = {"align_pydocs", "arithmetic_grpo"}  # the first reads documentation for minutes; tests/tasks has its stages


def test_sums_are_taught_and_then_rewarded(tmp_path: Path) -> None:
    brief = ("trainer.max_steps=2", "eval_every=2", "datamodule.batch_size=4", "optim.warmup_steps=1")
    options = (*brief, "logger=none", "callbacks=none", "test=false", "hydra.run.dir=run")
    done = train("experiment=arithmetic_grpo", "model.layers=1", "model.width=32", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "run/metrics.json").read_text(encoding="utf-8"))
    assert values["stage/0/step"] == values["stage/1/step"] == 2
    assert 0 <= values["val/solved"] <= 1


def test_every_recipe_is_run() -> None:
    recipes = {path.stem for path in (ROOT / "conf/experiment").glob("*.yaml")}
    assert recipes == {*TOPICS, *FRESH, *UPON_A_RUN, *STAGED}
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    assert recipes == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)), "docs/recipes.md lists them all"


@pytest.mark.parametrize("recipe", [*FRESH, *UPON_A_RUN])
def test_a_recipe_takes_two_steps(recipe: str, tiny_run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    from alignlab.run import execute

    row = {**FRESH, **UPON_A_RUN}[recipe]
    for split in ("train", "val"):
        lines = [json.dumps(_worded(row, number)) + "\n" for number in range(96)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")
    options = [f"experiment={recipe}", "data=files", f"data.train={tmp_path}/train.jsonl", *SMALL[4:-1], "test=false"]
    options += [f"data.val={tmp_path}/val.jsonl", "optim.warmup_steps=1"]
    if recipe in FRESH:
        options += [*SMALL[: 4 if "target" in row else 3]]  # the others read bytes
    else:
        tiny_run("base", "trainer.max_steps=1", "test=false", "model.activation=swiglu")  # with a gate, as SmolLM2
        options += [f"init_from={tmp_path}/base"]
    if recipe.endswith("_gpu") and not torch.cuda.is_available():
        options += ["trainer=cpu", "compile=false"]
    values = execute(composed(*options), tmp_path / "run", command_line=options)
    assert values["step"] == 2
    assert values["val/loss"] > 0


def _worded(row: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with a number in its first text, so that no two are the same; labels take turns."""
    first = next(iter(row))
    if first == "messages":
        return row | {"messages": [{**row["messages"][0], "content": f"Hi {number}"}, row["messages"][1]]}
    changed = row | {first: f"{row[first]} {number}"}
    return changed | ({"label": ("late", "torch")[number % 2]} if "label" in row else {})


def test_a_rate_that_was_measured_with_another_optimizer_is_told() -> None:
    recipe = "experiment=tatoeba_en_zh"
    told = "experiment=tatoeba_en_zh has optim.lr=0.004 for optim=muon; with optim=sgd give optim.lr= too"
    assert borrowed_rate([recipe, "optim=sgd"]) == told
    assert borrowed_rate([recipe, "optim=sgd", "++optim.lr=0.25"]) is None
    assert borrowed_rate([recipe, "optim=muon"]) is borrowed_rate([recipe]) is borrowed_rate(["optim=sgd"]) is None
    assert "for optim=adamw" in (borrowed_rate(["experiment=squad_smollm2", "optim=sgd"]) or "")
