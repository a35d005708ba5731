"""`data=files`: every format gives the same rows; splits are disjoint; every mistake names file, row and field."""

import gzip
import json
import logging
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from alignlab.rows import formats
from alignlab.rows.files import Files

ROWS = [{"text": f"Satz {number}, „ä“ 中文\nzweite", "label": "ja" if number % 2 else "nein"} for number in range(7)]


def plain(text: str) -> dict:
    return {"text": text}


def write(path, rows):
    name = path.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    if name.endswith(".csv"):
        cells = [f'"{row["text"]}","{row["label"]}"' for row in rows]
        text = "\n".join(["text,label", *cells])
    elif name.endswith(".tsv"):
        text = "\r\n".join(["text\tlabel", *(f"{row['text']}\t{row['label']}" for row in rows)])
    elif name.endswith(".jsonl"):
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    else:
        text = json.dumps(rows, ensure_ascii=False, indent=1)
    raw = ("\ufeff" + text).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def read(split="train", kind="labels", targets=True, **options):
    return list(Files(**options).read(split, kind, targets=targets))


@pytest.mark.parametrize(
    "name", ["数据 [1]=.csv", "a.csv.gz", "a.json", "a.json.gz", "a.jsonl", "a.JSONL.gz", "a.parquet"]
)
def test_every_format_gives_the_same_rows(tmp_path, name):
    if name.endswith("JSONL.gz"):
        write(tmp_path / "a.jsonl.gz", ROWS).rename(tmp_path / name)
    else:
        write(tmp_path / name, ROWS)
    got = read(train=str(tmp_path / name), holdout=0.0)
    assert got == [row | {"row": number} for number, row in enumerate(ROWS)]


def test_tsv_takes_quotation_marks_literally(tmp_path):
    rows = [{"text": '"Go!" he said', "label": "a"}, {"text": '"open', "label": "b"}]
    assert [row["text"] for row in read(train=str(write(tmp_path / "a.tsv", rows)), holdout=0.0)] == [
        '"Go!" he said',
        '"open',
    ]


def test_globs_lists_and_row_numbers(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, [{"text": name, "label": 1}])
    assert [(row["text"], row["row"]) for row in read(train=str(tmp_path / "*.jsonl"), holdout=0.0)] == [
        ("a.jsonl", 0),
        ("b.jsonl", 1),
    ]
    listed = [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]
    assert [row["text"] for row in read(train=listed, holdout=0.0)] == ["b.jsonl", "a.jsonl"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_columns_by_number_mean_no_header(tmp_path, name):
    path = tmp_path / name
    path.write_text("gut,1\nschlecht,0\n".replace(",", "," if name == "a.csv" else "\t"))
    assert read(train=str(path), holdout=0.0, columns={"text": 0, "label": 1}) == [
        {"text": "gut", "label": 1, "row": 0},
        {"text": "schlecht", "label": 0, "row": 1},
    ]


def test_squad_and_a_written_answer_from_it(tmp_path):
    asked = [
        {"id": "1", "question": "who?", "answers": [{"text": "Eva", "answer_start": 0}]},
        {"id": "2", "question": "why?", "answers": [], "is_impossible": True},
    ]
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"version": "v2", "data": [{"paragraphs": [{"context": "Eva ran.", "qas": asked}]}]}))
    spans = read(kind="span", train=str(path), holdout=0.0)
    assert [(row["context"], row["question"], len(row["answers"]), row["row"]) for row in spans] == [
        ("Eva ran.", "who?", 1, 0),
        ("Eva ran.", "why?", 0, 1),
    ]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Eva ran.", "qas": asked[:1]}]}]}))
    assert read(kind="response", train=str(path), holdout=0.0)[0]["answer"] == ["Eva"]


def test_two_texts_line_by_line(tmp_path):
    english, german = tmp_path / "a.en", tmp_path / "a.de"
    english.write_text("one\ntwo\n")
    german.write_text("eins\r\nzwei")
    files = [str(english), str(german)]
    assert read(kind="response", train=files, holdout=0.0) == [
        {"source": "one", "target": "eins", "row": 0},
        {"source": "two", "target": "zwei", "row": 1},
    ]
    german.write_text("eins\n")
    with pytest.raises(ValueError, match=r"a\.de ends after 1 lines but .*a\.en goes on"):
        read(kind="response", train=files, holdout=0.0)


def test_lines_to_predict_on(tmp_path):
    path = tmp_path / "reviews.txt"
    path.write_text("good\nbad\n")
    assert read("test", test=str(path), targets=False) == [{"text": "good", "row": 0}, {"text": "bad", "row": 1}]
    with pytest.raises(ValueError, match=r"reviews.txt is plain text without columns; expected .csv"):
        read("test", test=str(path))


