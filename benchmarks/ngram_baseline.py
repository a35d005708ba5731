"""The bar that a small GPT has to clear: an interpolated order-5 byte n-gram, in bits per byte.

    python benchmarks/ngram_baseline.py --data pydocs
    python benchmarks/ngram_baseline.py --train input.txt --holdout 0.1

Each byte is predicted from up to four bytes before it. Two smoothings are measured on the same counts: Witten-Bell
(Witten and Bell 1991, method C) and interpolated modified Kneser-Ney (Chen and Goodman 1999), below both the uniform
distribution over 256 bytes; the lower of the two is the baseline. Documents stand in one stream with a byte between
them that UTF-8 never uses. Bits per byte is given twice: of the text's bytes alone, which sets the bar, and with the
bits of those ends added, which is what a model pays that also predicts them.
Unusual: no dictionary of counts. An n-gram is one integer, so that sorting does the counting: megabytes take seconds.
It knows nothing of models or tokenizers.
"""

import argparse
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ORDER = 5
BYTES = 256
SEPARATOR = 0xFF  # never a byte of UTF-8


@dataclass(frozen=True, kw_only=True)
class Level:
    """The n-grams of one length: p(byte | context) = (kept + reserved x p(byte | shorter context)) / total.

    `kept` belongs to a gram, `reserved` and `total` to its context. A gram is its bytes as one big-endian
    integer, its context that integer without the last byte; both are sorted.
    """

    grams: np.ndarray
    kept: np.ndarray
    contexts: np.ndarray
    reserved: np.ndarray
    totals: np.ndarray

    def probabilities(self, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probability of each gram's last byte, given `shorter`, its probability under the context less one byte."""
        place, is_seen = positions(self.contexts, grams >> 8)
        gram, is_counted = positions(self.grams, grams)
        kept = np.where(is_counted, self.kept[gram], 0.0)
        return np.where(is_seen, (kept + self.reserved[place] * shorter) / self.totals[place], shorter)


def positions(ordered: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each wanted value stands in `ordered`, and whether it is there (else the position means nothing)."""
    found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return found, ordered[found] == wanted


def grams_of(stream: np.ndarray, length: int) -> np.ndarray:
    """All `length`-grams of a byte stream (N,) as integers (N - length + 1,)."""
    grams = np.zeros(len(stream) - length + 1, dtype=np.int64)
    for place in range(length):
        grams = (grams << 8) | stream[place : place + len(grams)]
    return grams


def level(grams: np.ndarray, counts: np.ndarray, discounts: np.ndarray | None) -> Level:
    """One level from distinct sorted grams and their counts; without discounts Witten-Bell, which reserves one count
    for each distinct byte that followed the context."""
    contexts, first = np.unique(grams >> 8, return_index=True)
    totals = np.add.reduceat(counts, first).astype(float)
    if discounts is None:
        reserved = np.diff(np.append(first, len(grams))).astype(float)
        return Level(
            grams=grams, kept=counts.astype(float), contexts=contexts, reserved=reserved, totals=totals + reserved
        )
    removed = discounts[np.minimum(counts, len(discounts) - 1)]
    reserved = np.add.reduceat(removed, first)
    return Level(grams=grams, kept=counts - removed, contexts=contexts, reserved=reserved, totals=totals)


def modified_discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts for counts 0, 1, 2 and 3 or more (Chen and Goodman 1999, equation 26), each within 0 and its count."""
    once, twice, thrice, often = (max(int((counts == count).sum()), 1) for count in (1, 2, 3, 4))
    base = once / (once + 2 * twice)
    steps = [0.0, 1 - 2 * base * twice / once, 2 - 3 * base * thrice / twice, 3 - 4 * base * often / thrice]
    return np.clip(steps, 0.0, np.arange(4) * 0.999)


def witten_bell(stream: np.ndarray, order: int = ORDER) -> list[Level]:
    """Levels of lengths 1 to `order` from a byte stream."""
    return [level(*np.unique(grams_of(stream, length), return_counts=True), None) for length in range(1, order + 1)]


def kneser_ney(stream: np.ndarray, order: int = ORDER) -> list[Level]:
    """As `witten_bell`; below the longest length a gram's count is the number of distinct bytes seen before it."""
    grams, counts = np.unique(grams_of(stream, order), return_counts=True)
    levels = []
    for length in range(order, 0, -1):
        levels.append(level(grams, counts, modified_discounts(counts)))
        grams, counts = np.unique(grams & ((1 << 8 * (length - 1)) - 1), return_counts=True)
    return levels[::-1]


def bits(levels: list[Level], stream: np.ndarray) -> np.ndarray:
    """Bits (N,) of each byte of a stream; the first bytes have the shorter contexts that the stream has for them."""
    probability = np.full(len(stream), 1 / BYTES)
    for length, table in enumerate(levels, start=1):
        if length <= len(stream):
            probability[length - 1 :] = table.probabilities(grams_of(stream, length), probability[length - 1 :])
    return -np.log2(probability)


def stream_of(documents: Iterable[str]) -> np.ndarray:
    """Documents as one byte stream (N,), each after a separator, and one at the end."""
    end = bytes([SEPARATOR])
    joined = end + b"".join(text.encode("utf-8") + end for text in documents)
    return np.frombuffer(joined, dtype=np.uint8).astype(np.int64)


def documents_of(rows: Iterable[dict]) -> Iterator[str]:
    """Texts of rows, those joined that are one document: the row after one that `continues` goes on in it."""
    parts: list[str] = []
    for row in rows:
        parts.append(row["text"])
        if not row.get("continues", False):
            yield "".join(parts)
            parts = []
    if parts:
        yield "".join(parts)


def split_of(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Training and validation documents."""
    if options.data == "pydocs":
        from alignlab.rows.pydocs import PyDocs

        source = PyDocs()
        train, val = (list(documents_of(source.read(split, "text"))) for split in ("train", "val"))
        return train, val
    text = options.train.read_text(encoding="utf-8")
    if options.val is not None:
        return [text], [options.val.read_text(encoding="utf-8")]
    cut = len(text) - int(len(text) * options.holdout)
    return [text[:cut]], [text[cut:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", choices=["pydocs"], help="an embedded corpus")
    source.add_argument("--train", type=Path, help="a UTF-8 text file")
    parser.add_argument("--val", type=Path, help="a UTF-8 text file; without it the end of the training file")
    parser.add_argument("--holdout", type=float, default=0.1, help="last part of the characters (default 0.1)")
    options = parser.parse_args()

    train_documents, val_documents = split_of(options)
    train, val = stream_of(train_documents), stream_of(val_documents)
    is_text = val != SEPARATOR
    print(
        f"train {len(train) - len(train_documents) - 1:,} bytes in {len(train_documents):,} documents; "
        f"validation {is_text.sum():,} bytes in {len(val_documents):,}"
    )
    measured = []
    for name, smoothing in (("Witten-Bell", witten_bell), ("modified Kneser-Ney", kneser_ney)):
        start = time.perf_counter()
        cost = bits(smoothing(train), val)[1:]  # the first separator is given
        text_cost = cost[is_text[1:]].sum() / is_text.sum()
        measured.append(text_cost)
        print(
            f"order {ORDER}, {name:20}  {text_cost:.4f} bits per byte; with the ends of documents "
            f"{cost.sum() / is_text.sum():.4f}; {time.perf_counter() - start:.1f} s"
        )
    print(f"0.85 x the better one: {0.85 * min(measured):.4f} bits per byte")


if __name__ == "__main__":
    main()
