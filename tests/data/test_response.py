"""Response rows: what is learned, what is cut, what is dropped, and the languages that are found."""

import numpy as np
import pytest

from alignlab.batch import IGNORED
from alignlab.data.response import Responses
from alignlab.text.scripts import language_of
from alignlab.text.template import Template
from alignlab.text.tokenizer import Bytes, Tokenizer
from tests.fakes import FakeRows

QA = "{context}\nQuestion: {question}\nAnswer:\n"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


def test_response_and_its_end_are_learned_and_nothing_else(tokenizer: Tokenizer) -> None:
    rows = [{"source": "ab", "target": "ab"}, {"source": "好", "target": ["é", "e"]}]
    train = Responses(rows=FakeRows(train=rows), tokenizer=tokenizer, template="{source}\n").examples("train")
    assert train is not None
    batch = train.batch(np.array([0, 1]), train.counts(np.array([0, 1])), 2)
    eos = tokenizer.eos_id
    assert batch.ids[0].tolist() == [eos, *b"ab\nab", eos]
    assert batch.ids[1].tolist() == [eos, *"好\né".encode()]
    assert batch.targets.tolist() == [[*[IGNORED] * 3, *b"ab", eos, IGNORED], [*[IGNORED] * 4, *"é".encode(), eos]]
    assert batch.prompts.tolist() == [4, 5]
    assert batch.counts == {"tokens": 6.0}
    assert batch.references == [None, None]


def test_context_is_cut_on_its_left_and_the_question_stays(tokenizer: Tokenizer) -> None:
    row = {"context": "c" * 500 + "END", "question": "who?", "answer": "me"}
    data = Responses(rows=FakeRows(train=[row]), tokenizer=tokenizer, template=QA, max_length=50)
    train = data.examples("train")
    assert train is not None
    ids = train.batch(np.array([0]), {}, 1).ids[0].tolist()
    assert len(ids) == 50
    assert tokenizer.decode(ids).endswith("cEND\nQuestion: who?\nAnswer:\nme")
    facts = data.facts()
    assert facts["train_truncated"] == 1
    assert facts["train_sample"].endswith("Answer:\n⟦me<|endoftext|>⟧")


def test_response_that_does_not_fit_is_dropped_in_training_only(tokenizer: Tokenizer) -> None:
    rows = [{"source": "a", "target": "b"}, {"source": "a", "target": "b" * 99}]
    data = Responses(rows=FakeRows(train=rows, val=rows), tokenizer=tokenizer, template="{source}\n", max_length=20)
    assert data.dropped("train") == {1: "response and question alone exceed max_length=20"}
    assert data.dropped("val") == {}
    val = data.examples("val")
    assert val is not None
    batch = val.batch(np.array([1]), {}, 1)
    assert batch.ids.shape[1] <= 20
    assert batch.references == [["b" * 99]]


def test_only_so_many_validation_rows_are_generated(tokenizer: Tokenizer) -> None:
    rows = [{"source": str(n), "target": str(n)} for n in range(30)]
    data = Responses(rows=FakeRows(train=rows, val=rows, test=rows), tokenizer=tokenizer, template="{source}\n",
                     generate_rows=7)  # fmt: skip
    kept = {split: data.splits[split].kept for split in ("val", "test")}
    assert [sum(one is not None for one in kept[split]) for split in ("val", "test")] == [7, 30]  # type: ignore[union-attr]


def test_a_line_without_its_field_is_left_out() -> None:
    assert Template(QA).render({"question": "why?"}) == ("Question: ", "why?", "\nAnswer:\n")
    literal = {"context": "{question}", "question": "q"}  # braces of a user are no field
    assert Template(QA).render(literal) == ("", "{question}", "\nQuestion: q\nAnswer:\n")
    with pytest.raises(ValueError, match="this task's template needs context, question"):
        Template(QA).render({"source": "a"})
    with pytest.raises(ValueError, match="expected a text with a field"):
        Template("Translate:")


@pytest.mark.parametrize(
    ("text", "language"),
    [("Hello there", "latin"), ("你好, world 世界", "zh"), ("これは日本語です", "ja"), ("안녕", "ko"), ("Привет", "ru"),
     ("שלום", "he"), ("مرحبا", "ar"), ("123 😀", "latin")],
)  # fmt: skip
def test_language_is_told_by_script(text: str, language: str) -> None:
    assert language_of([text]) == language


def test_languages_of_rows_are_declared_or_found(tokenizer: Tokenizer) -> None:
    rows = [{"source": "Hello", "target": "你好"}]
    found = Responses(rows=FakeRows(train=rows), tokenizer=tokenizer, template="{source}\n").found()
    assert found == {"languages": ["latin", "zh"]}
    declared = FakeRows(train=rows, languages=("en", "auto"))
    assert Responses(rows=declared, tokenizer=tokenizer, template="{source}\n").found() == {"languages": ["en", "zh"]}


def test_languages_go_by_code_and_are_doubted_where_the_script_is_another(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"source": "Hello", "target": "你好"}]
    tagged = FakeRows(train=rows, languages=("en-GB", "zh_Hans"))
    assert Responses(rows=tagged, tokenizer=tokenizer, template="{source}\n").languages == ["en", "zh"]
    assert not caplog.text
    Responses(rows=FakeRows(train=rows, languages=("zh", "en")), tokenizer=tokenizer, template="{source}\n")
    assert "data.source_language is zh, but the texts look like latin" in caplog.text
    assert "data.target_language is en, but the texts look like zh" in caplog.text
    with pytest.raises(ValueError, match="'klingon' is no language; expected auto, or a code"):
        Responses(rows=FakeRows(train=rows, languages=("en", "klingon")), tokenizer=tokenizer, template="{source}\n")


def test_a_row_of_another_shape_is_one_bad_row(tokenizer: Tokenizer) -> None:
    good = {"question": "why?", "context": "c", "answer": "a"}
    rows = FakeRows(train=[good] * 100 + [{"source": "s", "target": "t"}], skipped_share=0.01)
    data = Responses(rows=rows, tokenizer=tokenizer, template="{context} {question}\n")
    assert list(data.dropped("train")) == [100]
    assert "needs context, question" in data.dropped("train")[100]
    given = FakeRows(train=[good, {"source": "s", "target": "t"}], skipped_share=1.0)  # rows that are to be answered
    assert list(Responses(rows=given, tokenizer=tokenizer, template="{context} {question}\n").dropped("train")) == [1]
