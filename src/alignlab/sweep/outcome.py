"""What became of a job of a sweep, and whether it is to stop, in files of its folder.

So a sweep that was killed knows what is missing, and a job hears of its end on any machine that sees the folder.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from alignlab.whole import whole

FILE = Path(".hydra") / "outcome.json"
PRUNED_CODE = 4  # exit code of a trial that its search gave up
ENDED = ("done", "pruned")  # what a sweep that goes on does not run again


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`status` is running, done, pruned, stopped or failed; the last with its `error` in one line."""

    status: str
    error: str = ""


def read(folder: Path) -> Outcome | None:
    """What `folder` says of its job; None where no job of a sweep has begun."""
    path = folder / FILE
    return Outcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def write(folder: Path, outcome: Outcome) -> None:
    """Writes beside and renames, so that a reader never sees half of it."""
    with whole(folder / FILE) as path:
        path.write_text(json.dumps(asdict(outcome)) + "\n", encoding="utf-8")


def tell_to_stop(folder: Path) -> None:
    """Leaves word in the folder of a job that it is to stop, wherever it runs."""
    _word(folder).touch()


def let_go_on(folder: Path) -> None:
    """Takes back the word that an earlier sweep left."""
    _word(folder).unlink(missing_ok=True)


def is_to_stop(folder: Path) -> bool:
    """Whether word was left that the job is to stop."""
    return _word(folder).exists()


def _word(folder: Path) -> Path:
    return folder / ".hydra" / "stop"
