"""Checkpoints on disk: written whole or not at all, verified before they are believed, made of plain types only.

Unusual: a file is written beside its target, flushed to the disk and then renamed, and reading first checks the CRCs
that the zip format already holds, which `torch.load` ignores. Older ones stay as last-1.ckpt, last-2.ckpt ... so that a
damaged newest file costs a few steps and not the run. It knows nothing of what the values mean.
"""

import io
import itertools
import logging
import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from alignlab.errors import UserError

log = logging.getLogger(__name__)


class DamagedCheckpoint(ValueError):
    """A checkpoint whose bytes are not those that were written."""


class NotWritten(UserError):
    """A checkpoint that the disk did not take; the one before is intact."""


def write(checkpoint: dict[str, Any], path: str | os.PathLike, *, packed: bool = False) -> None:
    """Writes `checkpoint` to `path` atomically: after a crash or on a full disk the file before is intact.

    `packed` deflates it, without loss: worth its time where most is text and the heads of many small tensors. Raises
    NotWritten where it does not fit or may not be written.
    """
    target = Path(path)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            if packed:
                _pack(checkpoint, file)
            else:
                torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    except (OSError, RuntimeError) as error:
        beside.unlink(missing_ok=True)
        free = shutil.disk_usage(target.parent).free / 2**20
        raise NotWritten(
            f"could not write checkpoint {target}: {_first_line(error)} ({free:,.0f} MB free there). "
            "Free some space or choose another folder with hydra.run.dir=; the checkpoint before is intact"
        ) from error
    _flush_folder(target.parent)


def _pack(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    """What `torch.save` writes, every part deflated; `torch.load` reads it as any other."""
    plain = io.BytesIO()
    torch.save(checkpoint, plain)
    with zipfile.ZipFile(plain) as parts, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        for part in parts.infolist():
            target.writestr(part.filename, parts.read(part))


def verify(path: str | os.PathLike) -> None:
    """Raises DamagedCheckpoint, naming what is wrong, unless every byte of the file is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            if (member := archive.testzip()) is not None:
                raise DamagedCheckpoint(f"{path} is damaged: the checksum of {member} does not match")
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise DamagedCheckpoint(f"{path} is damaged: {_first_line(error)}") from error


def read(path: str | os.PathLike) -> dict[str, Any]:
    """The checkpoint at `path`, on the CPU, after `verify`; executes nothing that the file holds."""
    verify(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def newest_good(folder: str | os.PathLike) -> Path | None:
    """The newest undamaged last*.ckpt of a run's checkpoints folder; warns of each damaged one. None: there is none.

    Raises DamagedCheckpoint where there are files but none is good.
    """
    candidates = [path for path in last_files(Path(folder)) if path.exists()]
    for path in candidates:
        try:
            verify(path)
        except DamagedCheckpoint as damage:
            log.warning("%s; trying the one before", damage)
            continue
        return path
    if candidates:
        raise DamagedCheckpoint(f"no undamaged checkpoint in {folder}: tried {', '.join(p.name for p in candidates)}")
    return None


def last_files(folder: Path, keep: int = 100) -> list[Path]:
    """Names of the resumable checkpoints in `folder`, newest first, whether they exist or not."""
    return [folder / "last.ckpt"] + [folder / f"last-{age}.ckpt" for age in range(1, keep)]


def set_aside(newest: Path) -> None:
    """Renames what is newer than the undamaged `newest`, so that it takes no good one's place in the rotation."""
    for path in last_files(newest.parent):
        if path == newest:
            return
        if path.exists():
            os.replace(path, path.with_name(f"damaged-{path.name}"))


def rotate(folder: Path, keep: int) -> None:
    """Makes last.ckpt the one before, so that `keep` files remain once a new last.ckpt is written.

    last.ckpt itself stays where it is until it is replaced: at every moment there is one.
    """
    files = last_files(folder, keep)
    for newer, older in reversed(list(itertools.pairwise(files))):
        if not newer.exists():
            continue
        if newer.name != "last.ckpt":
            os.replace(newer, older)
            continue
        beside = older.with_name(f".{older.name}.part")
        beside.unlink(missing_ok=True)
        try:
            os.link(newer, beside)
        except OSError:  # a filesystem without hard links
            shutil.copyfile(newer, beside)
        os.replace(beside, older)


class CheckpointFiles(CheckpointIO):
    """The trainer's way to the disk: `write` and `read` of this module."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """See `write`; packed where the frozen weights lie elsewhere, and so what is left is small."""
        write(checkpoint, path, packed=checkpoint.get("base") is not None)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> dict:
        """See `read`."""
        return read(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Removes one file."""
        Path(path).unlink(missing_ok=True)


def random_state() -> dict[str, Any]:
    """The state of every global random generator, as plain types and tensors."""
    version, state, gauss = random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002  a user's code may draw from it
    return {
        "python": {"version": version, "state": torch.tensor(state, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "state": torch.from_numpy(numpy_state[1].astype(np.int64)),
            "position": int(numpy_state[2]),
            "has_gauss": int(numpy_state[3]),
            "gauss": float(numpy_state[4]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """The inverse of `random_state`."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    key = numpy_state["state"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, numpy_state["position"], numpy_state["has_gauss"], numpy_state["gauss"]))  # noqa: NPY002  as above
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def not_finite(state: dict[str, Tensor]) -> list[str]:
    """Names of the weights that hold a NaN or an infinity."""
    return [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network filesystems cannot flush a folder; the file itself is safe
        log.debug("could not flush folder %s", folder)
    finally:
        os.close(descriptor)
