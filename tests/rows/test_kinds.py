"""Canonical rows: every alternative shape, and every complaint by field."""

import pytest

from alignlab.rows.kinds import BadRow, canonical, group_key


def made(kind, raw, **options):
    return canonical(raw, kind, columns=options.pop("columns", {}), **options)


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        ("text", {"text": "", "other": 1}, {"text": ""}),
        ("labels", {"text": "a", "label": "3"}, {"text": "a", "label": 3}),
        ("labels", {"text": "a", "label": "good"}, {"text": "a", "label": "good"}),
        ("labels", {"text": "a", "label": "-0.5"}, {"text": "a", "label": -0.5}),
        ("labels", {"text": "a", "label": "007"}, {"text": "a", "label": "007"}),
        ("labels", {"text": "a", "label": '["x", "y"]'}, {"text": "a", "label": ["x", "y"]}),
        ("labels", {"text_a": "a", "text_b": "b", "label": 1}, {"text_a": "a", "text_b": "b", "label": 1}),
        ("response", {"source": "a", "target": ["b", "c"]}, {"source": "a", "target": ["b", "c"]}),
        ("response", {"document": "a", "summary": "b", "id": 7}, {"document": "a", "summary": "b"}),
        ("response", {"question": "a", "answer": "b"}, {"question": "a", "answer": "b"}),
        (
            "response",
            {"context": "c", "question": "a", "answers": [{"text": "b", "answer_start": 0}]},
            {"context": "c", "question": "a", "answer": ["b"]},
        ),
        ("pairs", {"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "chosen": "c", "rejected": "r"}),
        ("prompts", {"prompt": "p", "reference": 4}, {"prompt": "p", "reference": "4"}),
        ("prompts", {"prompt": "p"}, {"prompt": "p"}),
    ],
)
def test_shapes(kind, raw, expected):
    assert made(kind, raw) == expected


@pytest.mark.parametrize(
    "answers",
    [
        [{"text": "中国", "answer_start": 1}],
        {"text": ["中国"], "answer_start": [1]},
        '[{"text": "中国", "answer_start": 1}]',
    ],
)
def test_span_answers_in_every_form(answers):
    row = made("span", {"context": "在中国。", "question": "q", "answers": answers})
    assert row["answers"] == [{"text": "中国", "answer_start": 1}]


def test_chat_always_becomes_messages():
    turns = [{"role": "user", "content": "i\n\nx"}, {"role": "assistant", "content": "o"}]
    assert made("chat", {"instruction": "i", "input": "x", "output": "o"}) == {"messages": turns}
    assert made("chat", {"messages": turns}) == {"messages": turns}
    shared = [{"from": "human", "value": "i\n\nx"}, {"from": "gpt", "value": "o"}]
    assert made("chat", {"messages": shared}) == {"messages": turns}
    assert made("chat", {"instruction": "i", "input": ""}, targets=False) == {
        "messages": [{"role": "user", "content": "i"}]
    }


def test_columns_are_mapped_and_targets_may_miss():
    assert made("response", {"en": "a", "zh": "b"}, columns={"source": "en", "target": "zh"}) == {
        "source": "a",
        "target": "b",
    }
    assert made("labels", {"text": "a"}, targets=False) == {"text": "a"}


SPAN = {"context": "abcd", "question": "q"}


@pytest.mark.parametrize(
    ("kind", "raw", "complaint"),
    [
        ("labels", {"text": "a"}, r"label is missing; the row's columns are \['text'\]"),
        ("labels", {"text": " ", "label": 1}, "text is empty; expected text"),
        ("labels", {"text": 3, "label": 1}, "text is a number; expected text"),
        ("labels", {"text": "a", "label": float("nan")}, "label is nan; expected a finite number"),
        ("labels", {"text": "a", "label": {}}, "label is an object; expected text"),
        ("text", {"text": "a\ud800"}, r"text has half a character \(lone surrogate\) at position 1"),
        ("span", SPAN | {"answers": [{"text": "cd", "answer_start": 1}]}, "does not stand at character 1 .* but at 2"),
        ("span", SPAN | {"answers": [{"text": "xx", "answer_start": 1}]}, "nor anywhere else"),
        ("span", SPAN | {"answers": [{"text": "d", "answer_start": -1}]}, "does not stand at character -1"),
        ("span", SPAN | {"answers": [{"text": "d"}]}, "has answer_start None"),
        ("span", SPAN | {"answers": "abcd"}, "answers is text that is no JSON"),
        ("span", SPAN | {"answers": [{"text": "", "answer_start": 0}]}, r"answers\[0\] is empty"),
        ("response", {"source": "a", "target": []}, "target is an empty list"),
        ("response", {"source": "a", "target": ["b", ""]}, r"target\[1\] is empty"),
        ("chat", {"messages": [{"role": "user", "content": "a"}]}, "no words of the assistant"),
        ("chat", {"messages": [{"role": "boss", "content": "a"}]}, r"messages\[0\].role is 'boss'"),
        ("chat", {"messages": []}, "messages is a list; expected"),
        ("pairs", {"prompt": "p", "chosen": "c"}, "rejected is missing"),
    ],
)
def test_complaints(kind, raw, complaint):
    with pytest.raises(BadRow, match=complaint):
        made(kind, raw)


def test_missing_mapped_column_names_the_mapping():
    with pytest.raises(BadRow, match=r"source is missing \(data.columns.source=en\); the row's columns are \['zh'\]"):
        made("response", {"zh": "b"}, columns={"source": "en", "target": "zh"})


def test_group_is_what_rows_share():
    assert group_key({"question": "q", "context": "c"}) == "c"
    assert group_key({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}) == "u"


def test_an_answer_that_is_misplaced_beside_a_right_one_is_a_reference():
    right, wrong = {"text": "d", "answer_start": 3}, {"text": "xx", "answer_start": -1}
    answers = made("span", SPAN | {"answers": [wrong, right]})["answers"]
    assert answers == [{"text": "xx", "answer_start": None}, right]
    with pytest.raises(BadRow, match=r"answers\[0\] 'xx' does not stand"):
        made("span", SPAN | {"answers": [wrong, wrong]})


def test_pairs_are_of_two_answers_that_differ():
    same = {"prompt": "p", "chosen": "c", "rejected": "c"}
    with pytest.raises(BadRow, match="rejected is the same as chosen"):
        made("pairs", same)
    with pytest.raises(BadRow, match="chosen is empty"):
        made("pairs", same | {"chosen": " "})
    turns = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}]
    assert made("pairs", same | {"prompt": turns[:1], "chosen": turns}) == same | {"chosen": "good"}
