"""`data=pydocs`: the embedded corpus, English prose from the documentation strings of the installed Python.

Unusual: nothing is downloaded, imported or copied: source files are read in place by `ast`, in a pool of processes, and
the paragraphs that read as English are kept. Near-duplicates go before the split and whole modules go to one side of
it, so that no paragraph of validation has been seen in training. The corpus differs with the installed versions; its
content hash and those versions are logged with the run. Knows nothing about tokens. Imports no torch.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

from filelock import FileLock

from alignlab.paths import cache_folder
from alignlab.rows.prose import normalized, paragraphs
from alignlab.types import BelowOne, PositiveInt

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
STANDARD_LIBRARY = "stdlib"
# What the core dependencies install everywhere, so that everybody's corpus is about the same.
PACKAGES = (
    STANDARD_LIBRARY, "torch", "numpy", "sympy", "networkx", "mpmath", "lightning", "torchmetrics", "datasets",
    "huggingface_hub", "pandas", "matplotlib", "PIL", "fontTools", "pyarrow", "fsspec", "nltk", "aiohttp", "requests",
    "urllib3", "tensorboard", "werkzeug", "absl", "hydra", "omegaconf", "jinja2", "rich", "pygments", "tokenizers",
    "safetensors", "filelock",
)  # fmt: skip
_DISTRIBUTIONS = {"PIL": "pillow", "absl": "absl-py", "hydra": "hydra-core"}
_LEFT_OUT = frozenset(("test", "tests", "testing", "_vendor", "vendored", "site-packages", "idlelib", "lib2to3"))
_ADDED_BY_CALL = frozenset(("add_docstr", "add_newdoc", "_add_docstr", "add_docstr_all"))
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
        with open(self._corpus / f"{split}.jsonl", encoding="utf-8") as file:
            for line in file:
                entry = json.loads(line)
                yield entry["module"], entry["text"]

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
        versions = {name: version for name in self.packages if (version := _version(name)) is not None}
        identity = json.dumps([_RULES, versions, self.val, self.test])
        folder = cache_folder() / "pydocs" / hashlib.sha256(identity.encode()).hexdigest()[:32]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):  # ranks of one run would all mine
            if not _is_whole(folder):
                self._mine(folder, versions)
        return folder

    @cached_property
    def _index(self) -> dict:
        return json.loads((self._corpus / "index.json").read_text(encoding="utf-8"))

    def _mine(self, folder: Path, versions: dict[str, str]) -> None:
        """Writes the splits and, last, the index that vouches for them."""
        folder.mkdir(exist_ok=True)
        files = [entry for name in versions for entry in _modules(name)]
        splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for module, docstrings in _deduplicated(_read_all(files, self.workers or _cores())):
            text = "\n\n".join("\n".join(lines) for lines in docstrings)
            splits[self._side(module)].append(json.dumps({"module": module, "text": text}) + "\n")
        index: dict = {"versions": versions, "hashes": {}, "bytes": {}}
        for split, rows in splits.items():
            raw = "".join(rows).encode()
            _write(folder / f"{split}.jsonl", raw)
            index["hashes"][split] = hashlib.sha256(raw).hexdigest()[:32]
            index["bytes"][split] = sum(len(json.loads(row)["text"].encode()) for row in rows)
        _write(folder / "index.json", json.dumps(index, indent=1).encode())
        log.info("mined %.1f MB of prose from %d modules", sum(index["bytes"].values()) / 1e6, len(files))

    def _side(self, module: str) -> Split:
        group = ".".join(module.split(".")[:2])
        place = int.from_bytes(hashlib.sha256(f"{_SALT} {group}".encode()).digest()[:8], "big") / 2**64
        return "val" if place < self.val else "test" if place < self.val + self.test else "train"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, raw: bytes) -> None:
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    beside.write_bytes(raw)
    os.replace(beside, path)


def _is_whole(folder: Path) -> bool:
    try:
        hashes = json.loads((folder / "index.json").read_text(encoding="utf-8"))["hashes"]
        actual = {name: hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()[:32] for name in hashes}
    except FileNotFoundError:
        return False
    except (ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): mining it again", folder, error)
        return False
    if actual != hashes:
        log.warning("%s does not match its hashes: mining it again", folder)
    return actual == hashes


def _folder(package: str) -> Path | None:
    """Where a top-level package lies; None when it is not installed, or is a single compiled module."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)  # finds a top-level name without importing it
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def _version(package: str) -> str | None:
    """The installed version; None when the package is not there. Without metadata, a hash of its files' sizes."""
    folder = _folder(package)
    if folder is None:
        return None
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        sizes = [(name, os.path.getsize(path)) for name, path in _modules(package)]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:12]


def _modules(package: str) -> list[tuple[str, str]]:
    """(module name, path) of a package's source files, in order of name."""
    folder = _folder(package)
    assert folder is not None, f"{package} has a version, so it has a folder"
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            if name.endswith(".py") and not name.startswith("test_"):
                path = Path(parent, name)
                parts = path.relative_to(folder).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                prefix = () if package == STANDARD_LIBRARY else (package,)
                found.append((".".join((*prefix, *parts)) or package, str(path)))
    return found


def _read_all(files: list[tuple[str, str]], workers: int) -> Iterator[tuple[str, list[list[str]]]]:
    """(module, paragraphs of each documentation string), in the order of `files`."""
    chunks = [files[start : start + 32] for start in range(0, len(files), 32)]
    if workers == 1 or len(chunks) < 4:
        for chunk in chunks:
            yield from _read_chunk(chunk)
        return
    # Spawned, for a fork of a process with threads may hang.
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        for mined in _shown(pool.map(_read_chunk, chunks), len(chunks)):
            yield from mined


def _shown(steps: Iterable, total: int) -> Iterator:
    """The steps, with a progress bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        log.info("mining the installed documentation, once for these versions")
        yield from steps
        return
    from rich.console import Console  # 0.1 s, for a terminal only
    from rich.progress import track

    yield from track(steps, "mining documentation", total, console=Console(stderr=True), transient=True)


def _read_chunk(files: list[tuple[str, str]]) -> list[tuple[str, list[list[str]]]]:
    mined = []
    for module, path in files:
        prose = [lines for text in _docstrings(Path(path)) if (lines := list(paragraphs(text)))]
        if prose:
            mined.append((module, prose))
    return mined


def _docstrings(path: Path) -> Iterator[str]:
    """Documentation strings of a source file: those of definitions, and those that calls add to compiled functions."""
    raw = path.read_bytes()
    if b'"""' not in raw and b"'''" not in raw:  # parsing is the slow part
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a package's invalid escapes are not our user's concern
            tree = ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError):
        return  # templates and other versions' files lie about in packages
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
        for statement in getattr(node, block, ()) if not isinstance(node, ast.Lambda | ast.IfExp) else ():
            if isinstance(statement, ast.stmt | ast.ExceptHandler):
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
