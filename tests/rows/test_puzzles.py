"""Puzzles: right answers, splits that share nothing, the same rows for every kind."""

import pytest

from alignlab.rows.puzzles import Arithmetic, Copying, Puzzles, Sorting


def test_answers_are_right() -> None:
    for row in Arithmetic(rows=200, operation="-").read("train", "prompts"):
        assert int(row["reference"]) == eval(row["prompt"].removesuffix("="))
    for row in Sorting(rows=50).read("train", "prompts"):
        assert row["reference"].split() == sorted(row["prompt"].split()[1:])
    for row in Copying(rows=50).read("train", "prompts"):
        assert row["reference"].strip("[]").replace(", ", "") == row["prompt"].removeprefix("copy ")


@pytest.mark.parametrize("puzzles", [Arithmetic(), Sorting(rows=500), Copying(rows=500)])
def test_no_prompt_is_in_two_splits(puzzles: Puzzles) -> None:
    prompts = [{row["prompt"] for row in puzzles.read(split, "prompts")} for split in ("train", "val", "test")]
    assert all(prompts)
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == puzzles.rows


def test_few_puzzles_end() -> None:
    assert sum(len(rows) for rows in Arithmetic(digits=1).puzzles.values()) == 100


def test_same_rows_for_every_kind() -> None:
    puzzles = Arithmetic(rows=30)
    kinds = [list(puzzles.read("train", kind)) for kind in ("prompts", "chat", "response")]
    for prompt, chat, response in zip(*kinds, strict=True):
        assert [turn["content"] for turn in chat["messages"]] == [prompt["prompt"], prompt["reference"]]
        assert (response["question"], response["answer"]) == (prompt["prompt"], prompt["reference"])
    with pytest.raises(ValueError, match="use task=grpo, chat or generative_qa"):
        list(puzzles.read("train", "labels"))
