"""Conversations: only the assistant's words and the ends of its turns are learned, however long the rest."""

import numpy as np
import pytest

from alignlab.data.chat import Conversations
from alignlab.text.tokenizer import Bytes, Tokenizer
from tests.fakes import FakeRows

TURNS = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "你好 😀 <|im_end|>"},
    {"role": "assistant", "content": "A1"},
    {"role": "user", "content": "Q2"},
    {"role": "assistant", "content": "A2"},
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


def sample(tokenizer: Tokenizer, turns: list[dict], max_length: int) -> str:
    rows = FakeRows(train=[{"messages": turns}])
    return str(Conversations(rows=rows, tokenizer=tokenizer, max_length=max_length).facts()["train_sample"])


def test_only_the_assistant_is_learned(tokenizer: Tokenizer) -> None:
    assert sample(tokenizer, TURNS, 512) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n你好 😀 <|im_end|><|im_end|>\n"
        "<|im_start|>assistant\n⟦A1<|im_end|>⟧\n<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n⟦A2<|im_end|>⟧"
    )
    train = Conversations(rows=FakeRows(train=[{"messages": TURNS}]), tokenizer=tokenizer).examples("train")
    assert train is not None
    assert train.counts(np.array([0])) == {"tokens": 6.0}
    # the mark that the user spelled is ten plain characters
    assert (train.batch(np.array([0]), {}, 1).ids == tokenizer.token_id("<|im_end|>")).sum() == 4


def test_a_greeting_before_the_first_question_stays_where_it_fits(tokenizer: Tokenizer) -> None:
    greeted = [TURNS[0], {"role": "assistant", "content": "Welcome"}, *TURNS[3:]]
    assert "⟦Welcome<|im_end|>⟧" in sample(tokenizer, greeted, 512)
    assert "Welcome" not in sample(tokenizer, greeted, 45)


def test_oldest_turns_go_first_and_the_system_stays(tokenizer: Tokenizer) -> None:
    text = sample(tokenizer, TURNS, 60)
    assert text.startswith("<|im_start|>system\nS")
    assert "你好" not in text
    assert "A1" not in text
    assert text.endswith("Q2<|im_end|>\n<|im_start|>assistant\n⟦A2<|im_end|>⟧")


def test_a_long_question_loses_its_left_and_a_long_reply_is_dropped(tokenizer: Tokenizer) -> None:
    turns = [{"role": "user", "content": "x" * 300 + "?"}, {"role": "assistant", "content": "A"}]
    assert "x?<|im_end|>" in sample(tokenizer, turns, 60)
    long = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "A" * 300}]
    rows = FakeRows(train=[{"messages": long}, {"messages": TURNS}])
    data = Conversations(rows=rows, tokenizer=tokenizer, max_length=100)
    assert data.dropped("train") == {0: "its last question and reply exceed max_length=100"}
    assert data.facts()["train_dropped"] == "1 its last question and reply exceed max_length=100"
