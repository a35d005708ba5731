"""Texts that no tokenizer and no mask expects: every task trains, tests and answers on them, as train.py is called."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from alignlab.errors import UserError
from alignlab.run import execute
from tests.conftest import TINY, composed

ODD = (
    "中文的新闻：今天天气很好。",
    "שלום עולם, how are you?",
    "مرحبا بالعالم، كيف الحال؟",
    "emoji 😀🚀👩‍👩‍👧‍👦 and a flag 🇳🇿",
    "zero​width‮turned",
    "long " + "words and more " * 800,  # about 100 times the context
)


def _row(task: str, number: int) -> dict[str, Any]:
    text, other = f"{ODD[number % len(ODD)]} {number}", ODD[(number + 1) % 4]
    match task:
        case "classification":
            return {"text": text, "label": ("甲", "תשובה")[number % 2]}
        case "translation":
            return {"source": text, "target": other}
        case "summarization":
            return {"document": text, "summary": other}
        case "chat":
            return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": other}]}
    answer = {"text": text.split()[0], "answer_start": 0}
    return {"context": text, "question": "哪里? שאלה", "answers": [answer]}


def _file(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _run(folder: Path, task: str, *overrides: str) -> dict[str, Any]:
    own = (f"task={task}", "data=files", *TINY, "model.context=128", "trainer.max_steps=2", "eval_every=2", *overrides)
    return execute(composed(*own), folder, command_line=list(own))


@pytest.fixture
def odd_run(tmp_path: Path) -> Any:
    """Trains a task on odd rows: odd_run(task, *overrides) -> the run folder."""

    def run(task: str, *overrides: str) -> Path:
        name = _file(tmp_path, f"{task}.jsonl", [_row(task, number) for number in range(24)])
        folder = tmp_path / f"run-of-{task}"
        _run(folder, task, f"data.train={name}", f"data.val={name}", f"data.test={name}", *overrides)
        return folder

    return run


@pytest.mark.parametrize(
    "task", ["classification", "extractive_qa", "generative_qa", "translation", "summarization", "chat"]
)
def test_any_script_and_any_length(task: str, odd_run: Any) -> None:
    lines = (odd_run(task) / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["row"] for row in rows] == list(range(24))
    for number, row in enumerate(rows):
        assert ODD[number % len(ODD)] in json.dumps(row["input"], ensure_ascii=False)  # as it was given
        assert "output" in row or "max_length" in row["error"]
    assert sum("output" in row for row in rows) >= 8


def test_the_head_of_another_task_is_dropped_and_told(odd_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    classifier = odd_run("classification")
    odd_run("extractive_qa", f"init_from={classifier}")
    assert "is dropped: it is another task's" in caplog.text
    odd_run("translation", f"init_from={classifier}")
    assert "is dropped: this task has none" in caplog.text


@pytest.mark.parametrize(
    ("task", "rows", "told"),
    [
        ("classification", [{"text": f"t{n}", "label": "only"} for n in range(9)], "only one label, ['only']"),
        ("translation", [{"source": "a", "target": ""}], "row 0 of .*: target is empty"),
        ("translation", [{"source": " ", "target": "b"}], "row 0 of .*: source is empty"),
        ("chat", [{"messages": [{"role": "user", "content": "hi"}]}], "row 0 of .*: .*assistant"),
        ("extractive_qa", [{"context": "a b", "question": "c", "answers": ["z"]}], "row 0 of .*"),
    ],
)
def test_rows_that_teach_nothing_are_refused(task: str, rows: list, told: str, tmp_path: Path) -> None:
    name = _file(tmp_path, "rows.jsonl", rows)
    with pytest.raises((UserError, ValueError), match=told.replace("[", r"\[")):
        _run(tmp_path / "run", task, f"data.train={name}", f"data.val={name}")


def test_too_few_rows_to_hold_any_out_name_the_remedy(tmp_path: Path) -> None:
    name = _file(tmp_path, "few.jsonl", [{"source": "a", "target": "b"}])
    with pytest.raises((UserError, ValueError), match=r"no row to use.*data\.val=FILE, or raise data\.holdout"):
        _run(tmp_path / "run", "translation", f"data.train={name}")
