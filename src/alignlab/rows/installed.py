"""Installed packages as a source of rows: their source files read in place, in a pool of processes, and never imported.

What is mined is kept in the cache under the versions that it came from, each file with its hash, so that it is mined
once and a damaged file is noticed. Knows nothing of what is looked for in the files. Imports no torch.
"""

import ast
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import multiprocessing
import os
import platform
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from alignlab.paths import cache_folder
from alignlab.whole import whole

log = logging.getLogger(__name__)

Found = TypeVar("Found")
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
_CHUNK = 32  # files that a process reads at a time


def folder_of(package: str) -> Path | None:
    """Where a top-level package lies; None when it is not installed, or is a single compiled module."""
    if package == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)  # finds a top-level name without importing it
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """The version of each package that is installed."""
    return {name: version for name in packages if (version := _version(name)) is not None}


def _version(package: str) -> str | None:
    """The installed version; None when the package is not there. Without metadata, a hash of its files' sizes."""
    folder = folder_of(package)
    if folder is None:
        return None
    if package == STANDARD_LIBRARY:
        return platform.python_version()
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        sizes = [(name, os.path.getsize(path)) for name, path in modules_of(package)]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:12]


def modules_of(package: str) -> list[tuple[str, str]]:
    """(module name, path) of a package's source files, in order of name."""
    folder = folder_of(package)
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


def parsed(path: Path) -> tuple[ast.Module, bytes] | None:
    """The syntax tree and the bytes of a source file; None where it holds no documentation, or is no Python of ours."""
    raw = path.read_bytes()
    if b'"""' not in raw and b"'''" not in raw:  # parsing is the slow part
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a package's invalid escapes are not our user's concern
            return ast.parse(raw), raw
    except (SyntaxError, ValueError, RecursionError):
        return None  # templates and other versions' files lie about in packages


def read_all(
    files: list[tuple[str, str]], find: Callable[[Path], list[Found]], workers: int | None
) -> Iterator[tuple[str, list[Found]]]:
    """(module, what `find` sees in its file) where it sees anything, in the order of `files`."""
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    workers = workers or _cores()
    if workers == 1 or len(chunks) < 4:
        for chunk in chunks:
            yield from _read_chunk(find, chunk)
        return
    # Spawned, for a fork of a process with threads may hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for mined in _shown(pool.map(functools.partial(_read_chunk, find), chunks), len(chunks)):
            yield from mined


def _read_chunk(find: Callable[[Path], list[Found]], files: list[tuple[str, str]]) -> list[tuple[str, list[Found]]]:
    was_enabled = gc.isenabled()
    gc.disable()  # syntax trees have no cycles, and looking for some takes a fifth of the time
    try:
        return [(module, found) for module, path in files if (found := find(Path(path)))]
    finally:
        if was_enabled:
            gc.enable()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _shown(steps: Iterable, total: int) -> Iterator:
    """The steps, with a progress bar on standard error where that is a terminal."""
    if not sys.stderr.isatty():
        log.info("mining the installed documentation, once for these versions")
        yield from steps
        return
    from rich.console import Console  # 0.1 s, for a terminal only
    from rich.progress import track

    yield from track(steps, "mining documentation", total, console=Console(stderr=True), transient=True)


def kept(name: str, identity: list, make: Callable[[], tuple[dict[str, list[dict]], dict[str, Any]]]) -> Path:
    """The folder in the cache with the rows that `make` gives as FILE.jsonl, made where `identity` is new.

    `make` returns the rows of each file, and what else index.json is to say beside their hashes.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # it would wait for its parent for ever
        raise RuntimeError(
            "a script that reads embedded rows starts processes: put it under if __name__ == '__main__':"
        )
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache_folder() / name / digest
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # ranks of one run would all mine
        if not _is_whole(folder):
            folder.mkdir(exist_ok=True)
            files, about = make()
            index = {**about, "hashes": {}}
            for file, rows in files.items():
                raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
                with whole(folder / f"{file}.jsonl") as path:
                    path.write_bytes(raw)
                index["hashes"][file] = hashlib.sha256(raw).hexdigest()[:32]
            with whole(folder / "index.json") as path:  # last: it vouches for the others
                path.write_bytes(json.dumps(index, indent=1).encode())
    return folder


def index_of(folder: Path) -> dict[str, Any]:
    """What a kept folder's index says: "hashes" by file, and what its maker added."""
    return json.loads((folder / "index.json").read_text(encoding="utf-8"))


def kept_rows(folder: Path, file: str) -> Iterator[dict]:
    """The rows of a file of a kept folder."""
    with open(folder / f"{file}.jsonl", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _is_whole(folder: Path) -> bool:
    try:
        hashes = index_of(folder)["hashes"]
        actual = {name: hashlib.sha256((folder / f"{name}.jsonl").read_bytes()).hexdigest()[:32] for name in hashes}
    except FileNotFoundError:
        return False
    except (ValueError, KeyError) as error:
        log.warning("%s is damaged (%s): mining it again", folder, error)
        return False
    if actual != hashes:
        log.warning("%s does not match its hashes: mining it again", folder)
    return actual == hashes
