"""The verb on runs of every kind of head: it agrees with what the run says and measures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import alignlab
from alignlab.cli import main

Run = Callable[..., dict[str, Any]]
LONG = "One two three, 你好 🙂. " * 30


@pytest.fixture
def explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """explained(run, *arguments) -> the JSON; `said` of it is what was printed."""

    def run(name: str, *arguments: str) -> dict[str, Any]:
        capsys.readouterr()
        out = tmp_path / "page.html"
        main(["explain", str(tmp_path / name), "--out", str(out), "--json", "--device", "cpu", *arguments])
        assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
        plain = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
        return plain | {"said": capsys.readouterr().out}

    return run


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return path


def is_complete(plain: dict[str, Any]) -> bool:
    told = plain["attribution"]
    difference = told["value"] - told["baseline"]
    return abs(sum(told["tokens"]) - difference) <= 0.01 * abs(difference)


def test_a_language_model(tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]) -> None:
    tiny_run("run", "trainer.max_steps=5", "optim.lr=1e-2")
    text = "The number 12 is"
    plain = explained("run", "--text", text, "--top-k", "2")
    [score] = alignlab.load(str(tmp_path / "run")).score([text])
    assert plain["mean_loss"] == pytest.approx(score["nats"] / score["tokens"], rel=1e-5)
    assert plain["attribution"]["of"].startswith("next token")
    best = plain["next"][-1][0]["probability"]
    assert plain["attribution"]["value"] == pytest.approx(math.log(best), abs=1e-3)
    assert is_complete(plain)
    other = explained("run", "--text", text, "--target", "x")
    assert other["attribution"]["of"] == "next token x"
    assert other["attribution"]["value"] <= plain["attribution"]["value"]
    assert "attribution" not in explained("run", "--text", text, "--target", "none")


def test_a_long_text_is_cut_and_says_so(
    tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]
) -> None:
    tiny_run("run", "trainer.max_steps=1")
    plain = explained("run", "--text", LONG, "--target", "none")
    assert len(plain["tokens"]) == 32
    assert plain["cut_tokens"] == len(LONG.encode()) - 31
    assert "is cut" in plain["said"]
    assert f"{plain['cut_tokens']} of its tokens are left out" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("options", [(), ("task.pooling=mean", "task.prefix_mask=true")])
def test_a_class(
    options: tuple[str, ...], tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]
) -> None:
    rows = [{"text": f"{word} {n}", "label": word[0]} for n in range(6) for word in ("ant", "bee", "cat")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    data = f"data.train={path}", f"data.val={path}"
    tiny_run("run", "task=classification", *data, "trainer.max_steps=20", "optim.lr=1e-2", *options)
    plain = explained("run", "--text", "bee or cat")
    [told] = alignlab.load(str(tmp_path / "run")).predict(["bee or cat"])
    assert plain["answer"]["text"] == told["output"]
    assert plain["answer"]["shares"] == pytest.approx(told["scores"], abs=1e-5)
    share = told["scores"][told["output"]]
    assert plain["attribution"]["value"] == pytest.approx(math.log(share / (1 - share)), abs=1e-2)
    assert plain["attribution"]["of"] == f"class {told['output']}"
    assert is_complete(plain)
    assert len(plain["tokens"]) == len(plain["attribution"]["tokens"]) == 12
    assert plain["attribution"]["tokens"][0] == plain["attribution"]["tokens"][-1] == 0
    sees_ahead = len(plain["attention"][0][0][0]) > 1
    assert sees_ahead == bool(options)


def test_ngrams_are_not_part_of_what_is_explained(
    tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]
) -> None:
    rows = [{"text": f"{word} {n}", "label": word[0]} for n in range(6) for word in ("ant", "bee", "cat")]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    tiny_run(
        "run", "task=classification", f"data.train={path}", f"data.val={path}", "trainer.max_steps=20", "optim.lr=1e-2",
        "task.ngrams=2",
    )  # fmt: skip
    plain = explained("run", "--text", "bee or cat")
    answer = plain["answer"]["text"]
    assert plain["attribution"]["of"] == f"class {answer}, by the model without the n-grams beside it"
    assert is_complete(plain)


def test_a_response_with_a_prefix(tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]) -> None:
    rows = [{"source": f"say {n}", "target": f"it is {n}"} for n in range(12)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    one = jsonl(tmp_path / "one.jsonl", rows[:1])
    values = tiny_run(
        "run", "task=translation", f"data.train={path}", f"data.val={one}", "trainer.max_steps=3", "model.context=96",
        "task.prefix_mask=true", "task.max_new_tokens=2",
    )  # fmt: skip
    plain = explained("run", "--row", json.dumps(rows[0]))
    assert plain["mean_loss"] == pytest.approx(values["best/val/loss"], rel=1e-3)
    counted = [one for one in plain["following"] if one is not None and one["counted"]]
    assert "".join(one["text"] for one in counted) == "it is 0<|endoftext|>"
    asked = explained("run", "--text", "say 0", "--target", "i")
    assert asked["following"] == [None] * len(asked["tokens"])
    assert is_complete(asked)


def test_a_span(tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]) -> None:
    rows = [
        {"context": f"A cat is {n}.", "question": "What?", "answers": [{"text": f"{n}", "answer_start": 9}]}
        for n in range(10, 22)
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    data = f"data.train={path}", f"data.val={path}"
    tiny_run("run", "task=extractive_qa", *data, "trainer.max_steps=10", "optim.lr=1e-2")
    row = {"context": "A cat is 17.", "question": "What?"}
    plain = explained("run", "--row", json.dumps(row))
    [told] = alignlab.load(str(tmp_path / "run")).predict([row])
    assert plain["attribution"]["value"] == pytest.approx(told["scores"]["log_odds"], abs=1e-3)
    assert plain["answer"]["text"].startswith(told["output"] or "no answer")
    assert is_complete(plain)
    other = explained("run", "--row", json.dumps(row), "--target", "cat")
    assert other["attribution"]["of"] == "answer cat"
    assert other["attribution"]["value"] <= plain["attribution"]["value"] + 1e-5


def test_a_reward(tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]) -> None:
    rows = [{"prompt": f"add {n}", "chosen": f"yes {n}", "rejected": "no"} for n in range(12)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    data = f"data.train={path}", f"data.val={path}"
    tiny_run("run", "task=reward", *data, "trainer.max_steps=10", "optim.lr=1e-2", "model.context=64")
    plain = explained("run", "--row", json.dumps(rows[0]))
    [told] = alignlab.load(str(tmp_path / "run")).predict([rows[0]])
    assert plain["attribution"]["value"] == pytest.approx(told["scores"]["chosen"], abs=1e-4)
    assert is_complete(plain)
    other = explained("run", "--row", json.dumps(rows[0]), "--target", "rejected")
    assert other["attribution"]["value"] == pytest.approx(told["scores"]["rejected"], abs=1e-4)


def test_mistakes_are_told(tiny_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run("run", "trainer.max_steps=1")
    rows = [{"text": f"{n}", "label": "ab"[n % 2]} for n in range(8)]
    path = jsonl(tmp_path / "r.jsonl", rows)
    tiny_run("classes", "task=classification", f"data.train={path}", f"data.val={path}", "trainer.max_steps=1")
    for run, arguments, told in (
        ("run", ["--text", "  "], "--text is empty"),
        ("run", ["--text", "x", "--max-tokens", "1"], "--max-tokens is 1"),
        ("run", ["--row", '{"text": "x"}'], "reads plain text and no rows"),
        ("run", ["--text", "x\udcff"], "half a character"),
        ("classes", ["--text", "x", "--target", "aa"], "no such class; did you mean a?"),
        ("classes", ["--row", '{"txt": "x"}'], "is missing"),
        ("classes", ["--row", "{"], "--row is no JSON"),
        ("run", ["--text", "x", "--out", str(tmp_path / "nowhere" / "x.html")], "cannot be written"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(["explain", str(tmp_path / run), "--out", str(tmp_path / "x.html"), *arguments])
        error = capsys.readouterr().err
        assert stopped.value.code == 2, arguments
        assert told in error, error
        assert len(error.splitlines()) <= 3


def test_an_adapter_is_explained_merged(
    tiny_run: Run, tmp_path: Path, explained: Callable[..., dict[str, Any]]
) -> None:
    tiny_run("base", "trainer.max_steps=1")
    tiny_run("run", f"init_from={tmp_path / 'base'}", "tuning=lora", "trainer.max_steps=4", "optim.lr=1e-2")
    plain = explained("run", "--text", "The number")
    model = alignlab.load(str(tmp_path / "run"))
    assert plain["mean_loss"] == pytest.approx(model.score("The number")[0]["nats"] / 10, rel=1e-5)
    with torch.no_grad():
        logits = model.gpt.unembed(model.gpt(torch.tensor([[model.tokenizer.eos_id, *b"The number"]])))
    assert plain["next"][-1][0]["id"] == int(logits[0, -1].argmax())