def test_text_holdout_is_the_last_tenth_of_characters(tmp_path):
    text = "".join(f"Zeile {number} 中\n" for number in range(1000))
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    parts = {split: "".join(r["text"] for r in read(split, "text", train=str(path))) for split in ("train", "val")}
    border = int(len(text) * 0.9)
    assert parts == {"train": text[:border], "val": text[border:]}


def test_row_holdout_is_disjoint_complete_and_keeps_contexts_together(tmp_path, caplog):
    rows = [{"prompt": f"p{number // 4}", "chosen": f"c{number}", "rejected": "r"} for number in range(4000)]
    path = write(tmp_path / "a.jsonl", rows)
    with caplog.at_level(logging.INFO):
        train = read("train", "pairs", train=str(path), seed=3)
        val = read("val", "pairs", train=str(path), seed=3)
    assert sorted(row["row"] for row in train + val) == list(range(4000))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in val}
    # 1000 prompts at 0.1: standard deviation 9.5 prompts of 4 rows
    assert abs(len(val) - 400) < 4 * 4 * 9.5
    assert "holding out 0.1 of the training files, rows by a hash (seed 3)" in caplog.text
    assert [row["row"] for row in read("val", "pairs", train=str(path), seed=4)] != [row["row"] for row in val]


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
def test_text_streams_in_blocks_and_joins_to_itself(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 7)
    text = "中文 line\nlonger line é👩‍👩‍👧‍👦 than a block\r\n\n" * 5 + "end"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else b"\xef\xbb\xbf" + text.encode())
    rows = read(kind="text", train=str(path), holdout=0.0)
    assert "".join(row["text"] for row in rows) == text
    assert [row["continues"] for row in rows] == [True] * (len(rows) - 1) + [False]
    assert max(len(row["text"]) for row in rows) <= 14


def test_one_long_line_comes_in_pieces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("é中".encode() * 1_000_000)
    rows = read(kind="text", train=str(path), holdout=0.0)
    # two characters in five bytes: a block is cut as soon as it holds a megabyte of characters
    assert max(len(row["text"]) for row in rows) < 1.5 * (1 << 20)
    assert len(rows) > 1
    assert sum(len(row["text"].encode()) for row in rows) == 5_000_000


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        (b"", "is empty; expected text"),
        (b"abc\0def", r"is a binary file \(byte 0 at 3\)"),
        ("中".encode() * 5 + b"\xff", r"is not UTF-8 at byte 15 \(0xff\); .*data.encoding_errors=replace"),
        (b"\xef\xbb\xbfab\xe4", r"is not UTF-8 at byte 5 \(0xe4\)"),
        ("abc".encode("utf-16"), "is UTF-16; convert it"),
        (gzip.compress(b"abc", mtime=0), r"is compressed by gzip; its name must end in .gz"),
    ],
)
def test_unreadable_text(tmp_path, monkeypatch, raw, complaint):
    path = tmp_path / "a.txt"
    path.write_bytes(raw)
    for size in (4, 1 << 20):  # the offset counts from the file's start, not the block's
        if raw[:2] not in (b"ab",):
            monkeypatch.setattr(formats, "_BLOCK_BYTES", size)
        with pytest.raises(ValueError, match=complaint):
            read(kind="text", train=str(path), holdout=0.0)


def test_replaced_bytes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\xffb")
    rows = read(kind="text", train=str(path), holdout=0.0, encoding_errors="replace")
    assert rows[0]["text"] == "a\ufffdb"


