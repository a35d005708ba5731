"""The sets made of documentation and catalogues: exact spans, no copies, whole modules to a split."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignlab.errors import UserError
from alignlab.rows import catalogues, pydocs_chat, pydocs_qa, pydocs_summaries
from alignlab.rows.catalogues import Catalogues, is_pair, messages
from alignlab.rows.docstrings import Definition, Entry
from alignlab.rows.embedded import Embedded
from alignlab.rows.kinds import canonical
from alignlab.rows.pydocs_chat import PyDocsChat, PyDocsPairs
from alignlab.rows.pydocs_qa import PyDocsQA
from alignlab.rows.pydocs_summaries import PyDocsSummaries

SPLITS = ("train", "val", "test")


def definition(number: int) -> Definition:
    return Definition(
        module=f"planted.part{number // 3}",
        name=f"Grid.make{number}",
        signature=f"width_{number}=4, height=None",
        summary=f"Makes the grid number {number} of the planted package.",
        body=f"The grid {number} is made of cells that stand side by side, and each of them holds a value of its own.",
        entries=[
            Entry(section="parameters", name=f"width_{number}", type="int, default 4", text=f"Cells of row {number}."),
            Entry(
                section="parameters", name="height", type="int or None", text="Cells of a column, copied everywhere."
            ),
            Entry(
                section="parameters", name=f"fill_{number}", type="", text=f"The value of case {number} given first."
            ),
            Entry(section="returns", name="", type="Grid", text=f"The grid made from plan {number}."),
            Entry(section="raises", name="ValueError", text=f"If there is no cell in plan {number}."),
        ],
    )


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def definitions() -> Iterator[Definition]:
        return map(definition, range(180))

    monkeypatch.setenv("ALIGNLAB_CACHE", str(tmp_path / "cache"))
    for module in (pydocs_qa, pydocs_chat, pydocs_summaries):
        monkeypatch.setattr(module, "definitions", definitions)


def of(source: Embedded) -> dict[str, list[dict]]:
    return {split: list(source.read(split)) for split in SPLITS}  # type: ignore[arg-type]


def test_answers_are_spans_of_contexts_with_several_lines() -> None:
    rows = [row for own in of(PyDocsQA()).values() for row in own]
    assert len(rows) > 400
    for row in rows:
        assert row["answers"]
        assert len(row["context"].split("\n")) >= 5
        for answer in row["answers"]:
            start = answer["answer_start"]
            assert row["context"][start : start + len(answer["text"])] == answer["text"]
    asked = {row["question"].partition(" `height")[0] for row in rows if " `height" in row["question"]}
    assert len(asked) <= 3  # the copied line: asked about in one context only
    defaults = [row for row in rows if "default" in row["question"] and "`width_7`?" in row["question"]]
    for row in defaults:
        assert [row["context"][a["answer_start"] - 1] for a in row["answers"]] == [" ", "="]


def test_copies_are_the_same_lines_in_other_orders_for_training_alone() -> None:
    once, thrice = of(PyDocsQA(copies=0)), of(PyDocsQA(copies=2))
    assert [once[split] for split in ("val", "test")] == [thrice[split] for split in ("val", "test")]
    lines, orders = ([kind(row["context"].split("\n")) for row in thrice["train"]] for kind in (frozenset, tuple))
    assert set(lines) == {frozenset(row["context"].split("\n")) for row in once["train"]}
    assert len(set(orders)) > 2 * len(set(lines))
    assert len(thrice["train"]) > 2 * len(once["train"])


def test_modules_stay_on_one_side() -> None:
    for source in (PyDocsQA(), PyDocsChat(), PyDocsSummaries(), PyDocsPairs()):
        sides: dict[str, set[str]] = {}
        for split, rows in of(source).items():
            assert [row["row"] for row in rows] == list(range(len(rows)))
            for row in rows:
                number = next(n for n in map(int, _numbers(str(row))) if n < 180)
                sides.setdefault(f"part{number // 3}", set()).add(split)
        assert len(sides) > 40, source
        assert all(len(split) == 1 for split in sides.values()), source
        assert {split for own in sides.values() for split in own} == set(SPLITS)


def _numbers(text: str) -> list[str]:
    import re

    return re.findall(r"(?:number |plan |case |make|row |grid |width_|fill_)(\d+)", text)


def test_unanswerable_questions_have_no_answer() -> None:
    rows = [row for own in of(PyDocsQA(unanswerable=0.3)).values() for row in own]
    empty = [row for row in rows if not row["answers"]]
    assert 0.05 * len(rows) < len(empty) < 0.35 * len(rows)
    assert PyDocsQA(unanswerable=0.3).fingerprint("train") != PyDocsQA().fingerprint("train")


def test_spans_are_written_answers_too() -> None:
    source = PyDocsQA(unanswerable=0.3)
    spans = [row for row in source.read("train", "span") if row["answers"]]
    written = list(source.read("train", "response"))
    assert len(written) == len(spans) > 100
    for row, span in zip(written, spans, strict=True):
        assert row["answer"] == list(dict.fromkeys(one["text"] for one in span["answers"]))
        assert (row["question"], row["context"], row["row"]) == (span["question"], span["context"], span["row"])
        assert canonical(row, "response", columns={}) == {key: row[key] for key in ("question", "answer", "context")}


def test_conversations_alternate_and_are_short() -> None:
    rows = of(PyDocsChat(follow_ups=2))["train"]
    for row in rows:
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert len(roles) == 6
        assert all(len(message["content"].split()) < 60 for message in row["messages"])
    said = {message["content"] for row in rows for message in row["messages"]}
    assert any(text.startswith("It takes width_") and text.endswith(".") for text in said)
    assert any(text.startswith("It raises ValueError: If there is no cell") for text in said)


def test_pairs_have_the_answer_of_another() -> None:
    for row in of(PyDocsPairs())["train"]:
        number = _numbers(row["prompt"])[0]
        assert _numbers(row["chosen"]) == [number]
        assert _numbers(row["rejected"]) != [number]


def test_other_kinds_and_shares_are_told() -> None:
    with pytest.raises(ValueError, match="data=pydocs_qa holds rows of span; this task needs rows of labels"):
        PyDocsQA().read("train", "labels")
    with pytest.raises(ValueError, match=r"data.val=0.5 and data.test=0.5 leave nothing"):
        PyDocsChat(val=0.5, test=0.5)


def catalogue(path: Path, pairs: list[tuple[bytes, bytes]]) -> Path:
    """A compiled catalogue as msgfmt writes it."""
    at, tables, texts = 28 + 16 * len(pairs), (b"", b""), b""
    for side in (0, 1):
        for pair in pairs:
            tables = tuple(
                table + (struct.pack("<2I", len(pair[side]), at + len(texts)) if side == number else b"")
                for number, table in enumerate(tables)
            )  # type: ignore[assignment]
            texts += pair[side] + b"\0"
    header = b"\xde\x12\x04\x95" + struct.pack("<6I", 0, len(pairs), 28, 28 + 8 * len(pairs), 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + tables[0] + tables[1] + texts)
    return path


def test_catalogues_are_read_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [
        (b"", b"Language: zh\n"),
        (b"menu\x04Open %s", "打开 %s".encode()),
        (b"%d file\0%d files", "%d 个文件".encode()),
        (b"Close it", "关闭\n它".encode()),
        (b"Close it", "再关".encode()),
        (b"Lost %s", "丢失".encode()),
        (b"OK", b"OK"),
    ]
    path = catalogue(tmp_path / "x/locale/zh_Hans/LC_MESSAGES/a.mo", pairs)
    assert list(messages(path))[1:3] == [("Open %s", "打开 %s"), ("%d files", "%d 个文件")]
    monkeypatch.setattr(catalogues, "folder_of", lambda package: tmp_path / "x" if package == "django" else tmp_path)
    monkeypatch.setattr(catalogues.Catalogues, "packages", ())
    rows = [(row["source"], row["target"]) for own in of(Catalogues()).values() for row in own]
    assert sorted(rows) == [("%d files", "%d 个文件"), ("Close it", "关闭 它"), ("Open %s", "打开 %s")]
    assert (Catalogues().source_language, Catalogues().target_language) == ("en", "zh")
    assert not is_pair("Go to %(page)s", "去 %(side)s")


def test_catalogues_that_are_not_installed_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogues, "folder_of", lambda _: None)
    with pytest.raises(UserError, match=r"django, which is not installed\npip install 'alignlab\[zh\]'"):
        list(Catalogues().made())
