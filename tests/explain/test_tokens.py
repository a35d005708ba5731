"""Tokens stay readable: parts of characters, white space, marks, and bytes that are nothing."""

import pytest

from alignlab.explain.tokens import Piece, alone, pieces, visible
from alignlab.text.tokenizer import BPE, Bytes, Tokenizer


@pytest.fixture
def spelled() -> Tokenizer:
    return Bytes().build(list, "")


def test_a_character_of_several_tokens_stands_in_each(spelled: Tokenizer) -> None:
    ids = spelled.encode("a你🙂")
    assert pieces(spelled, ids) == [
        Piece("a"),
        *(Piece("你", f"{part}/3") for part in (1, 2, 3)),
        *(Piece("🙂", f"{part}/4") for part in (1, 2, 3, 4)),
    ]
    assert [piece.label for piece in pieces(spelled, ids)][1:3] == ["你 1/3", "你 2/3"]


def test_bytes_that_are_no_character_are_numbers(spelled: Tokenizer) -> None:
    assert alone(spelled, 0xE4) == Piece("⟨E4⟩")
    assert [piece.text for piece in pieces(spelled, [0xE4, 0x61])] == ["⟨E4⟩", "a"]
    assert alone(spelled, spelled.eos_id) == Piece("<|endoftext|>", is_special=True)
    assert alone(spelled, 9999) == Piece("#9999")


def test_tokens_that_cut_through_characters(spelled: Tokenizer) -> None:
    text = "你好，你好，你好。你们好"
    merged = BPE(vocab_size=264).build(lambda: [text * 50], "test_tokens")
    ids = merged.encode(text)
    found = pieces(merged, ids)
    assert len(ids) < len(text.encode())
    # whole characters and first parts, put together, are the text
    whole = [char for piece in found for char in piece.text if not piece.part or piece.part.startswith("1/")]
    assert "".join(whole) == text


def test_white_space_and_unseen_signs() -> None:
    assert visible(" a\n\tb") == "␣a⏎⇥b"
    assert visible("\u202eabc\u0000") == "⟨U+202E⟩abc⟨U+0000⟩"
    assert visible("\u0301") == "◌\u0301"
    assert visible("e\u0301") == "e\u0301"
    assert visible("👩\u200d🔬") == "👩\u200d🔬"
    assert visible("\u200d") == "⟨U+200D⟩"
