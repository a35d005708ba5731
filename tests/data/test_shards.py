"""Token shards: the stream's law, checked headers, mending, constant order whoever tokenizes, two builders at once."""

import logging
import multiprocessing
import pickle

import numpy as np
import pytest

from alignlab.data import shards, tokenization
from alignlab.data.shards import DamagedStore, TokenShards
from alignlab.text.tokenizer import BPE, Bytes

TEXTS = ["ab", "é中", "", "xyz"]
EOS = 256


def rows():
    return ({"text": text, "row": number, "continues": False} for number, text in enumerate(TEXTS))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path))
    return tmp_path


@pytest.fixture
def tokenizer():
    return Bytes().build(list, "")


def build(tokenizer, source=rows, fingerprint="f", **options) -> TokenShards:
    return TokenShards.build(rows=source, fingerprint=fingerprint, tokenizer=tokenizer, **options)


def test_stream_is_documents_between_ends(tokenizer):
    store = build(tokenizer)
    expected = [EOS, *b"ab", EOS, *"é中".encode(), EOS, *b"xyz", EOS]
    assert store.read(0, len(store)).tolist() == expected
    # 2 + (2 + 3) + 3 bytes of UTF-8; three documents, the empty one is none; 10 ids and 4 EOS
    assert (store.bytes, store.documents, store.tokens, store.dtype) == (10, 3, 14, np.dtype("<u2"))


def test_bytes_are_those_of_the_text_whatever_the_tokenizer_spells():
    texts = [{"text": "DİNÇ DİNÇ", "row": 0, "continues": False}]  # 9 letters, 3 of 2 bytes: 12, and one space
    lower = BPE(vocab_size=300, lowercase=True).build(lambda: (row["text"] for row in texts), "lower")
    store = build(lower, source=lambda: iter(texts))
    ids = store.read(0, len(store))
    assert store.bytes == len(texts[0]["text"].encode())
    assert lower.byte_counts[ids].sum() != store.bytes  # a small İ is an i and a dot of its own
    assert store.byte_counts(lower)[ids].sum() == pytest.approx(store.bytes)
    whole = Bytes().build(list, "")
    assert build(whole).byte_counts(whole) is whole.byte_counts


def test_rows_that_continue_are_one_document(tokenizer):
    blocks = [("a\n", True), ("b\n", True), ("c", False), ("d", True)]
    store = build(tokenizer, lambda: ({"text": text, "continues": more} for text, more in blocks))
    assert store.read(0, len(store)).tolist() == [EOS, *b"a\nb\nc", EOS, *b"d", EOS]
    assert store.documents == 2


def test_reads_across_files_equal_one_file(tokenizer, monkeypatch):
    whole = build(tokenizer).read(0, 14)
    monkeypatch.setattr(shards, "_SHARD_TOKENS", 4)
    split = build(tokenizer, fingerprint="split")
    assert len(list(split.folder.glob("*.tokens"))) == 4
    for start in range(15):
        for stop in range(start, 15):
            assert split.read(start, stop).tolist() == whole[start:stop].tolist()
    with pytest.raises(IndexError, match=r"tokens \[3, 15\) of a store of 14"):
        split.read(3, 15)


def test_second_build_reads_the_cache(tokenizer):
    first = build(tokenizer)
    again = build(tokenizer, lambda: pytest.fail("built again"))
    assert again.folder == first.folder
    assert build(tokenizer, fingerprint="g").folder != first.folder


@pytest.mark.parametrize("damage", ["flip", "truncate", "header", "index", "missing"])
def test_damage_is_found_and_mended(tokenizer, damage, caplog):
    store = build(tokenizer)
    good = store.read(0, 14).tolist()
    path, index = store.folder / "00000.tokens", store.folder / "index.json"
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[-3] ^= 1
        path.write_bytes(raw)
    elif damage == "truncate":
        path.write_bytes(raw[:-2])
    elif damage == "header":
        path.write_bytes(b"X" + raw[1:])
    elif damage == "index":
        index.write_text("{")
    else:
        path.unlink()
    with pytest.raises(DamagedStore):
        TokenShards(folder=store.folder)
    with caplog.at_level(logging.WARNING):
        mended = build(tokenizer)
    assert "token store is damaged, building it again" in caplog.text
    assert mended.read(0, 14).tolist() == good
    assert {entry.name for entry in store.folder.parent.iterdir()} == {store.folder.name, f"{store.folder.name}.lock"}


def test_failing_rows_leave_nothing_behind(tokenizer, cache):
    def failing():
        yield {"text": "a"}
        raise ValueError("row 1 of x is bad")

    with pytest.raises(ValueError, match="row 1 of x is bad"):
        build(tokenizer, failing)
    assert [entry.suffix for entry in (cache / "tokens").iterdir()] == [".lock"]


def test_processes_give_the_same_stream(monkeypatch):
    bpe = BPE(vocab_size=300).build(lambda: ["the cat sat on the mat"], "k")
    texts = [f"the cat {number} sat on the mat " * 5 for number in range(40)]
    source = lambda: ({"text": text} for text in texts)  # noqa: E731 - a closure is the point
    alone = build(bpe, source)
    monkeypatch.setattr(tokenization, "_PIECE_CHARACTERS", 500)
    monkeypatch.setattr(tokenization, "_POOL_CHARACTERS", 600)
    pooled = build(bpe, source, "pooled", workers=2)
    assert np.array_equal(pooled.read(0, len(pooled)), alone.read(0, len(alone)))
    assert (pooled.bytes, pooled.documents) == (alone.bytes, alone.documents)


def test_large_vocabulary_takes_four_bytes(tokenizer):
    tokenizer.dtype = np.dtype(np.uint32)
    assert build(tokenizer).dtype == np.dtype("<u4")


def test_pickle_travels_as_a_path(tokenizer):
    store = build(tokenizer, lambda: [{"text": "a" * 100_000}])
    raw = pickle.dumps(store)
    assert len(raw) < 1000
    assert np.array_equal(pickle.loads(raw).read(5, 50), store.read(5, 50))


def _race(start, results) -> None:
    start.wait()
    store = TokenShards.build(
        rows=lambda: ({"text": f"{n} " * 50} for n in range(2000)),
        fingerprint="race",
        tokenizer=Bytes().build(list, ""),
    )
    results.put((store.tokens, int(store.read(0, len(store)).sum(dtype=np.int64))))


def test_two_builders_at_once(monkeypatch):
    context = multiprocessing.get_context("fork")
    start, results = context.Event(), context.Queue()
    builders = [context.Process(target=_race, args=(start, results)) for _ in range(2)]
    for builder in builders:
        builder.start()
    start.set()
    first, second = results.get(timeout=20), results.get(timeout=20)
    for builder in builders:
        builder.join()
    assert first == second


def test_without_the_lock_the_second_builder_yields(tokenizer, monkeypatch):
    # while ours is built, another process puts the same store in place
    def interrupted():
        monkeypatch.setattr(shards, "FileLock", _NoLock)
        build(tokenizer)
        yield from rows()

    monkeypatch.setattr(shards, "FileLock", _NoLock)
    monkeypatch.setattr(shards.shutil, "rmtree", lambda *_, **__: None)  # the other's folder is not abandoned
    assert build(tokenizer, interrupted).read(0, 14).tolist()[:4] == [EOS, *b"ab", EOS]


class _NoLock:
    def __init__(self, path) -> None:
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        return None
