"""`data=pydocs`: the embedded corpus, English prose from the documentation strings of the installed Python.

Unusual: nothing is downloaded, imported or copied: source files are read in place by `ast`, in a pool of processes, and
the paragraphs that read as English are kept. Near-duplicates go before the split and whole modules go to one side of
it, so that no paragraph of validation has been seen in training. The corpus differs with the installed versions; its
content hash and those versions are logged with the run. Knows nothing about tokens. Imports no torch.
"""

import ast
import hashlib
import logging
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from alignlab.rows.installed import PACKAGES, index_of, kept, kept_rows, modules_of, parsed, read_all, versions_of
from alignlab.rows.prose import normalized, paragraphs
from alignlab.types import BelowOne, PositiveInt

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
_ADDED_BY_CALL = frozenset(("add_docstr", "add_newdoc", "_add_docstr", "add_docstr_all"))
_WITH_BLOCKS = frozenset((
    ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.If, ast.For, ast.AsyncFor, ast.While, ast.With,
    ast.AsyncWith, ast.Try, ast.TryStar, ast.ExceptHandler,
))  # fmt: skip
_RULES = 1  # raise when the rules of this file or of prose.py change, so that caches are made again
_SALT = 46  # chosen so that the shares come out in bytes too: torch's groups alone are a third of the corpus
_SHINGLE_WORDS = 8
_KNOWN_SHARE = 0.25  # a paragraph with more known shingles than this is a near-duplicate


@dataclass(frozen=True, kw_only=True)
class PyDocs:
    """Paragraphs of the documentation of `packages`; one row per module, whole modules to a split.

    `val` and `test` are shares of the modules' groups (first two parts of their names). `workers` processes read.
    """

    packages: tuple[str, ...] | list[str] = PACKAGES
    val: BelowOne = 0.05
    test: BelowOne = 0.05
    workers: PositiveInt | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.val + self.test < 1:
            raise ValueError(f"data.val={self.val} and data.test={self.test} leave nothing to train on")

    def check(self) -> None:
        """Nothing can be mistyped but `packages`, and one that is not installed is only left out."""

    def has(self, split: Split) -> bool:
        """Whether the split has a share."""
        return split == "train" or getattr(self, split) > 0

    def read(self, split: Split, kind: str = "text", *, targets: bool = True) -> Iterator[dict]:
        """Rows {"text", "row", "continues"}: a module's paragraphs, one a line, a blank line between strings.

        Mines the corpus first where the cache has none. Raises ValueError for any kind but text.
        """
        if kind != "text":
            raise ValueError(f"data=pydocs holds rows of text; this task needs rows of {kind}: see data=files")
        for number, (_, text) in enumerate(self.modules(split)):
            yield {"text": text, "row": number, "continues": False}

    def modules(self, split: Split) -> Iterator[tuple[str, str]]:
        """(name, text) of each module of a split."""
        return ((entry["module"], entry["text"]) for entry in kept_rows(self._corpus, split))

    def fingerprint(self, split: Split) -> str:
        """Content hash of the split's rows."""
        return self._index["hashes"][split]

    def facts(self) -> dict[str, str | int | float]:
        """Versions of all that was read, sizes in bytes and content hashes."""
        index = self._index
        facts: dict[str, str | int | float] = {"data": "pydocs", "data/python": platform.python_version()}
        facts |= {f"data/{split}/hash": value for split, value in index["hashes"].items()}
        facts |= {f"data/{split}/bytes": value for split, value in index["bytes"].items()}
        return facts | {f"data/version/{name}": version for name, version in index["versions"].items()}

    @cached_property
    def _corpus(self) -> Path:
        """The folder of the mined splits."""
        versions = versions_of(self.packages)
        return kept("pydocs", [_RULES, versions, self.val, self.test], lambda: self._mined(versions))

    @cached_property
    def _index(self) -> dict:
        return index_of(self._corpus)

    def _mined(self, versions: dict[str, str]) -> tuple[dict[str, list[dict]], dict]:
        """The splits, and what to say of them."""
        files = [entry for name in versions for entry in modules_of(name)]
        splits: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
        for module, docstrings in _deduplicated(read_all(files, _prose, self.workers)):
            text = "\n\n".join("\n".join(lines) for lines in docstrings)
            splits[self._side(module)].append({"module": module, "text": text})
        sizes = {split: sum(len(row["text"].encode()) for row in rows) for split, rows in splits.items()}
        log.info("mined %.1f MB of prose from %d modules", sum(sizes.values()) / 1e6, len(files))
        return splits, {"versions": versions, "bytes": sizes}

    def _side(self, module: str) -> Split:
        group = ".".join(module.split(".")[:2])
        place = int.from_bytes(hashlib.sha256(f"{_SALT} {group}".encode()).digest()[:8], "big") / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"


def _prose(path: Path) -> list[list[str]]:
    """The paragraphs of each documentation string of a file."""
    return [lines for text in _docstrings(path) if (lines := list(paragraphs(text)))]


def _docstrings(path: Path) -> Iterator[str]:
    """Documentation strings of a source file: those of definitions, and those that calls add to compiled functions."""
    if (source := parsed(path)) is None:
        return
    tree, raw = source
    yield from _defined(tree)
    if any(name.encode() in raw for name in _ADDED_BY_CALL):
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", getattr(node.func, "attr", "")) in _ADDED_BY_CALL
            ):
                yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


def _defined(node: ast.AST) -> Iterator[str]:
    """Documentation strings of a module, its classes and functions, in order of the source.

    Goes through statements only: `ast.walk` would visit every expression, at three times the time.
    """
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        text := ast.get_docstring(node, clean=False)
    ):
        yield text
    for block in ("body", "orelse", "handlers", "finalbody"):
        for statement in getattr(node, block, ()):
            if type(statement) in _WITH_BLOCKS:  # few are, and a call takes longer than the question
                yield from _defined(statement)


def _deduplicated(modules: Iterable[tuple[str, list[list[str]]]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Modules without the paragraphs that, nearly, came before."""
    known: set[int] = set()
    for module, docstrings in modules:
        kept = [fresh for lines in docstrings if (fresh := [line for line in lines if _is_new(line, known)])]
        if kept:
            yield module, kept


def _is_new(paragraph: str, known: set[int]) -> bool:
    words = normalized(paragraph)
    width = min(_SHINGLE_WORDS, len(words))
    joined = [" ".join(words[start : start + width]) for start in range(len(words) - width + 1)]
    # not hash(): that differs from process to process and would let a collision choose the corpus
    shingles = {int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in joined}
    is_new = len(shingles & known) <= _KNOWN_SHARE * len(shingles)
    known |= shingles
    return is_new
