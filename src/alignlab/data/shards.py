"""A token store on disk, built from text rows in parallel and read as one long memory-mapped array.

Layout of a store: `index.json` and files `00000.tokens`, ... Each file is a 64-byte header (magic, version, bytes per
id, count, bytes of text, CRC-32 of the ids) and raw little-endian ids. The stream is EOS, document, EOS, document, EOS:
so the first token of each document is predicted from an EOS, and each document's end is learned.

Unusual: a store is built in a folder beside its place and renamed into it, so that a reader sees all of it or nothing;
and it is checked whole when opened, and built again, with a warning, where a bit has flipped. At no time is more than a
few megabytes of text held. Knows nothing about batches, splits or where rows come from. Imports no torch.
"""

import hashlib
import json
import logging
import os
import shutil
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from filelock import FileLock

from alignlab.data.tokenization import shown_progress, tokenized
from alignlab.paths import cache_folder
from alignlab.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MAGIC, VERSION = b"ALIGNTOK", 1
_HEADER = struct.Struct("<8sIIQQI28x")  # magic, version, bytes per id, count, bytes of text, CRC-32; 64 bytes
_SHARD_TOKENS = 1 << 26
_READ_TOKENS = 1 << 22

Rows = Callable[[], Iterable[dict]]


class DamagedStore(ValueError):
    """A store that is not what its headers say."""


