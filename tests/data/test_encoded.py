"""Encoded rows: masks, counts, padding and what is cut or left out."""

import numpy as np
import pytest

from alignlab.batch import IGNORED
from alignlab.data.encoded import cut_longest, padding_share
from alignlab.data.labels import Labels, find_labels
from alignlab.data.order import Order
from alignlab.text.tokenizer import Bytes, Tokenizer
from tests.fakes import FakeRows


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Bytes().build(list, "")


ROWS = [
    {"text": "good", "label": "yes"},
    {"text": "坏消息 😀", "label": "no"},
    {"text": "x" * 6400, "label": "no"},
    {"text": "fine and long enough", "label": "yes"},
]


def test_batch_is_padded_on_the_right_and_counts_are_exact(tokenizer: Tokenizer) -> None:
    data = Labels(rows=FakeRows(train=ROWS), tokenizer=tokenizer, max_length=64)
    train = data.examples("train")
    assert train is not None
    batch = train.batch(np.array([0, 1]), train.counts(np.array([0, 1, 2])), 2)
    eos = tokenizer.eos_id
    assert batch.ids[0].tolist() == [eos, *b"good", eos, *[eos] * 10]
    assert batch.ids[1].tolist() == [eos, *"坏消息 😀".encode(), eos]
    assert batch.lengths.tolist() == [6, 16]
    assert batch.targets[0].tolist() == [*b"good", eos, *[IGNORED] * 11]  # its own end is learned, padding is not
    assert batch.tokens == 22
    assert batch.counts == {"examples": 3.0, "tokens": 5.0 + 15.0 + 63.0}
    assert batch.labels.tolist() == [1, 0]


def test_rows_beyond_the_real_ones_do_not_count(tokenizer: Tokenizer) -> None:
    train = Labels(rows=FakeRows(train=ROWS), tokenizer=tokenizer, max_length=64).examples("train")
    assert train is not None
    batch = train.batch(np.array([0, 3]), {}, 1)
    assert batch.rows == [0]
    assert batch.tokens == 6
    assert (batch.targets[1] == IGNORED).all()


def test_facts_tell_sizes_cuts_and_the_first_example(tokenizer: Tokenizer) -> None:
    facts = Labels(rows=FakeRows(train=ROWS, val=ROWS[:2]), tokenizer=tokenizer, max_length=64, batch_size=2).facts()
    assert facts["train_rows"] == 4
    assert facts["train_truncated"] == 1
    assert facts["train_tokens"] == 6 + 16 + 64 + 22
    assert facts["train_trained_share"] == round((108 - 4) / 108, 4)
    assert facts["train_sample"] == "<|endoftext|>⟦good<|endoftext|>⟧"
    assert facts["classes"] == 2
    silent = Labels(rows=FakeRows(train=ROWS), tokenizer=tokenizer, learns_text=False).facts()
    assert "train_trained_share" not in silent
    assert silent["train_sample"] == "<|endoftext|>good<|endoftext|>"


@pytest.mark.parametrize(
    ("sizes", "room", "left"),
    [((5, 5), 12, [5, 5]), ((9, 3), 8, [5, 3]), ((9, 9), 7, [4, 3]), ((1, 2, 30), 10, [1, 2, 7])],
)
def test_longest_part_is_cut_first(sizes: tuple[int, ...], room: int, left: list[int]) -> None:
    cut = cut_longest([np.arange(size) for size in sizes], room)
    assert sorted(len(part) for part in cut) == sorted(left)
    assert all(part.tolist() == list(range(len(part))) for part in cut)


def test_padding_of_like_lengths_is_little() -> None:
    random = np.random.default_rng(0)
    lengths = random.lognormal(4, 0.5, 5000).astype(int) + 2
    order = Order(examples=5000, window=16, seed=0, lengths=lengths)
    assert padding_share(order, lengths, 16) < 0.05
    assert padding_share(Order(examples=5000, window=16, seed=0), lengths, 16) > 0.3
    many = random.lognormal(3.4, 0.4, 29_000).astype(int) + 2  # large steps need a larger pool
    assert padding_share(Order(examples=29_000, window=128, seed=0, lengths=many), many, 128) < 0.05


@pytest.mark.parametrize(
    ("labels", "form", "names"),
    [
        (["b", "a", "b"], "classes", ("a", "b")),
        ([10, 9, 10], "classes", (9, 10)),
        ([1, "x"], "classes", ("1", "x")),
        ([["a"], [], ["b", "a"]], "multi_label", ("a", "b")),
        ([1.5, 2, 4], "regression", ()),
        ([1.0, 2, 1], "regression", ()),
        ([1, 2, 1.0], "regression", ()),  # in whatever order
        ([1, 2.0, "x"], "classes", ("1", "2", "x")),
    ],
)
def test_form_and_names_are_found(labels: list, form: str, names: tuple) -> None:
    found = find_labels({"label": label, "row": row} for row, label in enumerate(labels))
    assert (found.form, found.names) == (form, names)


def test_label_mistakes_are_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="only one label"):
        Labels(rows=FakeRows(train=ROWS[1:3]), tokenizer=tokenizer)
    strange = [{"text": "so so", "label": "neutral"}]
    message = r"row 0 of val has label 'neutral'; labels seen in training are \['no', 'yes'\]"
    with pytest.raises(ValueError, match=message):
        Labels(rows=FakeRows(train=ROWS, val=strange), tokenizer=tokenizer)
    with pytest.raises(ValueError, match="1 of 99 rows of val are bad, more than the 1 % that may be skipped"):
        Labels(rows=FakeRows(train=ROWS, val=[*strange, *ROWS[:1] * 98], skipped_share=0.01), tokenizer=tokenizer)
    skipped = Labels(rows=FakeRows(train=ROWS, val=[*strange, *ROWS[:1] * 99], skipped_share=0.01), tokenizer=tokenizer)
    assert skipped.dropped("val") == {0: "has label 'neutral'; labels seen in training are ['no', 'yes']"}
    with pytest.raises(ValueError, match="expected one form"):
        find_labels([{"label": ["a"], "row": 0}, {"label": "b", "row": 1}])


def test_a_pair_is_read_with_a_separator(tokenizer: Tokenizer) -> None:
    rows = [{"text_a": "ab", "text_b": "c", "label": label} for label in (0, 1)]
    train = Labels(rows=FakeRows(train=rows), tokenizer=tokenizer).examples("train")
    assert train is not None
    eos = tokenizer.eos_id
    assert train.batch(np.array([0]), {}, 1).ids.tolist() == [[eos, *b"ab\nc", eos]]
