"""Tasks that write a response, on whole tiny runs: laws 1, 4, 6 and 10, the prefix mask, and what is written."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import alignlab
from alignlab.batch import ResponseBatch
from alignlab.build import load
from alignlab.tasks import generation
from alignlab.tasks.generation import Answer
from tests.test_laws import SGD, largest_difference, weights

Run = Callable[..., dict[str, Any]]
PAIRS = [{"source": f"{n}", "target": "一二三四五六"[: 1 + n % 6]} for n in range(12)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def written(tiny_run: Run, tmp_path: Path) -> Run:
    def run(name: str, *overrides: str, task: str = "translation", rows: list | None = None) -> dict[str, Any]:
        path = jsonl(tmp_path / f"{name}.jsonl", rows or PAIRS)
        return tiny_run(name, f"task={task}", f"data.train={path}", f"data.val={path}", *overrides)

    return run


def test_law_1_however_a_step_is_split(written: Run, tmp_path: Path) -> None:
    fixed = (*SGD, "trainer.gradient_clip_val=null", "datamodule.generate_rows=0", "task.label_smoothing=0.1")
    for size, times in ((8, 1), (2, 4)):
        written(
            f"{size}x{times}", *fixed, "trainer.max_steps=3", f"datamodule.batch_size={size}", "monitor=val/loss",
            f"trainer.accumulate_grad_batches={times}", "test=false",
        )  # fmt: skip
    assert largest_difference(weights(tmp_path / "8x1"), weights(tmp_path / "2x4")) < 1e-6


def test_law_6_fresh_loss_is_ln_v(written: Run) -> None:
    values = written("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1")
    assert values["val/loss"] == pytest.approx(math.log(260), rel=0.02)
    assert values["val/copy_bleu"] == 0


@pytest.mark.parametrize(
    ("task", "rows", "metric", "best"),
    [
        ("translation", PAIRS, "bleu", 100),
        ("summarization", [{"document": row["source"], "summary": [row["target"], "x"]} for row in PAIRS], "rouge1", 1),
        ("chat", [{"instruction": row["source"], "output": row["target"]} for row in PAIRS], "ended", 1),
        ("generative_qa", [{"question": row["source"], "answer": row["target"]} for row in PAIRS], "em", 100),
    ],
)
def test_law_10_a_memorized_batch(
    task: str, rows: list[dict[str, Any]], metric: str, best: float, written: Run, tmp_path: Path
) -> None:
    values = written(
        "learned", "trainer.max_steps=150", "optim.lr=1e-2", "eval_every=150", "task.label_smoothing=0",
        "datamodule.batch_size=12", "model.context=64", f"monitor=val/{metric}",
        f"data.test={jsonl(tmp_path / 'test.jsonl', rows[:3])}", "task.max_new_tokens=24",
        task=task, rows=rows,
    )  # fmt: skip
    assert values["val/loss"] < 0.05
    assert values[f"val/{metric}"] == pytest.approx(best)
    lines = [json.loads(line) for line in (tmp_path / "learned/predictions.jsonl").open(encoding="utf-8")]
    assert [line["output"] for line in lines] == [row["target"] for row in PAIRS[:3]]
    inputs = ("source", "document", "question", "instruction")
    asked = {name: value for name, value in rows[4].items() if name in inputs}
    answers = alignlab.load(str(tmp_path / "learned")).predict([asked])
    assert answers[0]["output"] == PAIRS[4]["target"]
    assert answers[0]["target"] is None


def test_prefix_mask_lets_the_prompt_see_itself_and_no_more(written: Run, tmp_path: Path) -> None:
    written("prefix", "trainer.max_steps=1", "datamodule.generate_rows=0", "monitor=val/loss")
    task = load(str(tmp_path / "prefix"))

    def hidden(ids: list[int]) -> torch.Tensor:
        tensor = torch.tensor([ids])
        batch = ResponseBatch(tensor, tensor, torch.tensor([6]), torch.tensor([3]), [None], [None], [0], {}, 6)
        with torch.no_grad():
            return task._hidden(batch)[0]  # type: ignore[operator]

    start = hidden([5, 6, 7, 8, 9, 10])
    within, beyond = hidden([5, 6, 99, 8, 9, 10]), hidden([5, 6, 7, 8, 9, 99])
    assert not torch.allclose(start[0], within[0])  # the first token of the prompt sees its last
    assert torch.equal(start[:5], beyond[:5])  # the response stays causal


def test_beams_write_the_test_and_validations_are_greedy(written: Run, tmp_path: Path, monkeypatch: Any) -> None:
    asked: list[tuple[int, float | None, int]] = []
    real = generation.generate_all

    def watched(model: Any, prompts: Any, sampling: Any, **rest: Any) -> Any:
        asked.append((sampling.beams, sampling.seconds, len(prompts)))
        return real(model, prompts, sampling, **rest)

    monkeypatch.setattr(generation, "generate_all", watched)
    test = jsonl(tmp_path / "test.jsonl", PAIRS[:3])
    written(
        "beams", "trainer.max_steps=1", "task.beams=3", "task.seconds=30", "task.max_new_tokens=4",
        "datamodule.generate_rows=5", f"data.test={test}",
    )  # fmt: skip
    assert asked == [(1, 30.0, 5), (3, None, 3)]


def test_the_test_is_measured_on_the_best_weights(written: Run, tmp_path: Path) -> None:
    # other answers to the same questions: the better the training rows are learned, the worse these go
    others = [row | {"target": PAIRS[place - 5]["target"]} for place, row in enumerate(PAIRS)]
    path = jsonl(tmp_path / "others.jsonl", others)
    values = written(
        "best", "trainer.max_steps=150", "eval_every=15", "optim.lr=1e-2", "task.label_smoothing=0",
        "monitor=val/loss", "datamodule.generate_rows=0", f"data.val={path}", f"data.test={path}",
        "task.max_new_tokens=1",
    )  # fmt: skip
    assert values["best/val/loss"] < values["val/loss"] - 0.1
    assert values["test/loss"] == pytest.approx(values["best/val/loss"], rel=1e-5)


def test_law_9_chinese_texts_equal_to_their_references_score_full_marks(written: Run, tmp_path: Path) -> None:
    written("zh", "trainer.max_steps=1", "datamodule.generate_rows=0", "monitor=val/loss")
    task: Any = load(str(tmp_path / "zh"))
    texts = ["汤姆告诉玛丽他有很多钱。", "你能告诉我这是什么吗？"]
    assert task.languages == ["latin", "zh"]  # as the rows told
    assert task.compare(texts, [[text] for text in texts]) == {"bleu": pytest.approx(100), "chrf": pytest.approx(100)}
    assert task.compare(texts[::-1], [[text] for text in texts])["bleu"] < 20
    answers = [Answer(row, "x", text, [text], True) for row, text in enumerate(texts)]
    assert task.baseline(answers) == {"copy_bleu": pytest.approx(100)}


def test_texts_that_time_cuts_off_are_told_and_not_counted(
    written: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="alignlab"):
        values = written("late", "trainer.max_steps=1", "task.seconds=1e-9", "monitor=val/loss")
    assert "12 of 12 texts were not finished in 0 s, and are not counted" in caplog.text
    assert "val/bleu" not in values


def test_a_run_outlives_validations_without_a_text_in_time(
    written: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="alignlab"):
        values = written("slow", "trainer.max_steps=2", "eval_every=1", "task.seconds=1e-9", "patience=5")
    assert "this validation has no val/bleu: raise task.seconds, or lower datamodule.generate_rows" in caplog.text
    assert values["step"] == 2
    assert math.isnan(values["best/val/bleu"])
    assert (tmp_path / "slow/checkpoints/best.ckpt").is_file()


def test_a_validation_without_a_text_is_not_better_than_one_with_texts(
    written: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, calls = generation.ResponseTask._answers, []

    def once(self: Any, *arguments: Any) -> list[Answer]:
        calls.append(self.trainer.global_step)
        return answer(self, *arguments) if len(calls) == 1 else []

    monkeypatch.setattr(generation.ResponseTask, "_answers", once)
    values = written("once", "trainer.max_steps=3", "eval_every=1", "test=false", "task.max_new_tokens=4")
    assert calls == [1, 2, 3]
    assert values["best/step"] == 1
    assert values["best/val/bleu"] >= 0
    assert math.isnan(values["val/bleu"])
