"""Tokenizers: exact round trips, specials as literal text, streams of whole characters, Hugging Face folders."""

import json
import pickle
import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from alignlab.text.tokenizer import BPE, SPECIALS, Bytes, File, Tokenizer

SAMPLES = [
    "",
    "Plain words, 1234 digits; it's O'Neil's.\r\n\ttabs  and   spaces \n\n",
    "中文文本，没有空格。繁體字",
    "👩‍👩‍👧‍👦 🇩🇪 é é",
    "שלום עולם مرحبا",
    "\x00\x01\x7f\u200b\ufeff\u2028\U0010ffff",
    "<|endoftext|><|im_start|>user<|im_end|> ▁ Ġ",
]


def corpus():
    yield "the cat sat on the mat, the cat sat. <|endoftext|> " * 20
    yield "日本語と中文 mixed with 2024 numbers. " * 20


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, tmp_path, monkeypatch) -> Tokenizer:
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    return Bytes().build(corpus, "k") if request.param == "bytes" else BPE(vocab_size=400).build(corpus, "k")


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip_is_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.encode_batch([text, "x"])[0].tolist() == ids
    assert tokenizer.byte_counts[ids].sum() == len(text.encode())
    assert not set(ids) & set(tokenizer.specials.values())


def test_lowercase_reads_titles_as_the_words_they_hold(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    small, plain = (BPE(vocab_size=400, lowercase=lowercase).build(corpus, "k") for lowercase in (True, False))
    ids = np.array(small.encode("The CAT \u00c9\u4e2d"))
    assert ids.tolist() == small.encode("the cat \u00e9\u4e2d")
    assert small.decode(ids) == "the cat \u00e9\u4e2d"
    assert Tokenizer.from_state(small.state()).encode("CAT") == small.encode("cat")
    assert small.offsets("The CAT", ids := np.array(small.encode("The CAT")))[-1].tolist()[1] == 7
    assert plain.encode("CAT") != plain.encode("cat")  # the cache holds both


def test_round_trip_of_random_characters(tokenizer):
    draw = random.Random(0)
    points = [p for p in (draw.randrange(0x110000) for _ in range(3000)) if not 0xD800 <= p < 0xE000]
    text = "".join(map(chr, points))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", SAMPLES)
def test_stream_gives_whole_characters_that_join_to_the_text(tokenizer, text):
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in tokenizer.encode(text)]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) + stream.finish() == text


def test_stream_of_broken_bytes_equals_decode():
    tokenizer = Bytes().build(corpus, "k")
    for ids in ([0xE4, 0xB8], [0xFF, 65, 0xE4, 66, 0xF0, 0x9F, 67], [0xE4, tokenizer.eos_id, 66]):
        stream = tokenizer.stream()
        assert "".join(map(stream.push, ids)) + stream.finish() == tokenizer.decode(ids)


def test_stream_of_a_tokenizer_that_is_not_byte_level():
    vocabulary = {"▁the": 0, "▁cat": 1, "s": 2, "</s>": 3, "<unk>": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(core=core, eos="</s>")
    ids = [0, 1, 2, *(5 + b for b in "中".encode()), 1, 3]
    stream = tokenizer.stream()
    pieces = [stream.push(number) for number in ids]
    assert pieces == ["the", " cat", "s", "", "", "中", " cat", ""]
    assert tokenizer.byte_counts[[0, 2, 5, 3]].tolist() == [4, 1, 1, 0]


def test_bytes_are_their_own_ids():
    tokenizer = Bytes().build(corpus, "k")
    assert tokenizer.encode("aé") == [97, 0xC3, 0xA9]
    assert tokenizer.vocab_size == 260
    assert [tokenizer.token_id(name) for name in SPECIALS] == [256, 257, 258, 259]
    # the fast path says what the library says
    assert tokenizer._core.encode("aé中\x00", add_special_tokens=False).ids == list("aé中\x00".encode())


def test_specials_only_where_asked(tokenizer):
    assert tokenizer.encode("<|im_end|>", specials=True) == [tokenizer.token_id("<|im_end|>")]
    assert len(tokenizer.encode("<|im_end|>")) > 1
    assert tokenizer.decode([tokenizer.eos_id]) == ""
    assert tokenizer.decode([tokenizer.eos_id], skip_special=False) == "<|endoftext|>"


def test_state_pickle_and_folder_keep_everything(tokenizer, tmp_path):
    templated = tokenizer.with_chat_template("{{ messages }}")
    templated.save(tmp_path / "folder")
    for copy in (
        Tokenizer.from_state(json.loads(json.dumps(templated.state()))),
        pickle.loads(pickle.dumps(templated)),
        Tokenizer.from_folder(tmp_path / "folder"),
    ):
        assert copy.fingerprint == templated.fingerprint != tokenizer.fingerprint
        assert copy.encode("the cat 中") == tokenizer.encode("the cat 中")
        assert (copy.eos_id, copy.pad_id, copy.stop_ids) == (tokenizer.eos_id, tokenizer.pad_id, tokenizer.stop_ids)


def test_bpe_is_cached_by_content_and_mends_a_broken_cache(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    first = BPE(vocab_size=300).build(corpus, "k")
    never = BPE(vocab_size=300).build(lambda: pytest.fail("trained again"), "k")
    assert never.fingerprint == first.fingerprint
    (cached,) = (tmp_path / "tokenizers").iterdir()
    cached.write_text("{")
    assert BPE(vocab_size=300).build(corpus, "k").fingerprint == first.fingerprint
    assert "training it again" in caplog.text
    assert BPE(vocab_size=300).build(corpus, "other").vocab_size == 300
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


def test_bpe_splits_digits_and_keeps_words_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    tokenizer = BPE(vocab_size=400).build(corpus, "k")
    assert [tokenizer.decode([n]) for n in tokenizer.encode("the cat 2024")] == ["the", " cat", " ", "2", "0", "2", "4"]


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.vocab_size is 100; .* at least 260"):
        BPE(vocab_size=100)
    with pytest.raises(ValueError, match=r"does not exist; expected a tokenizer.json"):
        File(path=str(tmp_path / "nowhere.json")).build(corpus, "k")
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is not a readable tokenizer.json"):
        File(path=str(tmp_path / "tokenizer.json")).build(corpus, "k")
    with pytest.raises(ValueError, match=r"has no token '<\|nope\|>'"):
        Bytes().build(corpus, "k").token_id("<|nope|>")
    with pytest.raises(ValueError, match="surrogates"):
        Bytes().build(corpus, "k").encode("\ud800")


def test_a_bare_tokenizer_json_gets_an_end_of_text(tmp_path):
    core = tokenizers.Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.save(str(tmp_path / "words.json"))
    tokenizer = File(path=str(tmp_path / "words.json")).build(corpus, "k")
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.vocab_size) == (3, 3, 4)
    assert tokenizer.encode("a c b") == [0, 2, 1]
    assert np.array_equal(tokenizer.byte_counts, [1, 1, 1, 0])


def test_transformers_reads_our_folder_and_we_read_theirs(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "ours")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in SAMPLES[:-1]:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_id, 97]}))
    back = Tokenizer.from_folder(tmp_path / "theirs")
    assert back.encode(SAMPLES[1]) == tokenizer.encode(SAMPLES[1])
    assert back.stop_ids[0] == tokenizer.eos_id
    assert 97 in back.stop_ids