class TokenShards:
    """The ids of all documents, EOS between, as one array on disk; final. Cheap to pickle: it travels as a path."""

    def __init__(self, *, folder: str | os.PathLike, verify: bool = True) -> None:
        """Opens a store; `verify` reads it all once. Raises DamagedStore (a ValueError) when it is not whole."""
        self.folder = Path(folder)
        index = _read_index(self.folder)
        self.tokens: int = index["tokens"]
        self.bytes: int = index["bytes"]
        self.documents: int = index["documents"]
        self._shards = [_open_shard(self.folder / name, verify) for name in index["files"]]
        self._starts = np.cumsum([0, *(len(shard) for shard in self._shards)])
        if self._starts[-1] != self.tokens:
            raise DamagedStore(f"{self.folder} holds {self._starts[-1]} tokens; its index says {self.tokens}")

    @classmethod
    def build(cls, *, rows: Rows, fingerprint: str, tokenizer: Tokenizer, workers: int | None = None) -> "TokenShards":
        """The store of (`fingerprint`, `tokenizer`) in the cache; built from `rows()` where it is missing or damaged.

        `rows()` yields {"text", "continues"} (`continues`: the next row goes on in the same document). `fingerprint` is
        the content hash of those rows. `workers` processes tokenize, all cores by default; small corpora use none.
        """
        key = hashlib.sha256(f"{VERSION} {fingerprint} {tokenizer.fingerprint}".encode()).hexdigest()[:32]
        folder = cache_folder() / "tokens" / key
        folder.parent.mkdir(parents=True, exist_ok=True)
        # The lock spares a second process the work. Were it not to hold, as on some network disks, the renaming below
        # still keeps the store whole.
        with FileLock(folder.with_suffix(".lock")):
            if folder.exists():
                try:
                    return cls(folder=folder)
                except (DamagedStore, OSError) as error:
                    log.warning("token store is damaged, building it again: %s", error)
            for abandoned in folder.parent.glob(f"{key}.building-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
            beside = folder.with_name(f"{key}.building-{uuid.uuid4().hex[:8]}")
            try:
                _write_store(beside, rows(), tokenizer, workers if workers is not None else _cores())
                _swap(beside, folder)
            finally:
                shutil.rmtree(beside, ignore_errors=True)
            return cls(folder=folder, verify=False)

    def __len__(self) -> int:
        return self.tokens

    def __reduce__(self) -> tuple:
        return _reopen, (str(self.folder),)

    @property
    def dtype(self) -> np.dtype:
        """uint16 or uint32, little-endian."""
        return self._shards[0].dtype

    def read(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop) of the stream: a read-only view of the disk, or a copy where they lie in two files.

        Raises IndexError outside 0 <= start <= stop <= tokens.
        """
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens [{start}, {stop}) of a store of {self.tokens}")
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts: list[np.ndarray] = []
        for number in range(first, len(self._shards)):
            offset = int(self._starts[number])
            if offset >= stop and parts:
                break
            parts.append(self._shards[number][max(start - offset, 0) : stop - offset])
        if not parts:  # start == stop == tokens
            return np.empty(0, dtype=self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def byte_counts(self, tokenizer: Tokenizer) -> np.ndarray:
        """UTF-8 bytes that each id (V,) stands for, together exactly those of the text.

        A tokenizer that lowers case, drops spaces or knows no emoji spells other bytes than it was given: its counts
        are scaled, all alike.
        """
        spelled = tokenizer.byte_counts
        total = sum(
            int(spelled[self.read(start, min(start + _READ_TOKENS, self.tokens))].sum(dtype=np.int64))
            for start in range(0, self.tokens, _READ_TOKENS)
        )
        return spelled if total in (0, self.bytes) else spelled * (self.bytes / total)


def _reopen(folder: str) -> TokenShards:
    return TokenShards(folder=folder, verify=False)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _swap(built: Path, place: Path) -> None:
    """Renames `built` to `place`; a whole store that another process put there meanwhile is as good and stays."""
    if place.exists():
        try:
            TokenShards(folder=place)
            return
        except (DamagedStore, OSError):
            aside = place.with_name(f"{place.name}.building-{uuid.uuid4().hex[:8]}")
            os.rename(place, aside)
            shutil.rmtree(aside, ignore_errors=True)
    try:
        os.rename(built, place)
    except OSError:
        if not place.exists():
            raise


def _write_store(folder: Path, rows: Iterable[dict], tokenizer: Tokenizer, workers: int) -> None:
    folder.mkdir(parents=True)
    writer = _Writer(folder, tokenizer.dtype.newbyteorder("<"), tokenizer.eos_id)
    with shown_progress() as show:
        for ends, ids, size in tokenized(rows, tokenizer, workers):
            writer.add(ends, ids, size)
            show(writer.bytes)
    writer.close()


class _Writer:
    """Appends documents to shard after shard. Final."""

    def __init__(self, folder: Path, dtype: np.dtype, eos: int) -> None:
        self._folder, self._dtype = folder, dtype
        self._eos = np.array([eos], dtype=dtype)
        self._file: BinaryIO | None = None
        self._names: list[str] = []
        self._count = self._text_bytes = self._crc = 0
        self.tokens = self.bytes = self.documents = 0
        self._put(self._eos)

    def add(self, ends: list[bool], ids: list[np.ndarray], size: int) -> None:
        """Ids of consecutive texts, an EOS after each that ends its document; `size` in bytes of UTF-8."""
        stream = [part for end, part in zip(ends, ids, strict=True) for part in ((part, self._eos) if end else (part,))]
        self.bytes += size
        self._text_bytes += size
        self.documents += sum(ends)
        self._put(np.concatenate(stream).astype(self._dtype, copy=False))

    def close(self) -> None:
        """Ends the last file and writes the index, without which the folder is no store."""
        self._finish_file()
        index = {
            "version": VERSION,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "documents": self.documents,
            "files": self._names,
        }
        (self._folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def _put(self, ids: np.ndarray) -> None:
        while len(ids):
            if self._file is None:
                self._names.append(f"{len(self._names):05d}.tokens")
                self._file = open(self._folder / self._names[-1], "wb")  # noqa: SIM115 - closed in _finish_file
                self._file.write(bytes(_HEADER.size))
            part, ids = np.split(ids, [_SHARD_TOKENS - self._count])
            raw = part.tobytes()
            self._file.write(raw)
            self._crc = zlib.crc32(raw, self._crc)
            self._count += len(part)
            self.tokens += len(part)
            if self._count == _SHARD_TOKENS:
                self._finish_file()

    def _finish_file(self) -> None:
        if self._file is None:
            return
        header = (MAGIC, VERSION, self._dtype.itemsize, self._count, self._text_bytes, self._crc)
        with self._file as file:
            file.seek(0)
            file.write(_HEADER.pack(*header))
            file.flush()
            os.fsync(file.fileno())
        self._file = None
        self._count = self._text_bytes = self._crc = 0


def _read_index(folder: Path) -> dict:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DamagedStore(f"{folder} has no readable index.json: {error}") from error
    if index.get("version") != VERSION or not index.get("files"):
        raise DamagedStore(f"{folder} is of version {index.get('version')}; expected {VERSION}")
    return index


def _open_shard(path: Path, verify: bool) -> np.ndarray:
    """The ids of one file, memory-mapped."""
    try:
        with open(path, "rb") as file:
            raw = file.read(_HEADER.size)
    except FileNotFoundError as error:
        raise DamagedStore(f"{path} is missing") from error
    if len(raw) != _HEADER.size or raw[:8] != MAGIC:
        raise DamagedStore(f"{path} is no token file")
    _, version, width, count, _, crc = _HEADER.unpack(raw)
    if version != VERSION or width not in (2, 4):
        raise DamagedStore(f"{path} is of version {version} with {width} bytes per id; expected {VERSION}, 2 or 4")
    expected = _HEADER.size + count * width
    if path.stat().st_size != expected:
        raise DamagedStore(f"{path} has {path.stat().st_size} bytes; its header says {expected}")
    ids = np.memmap(path, dtype=f"<u{width}", mode="r", offset=_HEADER.size, shape=(count,))
    if verify and _checksum(ids) != crc:
        raise DamagedStore(f"{path} does not match its checksum")
    return ids


def _checksum(ids: np.ndarray) -> int:
    crc = 0
    for start in range(0, len(ids), _READ_TOKENS):
        crc = zlib.crc32(ids[start : start + _READ_TOKENS].tobytes(), crc)
    return crc