def test_broken_gzip_and_parquet(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"abc" * 1000)[:-9])
    with pytest.raises(ValueError, match="is no whole gzip file"):
        read(kind="text", train=str(tmp_path / "a.txt.gz"), holdout=0.0)
    (tmp_path / "a.parquet").write_bytes(b"PAR1nonsense")
    with pytest.raises(ValueError, match="is no readable parquet file"):
        read(train=str(tmp_path / "a.parquet"), holdout=0.0)


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": ', r"row 1 of .*a.jsonl: is no JSON"),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "", "label": 1}', r"row 1 of .*a.jsonl: text is empty"),
        ("a.jsonl", "3", r"row 0 of .*a.jsonl: is 3; expected an object"),
        ("a.csv", "text,label\na,1\nb\n", r"row 1 of .*a.csv: has 1 fields; expected 2"),
        ("a.csv", "text,class\na,1\n", r"row 0 of .*a.csv: label is missing; .*\['text', 'class'\]"),
        ("a.csv", "text,text\n", "names a column twice"),
        ("a.csv", '"text" ,label\na,1\n', "the header line of .*a.csv is no valid line of .csv"),
        ("a.csv", "text,label\n", "a.csv is empty; expected at least one row"),
        ("a.json", '[{"text": "a", "label": 1}, {"text" 3}]', r"row 1 of .*a.json is no JSON"),
        ("a.json", '[{"text": "a", "label": 1}', r"row 1 of .*a.json is no JSON: expected , or \]"),
        ("a.json", '[{"text": "a", "label": 1}]\n[]', r"a.json goes on with '\[' after its array"),
        ("a.json", '{"data": [{"text": "a", "label": 1}]} more', r"a.json goes on with 'm' after its object with data"),
        ("a.jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", r"row 0 of .*a.jsonl: is no JSON"),
        ("a.csv", 'text,label\na,1\nb,"1\nc,1\nd,1\n', r"line 3 of .*a.csv opens a quotation mark"),
        ("a.csv", 'text,label\na,"1\nb,1\n"c",1\n', r"line 2 of .*a.csv opens a quotation mark"),
        ("a.csv", 'text,label\n"a "b" c",1\n', r"row 0 of .*a.csv: is no valid line of .csv"),
        ("a.json", "hello", r"a.json begins with 'h'; expected an array"),
        ("a.json", "", r"a.json begins with ''"),
    ],
)
def test_bad_rows_name_file_row_and_field(tmp_path, name, text, complaint):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        read(train=str(tmp_path / name), holdout=0.0)


def test_json_array_is_streamed_whatever_the_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "_BLOCK_BYTES", 5)
    assert [row["text"] for row in read(train=str(write(tmp_path / "a.json", ROWS)), holdout=0.0)] == [
        row["text"] for row in ROWS
    ]


def test_skipping_is_counted_and_bounded(tmp_path, caplog):
    rows = [{"text": f"t{number}", "label": 1} for number in range(200)]
    rows[7]["text"] = rows[9]["text"] = ""
    path = write(tmp_path / "a.jsonl", rows)
    got = read(train=str(path), holdout=0.0, on_bad_row="skip")
    assert [row["row"] for row in got] == [n for n in range(200) if n not in (7, 9)]
    assert "skipped 2 of 200 rows of " in caplog.text
    rows[11]["text"] = ""  # 3 of 200 is 1.5 %
    write(path, rows)
    with pytest.raises(ValueError, match=r"3 of 200 rows of .*a.jsonl are bad, .* first row 7 of .*: text is empty"):
        read(train=str(path), holdout=0.0, on_bad_row="skip")


def test_mistaken_names_are_told_with_the_closest(tmp_path):
    (tmp_path / "train.txt").write_text("a")
    with pytest.raises(ValueError, match=r"data.train=.*trian.txt does not exist; did you mean .*train.txt\?"):
        Files(train=str(tmp_path / "trian.txt")).check()
    with pytest.raises(ValueError, match=r"matches no file"):
        Files(train=str(tmp_path / "*.csv")).check()
    with pytest.raises(ValueError, match=r"is a folder; expected files"):
        Files(val=str(tmp_path)).check()
    with pytest.raises(ValueError, match=r"there is no folder"):
        Files(test=str(tmp_path / "x" / "y.txt")).check()
    with pytest.raises(ValueError, match=r"data.columns.sorce is no canonical column; did you mean source\?"):
        Files(columns={"sorce": "en"})
    with pytest.raises(ValueError, match=r"data.columns.chosen is no column of this task"):
        read(train=str(tmp_path / "train.txt"), columns={"chosen": "a"})
    with pytest.raises(ValueError, match=r"data.test is not given"):
        read("test", "text", train=str(tmp_path / "train.txt"))


def test_fingerprint_follows_content_and_options(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abc")
    files = Files(train=str(path))
    first = files.fingerprint("train")
    assert Files(train=str(path)).fingerprint("train") == first
    assert files.fingerprint("val") != first
    assert Files(train=str(path), holdout=0.2).fingerprint("train") != first
    path.write_text("abcd")
    assert files.fingerprint("train") != first
    assert files.facts()["data/holdout"] == 0.1
    assert (files.has("val"), files.has("test"), Files(train="x", holdout=0.0).has("val")) == (True, False, False)


def test_a_held_out_part_and_the_whole_file_have_different_fingerprints(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("one line of text\n" * 100, encoding="utf-8")
    cut, whole = Files(train=str(path)), Files(train=str(path), val=str(path))
    prints = {cut.fingerprint("train"), cut.fingerprint("val"), whole.fingerprint("val")}
    assert len(prints) == 3
    assert whole.fingerprint("train") == whole.fingerprint("val")
