"""Text rows to ids in pieces of about a megabyte: by threads for a small corpus, by processes for a large one.

Unusual: order is kept and never more than two pieces per process wait, so memory stays constant however long the rows.
Knows nothing about where ids are stored. Imports no torch.
"""

import itertools
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np

from alignlab.text.tokenizer import Tokenizer

_PIECE_CHARACTERS = 1 << 20  # one piece of work for a process
_POOL_CHARACTERS = 24 << 20  # starting processes costs about a second: not for less than this
_SHOW_AFTER_SECONDS = 1.5


@dataclass(frozen=True)
class _Piece:
    """Some rows' texts in order; `ends[i]` says whether text i ends its document."""

    texts: list[str]
    ends: list[bool]


def _pieces(rows: Iterable[dict]) -> Iterator[_Piece]:
    """Rows in pieces of about `_PIECE_CHARACTERS`; empty documents are left out."""
    texts: list[str] = []
    ends: list[bool] = []
    size, inside = 0, False
    for row in rows:
        text, end = row["text"], not row.get("continues", False)
        if not text and not inside:
            continue
        texts.append(text)
        ends.append(end)
        size += len(text)
        inside = not end
        if size >= _PIECE_CHARACTERS:
            yield _Piece(texts, ends)
            texts, ends, size = [], [], 0
    if inside:  # the rows ended within a document
        texts.append("")
        ends.append(True)
    if texts:
        yield _Piece(texts, ends)


def tokenized(
    rows: Iterable[dict], tokenizer: Tokenizer, workers: int
) -> Iterator[tuple[list[bool], list[np.ndarray], int]]:
    """Per piece of work, in order: whether each text ends its document, the ids of each, UTF-8 bytes of all.

    `rows` yields {"text", "continues"}; the last document is ended whatever its last row says.
    """
    pieces = _pieces(rows)
    first: list[_Piece] = []
    size = 0
    while size < _POOL_CHARACTERS and (piece := next(pieces, None)):
        first.append(piece)
        size += sum(map(len, piece.texts))
    # Byte ids are a copy of the text: sending it to a process would cost more than that.
    if size < _POOL_CHARACTERS or workers <= 1 or tokenizer.is_bytes:
        together = itertools.chain(first, pieces)
        # Several at once, for the tokenizer's own threads share out texts, never one text.
        while some := list(itertools.islice(together, 1 if tokenizer.is_bytes else 8)):
            ends = [end for piece in some for end in piece.ends]
            yield ends, *_encode(tokenizer, [text for piece in some for text in piece.texts])
        return
    # Spawned, for a fork of a process with threads (torch, tokenizers) may hang.
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker, (tokenizer.state(),)) as pool:
        waiting: list[tuple[_Piece, Future]] = []
        for piece in itertools.chain(first, pieces):
            waiting.append((piece, pool.submit(_encode_in_worker, piece.texts)))
            if len(waiting) > 2 * workers:
                done, future = waiting.pop(0)
                yield done.ends, *future.result()
        for done, future in waiting:
            yield done.ends, *future.result()


_worker_tokenizer: Tokenizer | None = None


def _start_worker(state: dict) -> None:
    global _worker_tokenizer
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is one process per core already
    _worker_tokenizer = Tokenizer.from_state(state)


def _encode_in_worker(texts: list[str]) -> tuple[list[np.ndarray], int]:
    assert _worker_tokenizer is not None, "a worker starts with its tokenizer"
    return _encode(_worker_tokenizer, texts)


def _encode(tokenizer: Tokenizer, texts: list[str]) -> tuple[list[np.ndarray], int]:
    return tokenizer.encode_batch(texts), sum(len(text.encode()) for text in texts)


@contextmanager
def shown_progress() -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes done so far; shows them on a terminal's standard error once it takes long."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console  # 0.1 s, for a terminal only
    from rich.progress import DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

    columns = (SpinnerColumn(), TextColumn("tokenizing"), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    bar = progress.add_task("", total=None)
    begun = time.monotonic()

    def show(done: int) -> None:
        if not progress.live.is_started and time.monotonic() - begun > _SHOW_AFTER_SECONDS:
            progress.start()
        progress.update(bar, completed=done)

    try:
        yield show
    finally:
        progress.stop()
