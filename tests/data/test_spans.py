"""Span rows as windows: exact characters, exact places, what is cut, and one row's several examples."""

import numpy as np
import pytest

from alignlab.data.spans import Spans, window_starts
from alignlab.text.tokenizer import BPE, Bytes, Tokenizer
from tests.fakes import FakeRows

TEXTS = [
    "Plain words, and a number: 1889.",
    "埃菲尔铁塔建于1889年,高330米。",
    "flags 🇫🇷🗼 and café, naïve e\u0301",
    "مرحبا بالعالم 123 שלום",
]


def row(context: str, answer: str | None, question: str = "which one?") -> dict:
    answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
    return {"context": context, "question": question, "answers": answers}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


@pytest.fixture(scope="module", params=["bytes", "bpe", "normalizing"])
def any_tokenizer(request: pytest.FixtureRequest, cache: object) -> Tokenizer:
    if request.param == "bytes":
        return Bytes().build(list, "")
    if request.param == "bpe":
        return BPE(vocab_size=300).build(lambda: iter(TEXTS * 3), "spans")
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], show_progress=False))
    return Tokenizer(core=core, eos="</s>")


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_are_those_of_characters(any_tokenizer: Tokenizer, text: str) -> None:
    ids = any_tokenizer.encode_batch([text])[0]
    offsets = any_tokenizer.offsets(text, ids)
    assert offsets.shape == (len(ids), 2)
    assert offsets[0, 0] == 0
    assert offsets[-1, 1] >= len(text) - text.endswith("\u0301")  # NFC merges it into the letter before
    assert (np.diff(offsets, axis=0) >= 0).all()
    expected = any_tokenizer._core.encode(text, add_special_tokens=False).offsets
    assert offsets.tolist() == [list(pair) for pair in expected]


@pytest.mark.parametrize(
    ("context", "answer"),
    [(TEXTS[0], "number"), (TEXTS[1], "1889年"), (TEXTS[1], "塔"), (TEXTS[2], "🗼"), (TEXTS[3], "بالعالم")],
)
def test_learned_tokens_hold_the_answer(any_tokenizer: Tokenizer, context: str, answer: str) -> None:
    rows = FakeRows(train=[row(context, answer)], val=[row(context, answer)])
    data = Spans(rows=rows, tokenizer=any_tokenizer, max_length=200)
    examples = data.examples("val")
    assert examples is not None
    batch = examples.batch(np.array([0]), examples.counts(np.array([0])), 1)
    passage, first = batch.passages[0], int(batch.firsts[0])
    spans = passage.spans[int(batch.starts[0]) - first : int(batch.ends[0]) - first + 1]
    told = context[spans[0, 0] : spans[-1, 1]]
    assert answer in told
    if any_tokenizer.vocab_size >= 256:  # the normalizing one makes a token of a whole sentence
        assert len(told) <= len(answer) + 4  # a token may begin or end beside the answer, never a further token
    assert answer not in context[spans[0, 1] : spans[-1, 1]] or len(spans) == 1
    assert passage.references == [answer]


def test_sample_marks_the_answer_or_the_end(tokenizer: Tokenizer) -> None:
    rows = [row("red 绿 blue", "绿"), row("red green", None)]
    data = Spans(rows=FakeRows(train=rows), tokenizer=tokenizer)
    assert data.facts()["train_sample"] == "<|endoftext|>which one?\nred ⟦绿⟧ blue<|endoftext|>"
    assert data.found() == {"answers": {"language": "latin", "longest": 3, "unanswerable": True}}
    without = Spans(rows=FakeRows(train=rows[1:]), tokenizer=tokenizer)
    assert without.facts()["train_sample"].endswith("green⟦<|endoftext|>⟧")


