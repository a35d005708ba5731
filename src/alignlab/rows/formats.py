"""Raw rows of one file: .csv .tsv .json .jsonl .parquet, plain text in blocks, two line-aligned texts; all also .gz.

Unusual: everything streams. Bytes are decoded in blocks with the exact offset of the first bad byte; a text of any size
comes in blocks of a megabyte cut at line ends, or within a line that is longer still; a JSON array is parsed element by
element. Knows nothing about kinds, columns or splits. Imports no torch.
"""

import codecs
import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import IO, Any, Literal

from alignlab.rows.broken import BadFile, BadRecord
from alignlab.rows.json_source import JsonSource

Errors = Literal["raise", "replace"]

TABULAR = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
_BLOCK_BYTES = 1 << 20
_SQUAD_REMEDY = "expected an array of objects, one object per line, or SQuAD's {data: [{paragraphs: ...}]}"


def suffix_of(path: Path) -> str:
    """The format's suffix in lower case, .gz left off: ".csv" for "A.CSV.gz"."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def texts(path: Path, errors: Errors) -> Iterator[str]:
    """The whole text in pieces of about a megabyte, each a valid string; a byte order mark is left off.

    Raises BadFile for a binary file, and for invalid UTF-8 (with the byte's offset) unless `errors` is "replace".
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace" if errors == "replace" else "strict")
    offset, first = 0, True
    with _opened(path) as file:
        while True:
            raw = _read(file, path)
            if first:
                _refuse_binary(raw, path)
                raw, offset, first = raw.removeprefix(codecs.BOM_UTF8), 3 * raw.startswith(codecs.BOM_UTF8), False
            held = len(decoder.getstate()[0])  # bytes of a character that the last block began
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                place = offset - held + error.start
                raise BadFile(
                    f"{path} is not UTF-8 at byte {place} (0x{error.object[error.start]:02x}); "
                    "convert it (iconv -t UTF-8), or set data.encoding_errors=replace"
                ) from error
            offset += len(raw)
            if text:
                yield text
            if not raw:
                return


def blocks(path: Path, errors: Errors) -> Iterator[str]:
    """The whole text in blocks of about a megabyte that end at a line's end where a block has one."""
    held = ""
    for text in texts(path, errors):
        cut = text.rfind("\n") + 1
        if cut:
            yield held + text[:cut]
            held = text[cut:]
        else:
            held += text
            if len(held) >= _BLOCK_BYTES:  # one line longer than a block: cut between characters
                yield held
                held = ""
    if held:
        yield held


def lines(path: Path, errors: Errors) -> Iterator[str]:
    """Lines with their ends, of any length, split at line feeds only."""
    held: list[str] = []
    for text in texts(path, errors):
        parts = text.split("\n")
        for part in parts[:-1]:
            yield "".join([*held, part, "\n"])
            held = []
        if parts[-1]:
            held.append(parts[-1])
    if held:
        yield "".join(held)


def plain_lines(path: Path, errors: Errors) -> Iterator[str]:
    """Lines without their ends."""
    return (line.rstrip("\r\n") for line in lines(path, errors))


def aligned(first: Path, second: Path, errors: Errors) -> Iterator[dict[str, str]]:
    """{"source", "target"} from line n of each; BadFile when one file has more lines."""
    pairs = zip_longest(plain_lines(first, errors), plain_lines(second, errors))
    for number, (source, target) in enumerate(pairs):
        if source is None or target is None:
            short, long = (first, second) if source is None else (second, first)
            raise BadFile(f"{short} ends after {number} lines but {long} goes on; line-aligned files have equally many")
        yield {"source": source, "target": target}


def records(path: Path, errors: Errors, *, header: bool = True) -> Iterator[dict[Any, Any] | BadRecord]:
    """Raw rows of a tabular file by column name; by column number from 0 when `header` is false.

    A broken record comes as a BadRecord in its place, so that the count of rows goes on. Raises BadFile.
    """
    suffix = suffix_of(path)
    if suffix in (".csv", ".tsv"):
        return _delimited(path, errors, header)
    if suffix == ".parquet":
        return _parquet(path, header)
    rows = _json_lines(path, errors) if suffix == ".jsonl" else _json(path, errors)
    return rows if header else map(_by_number, rows)


def _delimited(path: Path, errors: Errors, header: bool) -> Iterator[dict[Any, Any] | BadRecord]:
    csv.field_size_limit(min(sys.maxsize, (1 << 31) - 1))
    if suffix_of(path) == ".csv":
        reader = csv.reader(lines(path, errors), strict=True)  # else an open quotation mark takes the rest of the file
    else:  # tabs never stand in a field, so quotation marks are what they look like
        reader = csv.reader(lines(path, errors), delimiter="\t", quoting=csv.QUOTE_NONE)
    names: list[Any] | None = None
    while True:
        begun = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            if reader.line_num > begun or "unexpected end" in str(error):  # it may have swallowed good rows
                raise BadFile(
                    f"line {begun} of {path} opens a quotation mark that is not closed where a field ends ({error}); "
                    'expected "..." around a field, and "" for a quotation mark inside it'
                ) from error
            if names is None and header:
                raise BadFile(f"the header line of {path} is no valid line of {suffix_of(path)}: {error}") from error
            yield BadRecord(f"is no valid line of {suffix_of(path)}: {error}")
            continue
        if fields is None:
            return
        if not fields:  # a blank line
            continue
        if names is None:
            names = fields if header else [*range(len(fields))]
            if header:
                if len(set(names)) < len(names):
                    raise BadFile(f"{path} names a column twice in its header line: {names}")
                continue
        if len(fields) != len(names):
            yield BadRecord(f"has {len(fields)} fields; expected {len(names)}: {names}")
        else:
            yield dict(zip(names, fields, strict=True))


def _parquet(path: Path, header: bool) -> Iterator[dict[Any, Any] | BadRecord]:
    import pyarrow  # half a second, for those who need it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                rows = batch.to_pylist()
                yield from rows if header else map(_by_number, rows)
    except pyarrow.ArrowException as error:
        raise BadFile(f"{path} is no readable parquet file: {error}") from error


def _json_lines(path: Path, errors: Errors) -> Iterator[dict | BadRecord]:
    for line in lines(path, errors):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:  # ValueError: of a number of thousands of digits too
            yield BadRecord(f"is no JSON: {error}")
            continue
        yield _object(value)


def _json(path: Path, errors: Errors) -> Iterator[dict | BadRecord]:
    """An array, one object per line, or an object whose `data` is rows or SQuAD's articles."""
    source = JsonSource(texts(path, errors), path)
    opening = source.peek()
    if opening == "[":
        for value in source.elements():
            yield _object(value)
        source.end("array")
        return
    if opening != "{":
        raise BadFile(f"{path} begins with {opening[:1]!r}; {_SQUAD_REMEDY}")
    first = source.value()
    if isinstance(first.get("data"), list):
        for entry in first["data"]:
            if isinstance(entry, dict) and "paragraphs" in entry:
                yield from _squad(entry)
            else:
                yield _object(entry)
        source.end("object with data")
        return
    yield first
    while source.peek():
        yield _object(source.value())


def _squad(article: dict) -> Iterator[dict | BadRecord]:
    for paragraph in article["paragraphs"] or ():
        if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
            yield BadRecord("has a paragraph without qas")
            continue
        for question in paragraph["qas"]:
            if not isinstance(question, dict):
                yield BadRecord("has a question that is no object")
                continue
            impossible = question.get("is_impossible", False)
            row = {"context": paragraph.get("context"), **question}
            yield row | {"answers": []} if impossible else row


def _object(value: Any) -> dict | BadRecord:
    if isinstance(value, dict):
        return value
    if isinstance(value, list):  # columns by number
        return dict(enumerate(value))
    return BadRecord(f"is {json.dumps(value)[:40]}; expected an object with a name for each column")


def _by_number(row: dict | BadRecord) -> dict | BadRecord:
    return row if isinstance(row, BadRecord) else dict(enumerate(row.values()))


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")


def _read(file: IO[bytes] | gzip.GzipFile, path: Path) -> bytes:
    try:
        return file.read(_BLOCK_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadFile(f"{path} is no whole gzip file: {error}") from error


def _refuse_binary(head: bytes, path: Path) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise BadFile(f"{path} is UTF-16; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)")
    if head.startswith(b"\x1f\x8b"):
        raise BadFile(f"{path} is compressed by gzip; its name must end in .gz")
    if b"\0" in head[:8192]:
        raise BadFile(f"{path} is a binary file (byte 0 at {head.index(0)}); expected text in UTF-8")
