"""Reward models on whole tiny runs: laws 1, 2, 3 and 6, what they learn and do not learn, and what they refuse."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignlab.errors import UserError
from tests.test_laws import SGD, assert_equal, largest_difference, losses, stopped_and_resumed, weights

Run = Callable[..., dict[str, Any]]
WORDS = ("red", "blue", "green", "wood", "stone", "paper")


def pairs(count: int, *, shuffled: bool = False, seed: int = 0) -> list[dict[str, Any]]:
    """Answers of random words, the better of which has the word `good` in a random place."""
    random_ = random.Random(seed)
    rows = []
    for number in range(count):
        better, worse = ([random_.choice(WORDS) for _ in range(random_.randint(1, 4))] for _ in range(2))
        better.insert(random_.randint(0, len(better)), "good")
        worse.insert(random_.randint(0, len(worse)), "fine")
        answers = [" ".join(better), " ".join(worse)]
        if shuffled and random_.random() < 0.5:
            answers.reverse()
        rows.append({"prompt": f"{number}?", "chosen": answers[0], "rejected": answers[1]})
    return rows


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def rewarded(tiny_run: Run, tmp_path: Path) -> Run:
    """rewarded(name, *overrides, given=rows, val=rows) -> metrics."""

    def run(name: str, *overrides: str, given: list | None = None, val: list | None = None) -> dict[str, Any]:
        train = written(tmp_path / f"{name}.jsonl", given or pairs(40))
        held = written(tmp_path / f"{name}-val.jsonl", val or pairs(16, seed=1))
        return tiny_run(
            name, "task=reward", f"data.train={train}", f"data.val={held}", "model.context=96", *overrides
        )  # fmt: skip

    return run


def test_law_6_every_pair_starts_as_a_tie(rewarded: Run, tmp_path: Path) -> None:
    values = rewarded("fresh", "optim=sgd", "optim.lr=0", "trainer.max_steps=1", "logger=csv")
    assert float(losses(tmp_path / "fresh")[1]) == pytest.approx(math.log(2), abs=1e-6)
    assert values["val/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert values["val/accuracy"] == 0.5
    assert values["val/margin"] == 0


LEARNS = ("trainer.max_steps=200", "trainer.max_epochs=null", "optim.lr=3e-3", "eval_every=200",
          "datamodule.batch_size=32")  # fmt: skip


def test_a_marker_word_is_learned(rewarded: Run) -> None:
    values = rewarded("marker", *LEARNS, given=pairs(1600), val=pairs(300, seed=1))
    assert values["val/accuracy"] >= 0.99
    assert values["val/margin"] > 2
    assert values["val/calibration_error"] < 0.05
    assert 0.3 < values["val/length_baseline"] < 0.7


def test_law_10_a_memorized_batch(rewarded: Run) -> None:
    rows = pairs(8, shuffled=True)
    options = ("trainer.max_steps=60", "trainer.max_epochs=null", "optim.lr=5e-3", "eval_every=60")
    assert rewarded("memorized", *options, given=rows, val=rows)["val/loss"] < 0.05


def test_shuffled_labels_teach_nothing(rewarded: Run) -> None:
    given, val = pairs(1600, shuffled=True), pairs(600, shuffled=True, seed=1)
    values = rewarded("shuffled", *LEARNS, given=given, val=val)
    assert values["val/accuracy"] == pytest.approx(0.5, abs=0.05)


def test_law_1_however_a_step_is_split(rewarded: Run, tmp_path: Path) -> None:
    rows = [{**row, "margin": number % 3 / 2} for number, row in enumerate(pairs(40))]
    for size, times in ((8, 1), (2, 4)):
        rewarded(
            f"{size}x{times}", *SGD, "trainer.max_steps=3", f"datamodule.batch_size={size}", "task.center_weight=0.1",
            f"trainer.accumulate_grad_batches={times}", "trainer.gradient_clip_val=null",
            "trainer.precision=64-true", given=rows,
        )  # fmt: skip
    rewarded("start", *SGD, "trainer.max_steps=1", "optim.lr=0", "trainer.precision=64-true")
    whole = weights(tmp_path / "8x1")
    assert largest_difference(whole, weights(tmp_path / "2x4")) < 1e-12
    assert largest_difference(whole, weights(tmp_path / "start")) > 1e-3


def test_law_2_stopped_and_resumed_is_not_stopped(
    rewarded: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("model.dropout=0.1", "trainer.max_steps=7", "datamodule.batch_size=5", "task.center_weight=0.1")
    whole, parts = stopped_and_resumed(lambda folder: rewarded(folder, *options), tmp_path, monkeypatch, 4)
    for name in ("state_dict", "optimizer_states", "rng", "counters"):
        assert_equal(whole[name], parts[name], name)


def test_answers_are_scored_and_exported(rewarded: Run, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from alignlab import load
    from alignlab.data.pairs import PairEncoder
    from alignlab.export import export

    rewarded(
        "scored", "trainer.max_steps=40", "optim.lr=3e-3", f"data.test={written(tmp_path / 'test.jsonl', pairs(5))}"
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "scored/predictions.jsonl").open(encoding="utf-8")]
    assert [line["row"] for line in lines] == list(range(5))
    assert all(line["scores"]["chosen"] > line["scores"]["rejected"] for line in lines)
    model = load(str(tmp_path / "scored"))
    rows = [{"prompt": "1?", "chosen": "red good"}, {"prompt": "1?", "completion": "red fine stone"}, {"prompt": "1?"}]
    told = model.predict(rows)
    assert told[0]["output"] > told[1]["output"]
    assert "missing" in told[2]["error"]
    [alone, both] = model.predict([rows[0], {**rows[0], "rejected": "red fine stone"}])  # one batch
    assert set(alone["scores"]) == {"chosen"}
    assert both["scores"] == pytest.approx({"chosen": told[0]["output"], "rejected": told[1]["output"]}, abs=1e-4)
    export(str(tmp_path / "scored"), tmp_path / "hf")
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "hf").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    encoder = PairEncoder(tokenizer=model.tokenizer, max_length=96, is_chat=True)
    answers = [row.get("chosen") or row["completion"] for row in rows[:2]]
    for answer, ours in zip(answers, told, strict=False):
        turns = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": answer}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        row = {"prompt": "1?", "chosen": answer}
        parts = model.tokenizer.encode_batch(encoder.texts(row))
        assert ids[0].tolist() == encoder.example(row, parts).ids.tolist()
        with torch.no_grad():
            batch = torch.cat([ids, torch.full((1, 7), theirs.config.pad_token_id)], dim=1)
            assert float(theirs(batch).logits) == pytest.approx(ours["output"], abs=1e-4)


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "is the same as chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": " "}, "rejected is empty"),
        ({"prompt": "a", "completion": "b", "desirable": True}, "prompt, completion, desirable, row"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}, "margin is 'much'"),
    ],
)
def test_wrong_pairs_are_told(wrong: dict, complaint: str, rewarded: Run) -> None:
    with pytest.raises(ValueError, match=complaint):
        rewarded("wrong", "trainer.max_steps=1", given=[*pairs(20), wrong])


def test_answers_judged_one_by_one_are_no_pairs(rewarded: Run) -> None:
    rows = [{"prompt": "a", "completion": f"{n}", "desirable": n % 2} for n in range(8)]
    with pytest.raises(UserError, match="task=reward compares two answers"):
        rewarded("single", "trainer.max_steps=1", given=rows, val=rows)