def test_an_answer_of_no_place_is_not_learned(tokenizer: Tokenizer) -> None:
    asked = row(TEXTS[0], "number")
    nowhere = {"text": "a figure", "answer_start": None}
    data = Spans(
        rows=FakeRows(train=[asked], val=[{**asked, "answers": [nowhere, *asked["answers"]]}]), tokenizer=tokenizer,
        max_length=64,
    )  # fmt: skip
    learned, measured = (data.examples(split).batch(np.array([0]), {}, 1) for split in ("train", "val"))
    assert (learned.starts.tolist(), learned.ends.tolist()) == (measured.starts.tolist(), measured.ends.tolist())
    assert measured.passages[0].references == ["a figure", "number"]


def test_a_context_100_times_too_long_is_read_in_windows(tokenizer: Tokenizer) -> None:
    context = "".join(f"{number:05d} " for number in range(1100))  # 6,600 tokens
    rows = [row(context, "00700"), row("short one", "one")]
    data = Spans(rows=FakeRows(train=rows, val=rows), tokenizer=tokenizer, max_length=64, stride=30)
    examples = data.examples("val")
    assert examples is not None
    batch = examples.batch(np.arange(len(examples)), {}, len(examples))
    assert data.facts()["val_rows"] == 2
    assert data.facts()["val_windows"] == len(examples) == len(batch.rows) == len(window_starts(6600, 51, 30)) + 1
    assert set(batch.rows) == {0, 1}
    assert max(batch.lengths.tolist()) == 64
    read: set[int] = set()
    found = 0
    for place, passage in enumerate(batch.passages[:-1]):
        question = tokenizer.decode(batch.ids[place, 1 : batch.firsts[place]])
        assert question == "which one?\n"
        read |= {position for a, b in passage.spans.tolist() for position in range(a, b)}
        first, last = (int(x[place] - batch.firsts[place]) for x in (batch.starts, batch.ends))
        if batch.starts[place] < batch.lengths[place] - 1:
            assert context[passage.spans[first, 0] : passage.spans[last, 1]] == "00700"
            found += 1
        else:  # the answer is not in this window as a whole
            assert "00700" not in context[passage.spans[0, 0] : passage.spans[-1, 1]]
            assert batch.ends[place] == batch.lengths[place] - 1
    assert read == set(range(len(context)))
    assert found >= 1


def test_an_absurd_question_gives_way_and_is_counted(tokenizer: Tokenizer) -> None:
    rows = [row("a short context " * 3, "short", question="why " * 500), row("b c", "c")]
    data = Spans(rows=FakeRows(train=rows), tokenizer=tokenizer, max_length=64)
    assert data.facts()["train_truncated"] == 1
    train = data.examples("train")
    assert train is not None
    assert train.lengths.max() == 64


def test_rows_without_answers_are_asked(tokenizer: Tokenizer) -> None:
    asked = {"context": "x y", "question": "?"}
    facts = {"language": "latin", "longest": 3, "unanswerable": False}
    data = Spans(rows=FakeRows(test=[asked]), tokenizer=tokenizer, answers=facts, targets=False)
    assert [tuple(one) for one in data.asked("test")] == [(0, {"question": "?", "context": "x y"}, None)]
    several = row("x y x", "x") | {"answers": [{"text": "x", "answer_start": 0}, {"text": "y", "answer_start": 2}]}
    data = Spans(rows=FakeRows(test=[several, row("x", None)]), tokenizer=tokenizer, answers=facts)
    assert [one.target for one in data.asked("test")] == [["x", "y"], ""]


def test_language_and_small_windows_are_told(tokenizer: Tokenizer) -> None:
    data = Spans(rows=FakeRows(train=[row(TEXTS[1], "1889年")]), tokenizer=tokenizer)
    assert data.found()["answers"]["language"] == "zh"
    with pytest.raises(ValueError, match=r"datamodule.max_length is 8; expected at least 16"):
        Spans(rows=FakeRows(train=[row("a", "a")]), tokenizer=tokenizer, max_length=8)
